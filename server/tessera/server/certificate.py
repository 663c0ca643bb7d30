"""The server's certificate and key: held against each other, and looked at again when a client connects.

So a renewed certificate (`tessera keystore certificate`) is shown to the next client without a restart, and files that
do not belong together are named as such and never shown.
"""

import os
import time
from pathlib import Path
from typing import Any, Final

import grpc
import structlog

from tessera.keystore.errors import Malformed, NotFound, TesseraError
from tessera.keystore.store import tls
from tessera.keystore.store.store import SERVER_CERTIFICATE, SERVER_KEY, TLS_FOLDER

SOON_S: Final = 30 * 86_400.0
"""The log warns at the start, and the alert fires, when the certificate ends within this time."""
REMEDY: Final = "run: tessera keystore certificate DIR"

_Stamp = tuple[tuple[int, int, int], ...]
_log = structlog.get_logger("tessera.certificate")


class ServerCertificate:
    """The pair of files in a store's folder `tls`. Raises `NotFound` or `Malformed` unless it can be served."""

    def __init__(self, directory: Path) -> None:
        folder = directory / TLS_FOLDER
        self._files = (folder / SERVER_KEY, folder / SERVER_CERTIFICATE)
        self._stamp = self._look()
        self._configuration, self.ends_at_s = self._read()
        """Unix time at which the certificate that is shown ends."""
        if self.ends_at_s < time.time() + SOON_S:
            _log.warning("the server's certificate ends soon, or has ended", ends_at_s=self.ends_at_s, remedy=REMEDY)

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that show the newest pair to each client that connects."""
        renewed: Any = self._renewed  # the stubs do not know that None means unchanged
        return grpc.dynamic_ssl_server_credentials(self._configuration, renewed)

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the pair if it has changed and is sound; called at each handshake, in a thread of gRPC's."""
        stamp = self._look()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            self._configuration, self.ends_at_s = self._read()
        except TesseraError as error:  # half renewed, or broken: what was shown so far still serves
            _log.warning("the server's new certificate is not used", cause=error.public)
            return None
        _log.info("the server's certificate was renewed", ends_at_s=self.ends_at_s)
        return self._configuration

    def _read(self) -> tuple[grpc.ServerCertificateConfiguration, float]:
        try:
            key, certificate = (file.read_bytes() for file in self._files)
        except OSError:
            raise NotFound(
                "the server's certificate or key cannot be read in the store's folder tls", remedy=REMEDY
            ) from None
        try:
            ends_at_s = tls.check_server_pair(certificate, key)
        except Malformed as error:
            raise Malformed(error.public, remedy=REMEDY) from error
        return grpc.ssl_server_certificate_configuration([(key, certificate)]), ends_at_s

    def _look(self) -> _Stamp:
        return tuple(_stamp(file) for file in self._files)


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        found = os.stat(file)
    except OSError:
        return (0, 0, 0)
    return found.st_ino, found.st_mtime_ns, found.st_size
