"""`tessera serve` before and around the server itself."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from support.cli import invoke
from tessera.cli import admin
from tessera.keystore import errors

PROBE = """
import resource
from tessera.cli.serve import keep_out_of_core_dumps
keep_out_of_core_dumps()
import ctypes
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_DUMPABLE is Linux's")
def test_a_serving_process_leaves_no_core(tmp_path: Path) -> None:
    """The core limit is zero and the process is marked as not dumpable, so keys in memory reach no disk."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "(0, 0) 0"


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    """The server does not start on nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "tessera.cli", "serve", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "there is no key store" in done.stderr


@pytest.mark.parametrize("text", ["8001", "host:", ":8001", "host:http", "host:99999", "host:٣"])
def test_an_address_is_host_and_port(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything else is a usage error that shows the form."""
    monkeypatch.setattr("tessera.cli.serve.keep_out_of_core_dumps", lambda: None)
    (tmp_path / "keystore.db").touch()
    result = invoke("serve", tmp_path, "--listen", text)
    assert result.exit_code == 2
    assert "0.0.0.0:8001" in result.stderr


class Failed(grpc.RpcError):
    """A failed call as grpcio raises it."""

    def __init__(self, status: grpc.StatusCode, details: str, *trailing: tuple[str, str | bytes]) -> None:
        super().__init__()
        self._told = (status, details, trailing)

    def code(self) -> grpc.StatusCode:
        """Return the status."""
        return self._told[0]

    def details(self) -> str:
        """Return the status message."""
        return self._told[1]

    def trailing_metadata(self) -> Any:
        """Return the trailer."""
        return self._told[2]


def test_a_refusal_keeps_reason_sentence_and_remedy() -> None:
    """What the server says is what the shell shows."""
    trailer = (("tessera-reason", "store-sealed"), ("tessera-remedy", "unseal it"), ("x-bin", b"\x00"))
    error = admin.refusal(Failed(grpc.StatusCode.UNAVAILABLE, "store-sealed: the store is sealed", *trailer))
    assert isinstance(error, errors.SealedError)
    assert (error.reason, error.public, error.remedy) == ("store-sealed", "the store is sealed", "unseal it")


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
def test_every_status_becomes_an_error_of_ours(status: grpc.StatusCode) -> None:
    """Also one that comes from a proxy, without a reason and without a word."""
    error = admin.refusal(Failed(status, ""))
    assert isinstance(error, errors.TesseraError)
    assert error.public == status.name
