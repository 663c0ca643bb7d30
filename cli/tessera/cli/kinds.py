"""What the files of Tessera are, in words: what a command wants, where one gets it, and what a given file looks like.

Recognition reads the beginning of a file and is for messages only: nothing is decided by it.
"""

import json
import os
import re
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HEAD_BYTES: Final = 65_536
"""How much of a file recognition reads."""


@dataclass(frozen=True)
class Kind:
    """One kind of file: its name with the article, and where a person gets one."""

    name: str
    remedy: str
    folder: bool = False
    """Whether it is a folder rather than a file."""
    looks: tuple[str, ...] = ()
    """What `recognised` may say of one that is right, beside `name`."""
    absent: str | None = None
    """Reason of the error when there is none; None: the usual one."""


PACKAGE: Final = Kind("a sealed package", "give a .tessera file, as `tessera package build` writes it")
LICENCE: Final = Kind(
    "a licence file", "give the file that the vendor wrote with `tessera licence issue`", looks=("a licence",)
)
PUBLIC_IDENTITY: Final = Kind(
    "a public identity",
    "give a .pub file: an issuer's from `tessera keys new`, a buyer's from `tessera identity new`, a node's node.pub",
)
IDENTITY: Final = Kind(
    "the key file of an identity",
    "give the file that `tessera identity new` (buyer) or `tessera keys new --kind issuer` (vendor) wrote",
)
INPUT_KEY: Final = Kind("an input key", "give the file that `tessera keys new --kind input` wrote")
SECRETS: Final = Kind(
    "a package's secrets file", "give the .secrets file that `tessera package build` wrote beside the package"
)
BUNDLE: Final = Kind(
    "a bundle", "give the folder that `tessera protect train` wrote", folder=True, looks=("the folder of a bundle",)
)
LEAKED: Final = Kind(
    "a file of plain weights",
    "give a .safetensors file, or the folder of a bundle",
    looks=("a safetensors file without a seal",),
)
LEAKED_FOLDER: Final = Kind(
    "a folder with weights", LEAKED.remedy, folder=True, looks=("a folder", "the folder of a bundle")
)
REVOCATIONS: Final = Kind(
    "a revocation list", "give the list that `tessera licence revoke` wrote, or a new name to start one"
)
USAGE: Final = Kind(
    "a usage export or receipt",
    "give the file that `tessera usage export` wrote, or a receipt that `tessera infer --receipts` kept",
    looks=("a usage export", "a usage receipt"),
)
CERTIFICATES: Final = Kind(
    "a file of CA certificates",
    "give the node's ca.pem; the operator finds it in the key store's folder",
    looks=("a certificate",),
)
SETTINGS: Final = Kind("a settings file", "give a TOML file with the server's settings, see docs/guides/operator.md")
PASSPHRASE: Final = Kind("a passphrase file", "write the passphrase into it, mode 0600")
INPUT: Final = Kind(
    "an input for the model",
    "give a .npy array of uint8, or a PNG or JPEG image, of the size that the model takes",
    looks=("a .npy array", "a PNG image", "a JPEG image"),
)
KEYSTORE: Final = Kind(
    "a key store",
    "give the folder that `tessera keystore init` made",
    folder=True,
    looks=("the folder of a key store",),
    absent="not-initialised",
)


def recognised(path: Path) -> str | None:
    """Return what lies at `path` in words, such as `a licence file`; None when it is nothing that we know."""
    try:
        if path.is_dir():
            return _folder(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not make it wait
        with os.fdopen(descriptor, "rb") as stream:
            return _file(stream.read(HEAD_BYTES))
    except OSError:
        return None


def _folder(path: Path) -> str:
    if (path / "keystore.db").exists():
        return "the folder of a key store"
    return "the folder of a bundle" if (path / "bundle.json").exists() else "a folder"


def _file(head: bytes) -> str | None:
    if not head.strip():
        return "an empty file"
    for pattern, name in _MAGIC:
        if pattern.match(head):
            return name
    token = _TOKEN.match(head)
    if token is not None:
        return _BY_TYPE.get(str(_object(_decoded(token[1])).get("typ")))
    first = _object(head) or _object(head.partition(b"\n")[0])
    if first.keys() & {"checkpoint", "previous"}:
        return "a usage export"
    if first.get("format") == "tessera-key-file/1":
        return _BY_KEY_KIND.get(str(first.get("kind")))
    return _BY_FORMAT.get(str(first.get("format")))


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _decoded(part: bytes) -> bytes:
    try:
        return urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except ValueError:
        return b""


_MAGIC: Final = (
    (re.compile(rb".{8}\{\"__metadata__\":\{\"format\":\"tessera-package/", re.DOTALL), PACKAGE.name),
    (re.compile(rb".{8}\{.{0,4096}\"(?:dtype|__metadata__)\"", re.DOTALL), "a safetensors file without a seal"),
    (re.compile(rb"\x93NUMPY"), "a .npy array"),
    (re.compile(rb"\x89PNG\r\n"), "a PNG image"),
    (re.compile(rb"\xff\xd8\xff"), "a JPEG image"),
    (re.compile(rb"PK\x03\x04"), "a zip archive or a torch checkpoint"),
    (re.compile(rb"SQLite format 3"), "a database file"),
    (re.compile(rb"\s*-----BEGIN CERTIFICATE-----"), "a certificate"),
    (re.compile(rb"\s*-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key of another program"),
)
_TOKEN: Final = re.compile(rb"\s*([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\s*$")
_BY_TYPE: Final = {
    "tessera-licence+jwt": "a licence",
    "tessera-grant+jwt": "a grant",
    "tessera-revocations+jwt": REVOCATIONS.name,
    "tessera-receipt+jwt": "a usage receipt",
}
_BY_KEY_KIND: Final = {"identity": IDENTITY.name, "input-key": INPUT_KEY.name, "package-secrets": SECRETS.name}
_BY_FORMAT: Final = {
    "tessera-public-identity/1": PUBLIC_IDENTITY.name,
    "tessera-licence-file/1": LICENCE.name,
    "tessera-bundle/1": "the description of a bundle",
}
