"""The files that commands are given, loaded: what is wrong with one names it, says what it is and what was wanted.

A passphrase is asked for only when a key file needs one.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.cli import kinds
from tessera.cli.passphrases import lazily
from tessera.cli.reading import reading
from tessera.keystore.errors import Conflict, Denied, Malformed, NotFound

if TYPE_CHECKING:
    from tessera.keystore.grant import PackageSecrets
    from tessera.keystore.identity import Identity, PublicIdentity, Role
    from tessera.keystore.licence import LicenceFile
    from tessera.keystore.package import Manifest
    from tessera.keystore.secrets import InputKey

MAX_CERTIFICATE_BYTES = 4 * 1024 * 1024


def identity(path: Path, role: "Role", passphrase_file: Path | None = None) -> "Identity":
    """Return the identity in a key file. Raises `Malformed` when it has another role than `role`."""
    from tessera.keystore.keyfile import load_identity

    with reading(path, kinds.IDENTITY):
        loaded = load_identity(path, lazily(path.name, passphrase_file))
    _check_role(path, loaded.public, role)
    return loaded


def public_identity(path: Path, role: "Role | None" = None) -> "PublicIdentity":
    """Return the public identity in `path`, or in `path`.pub beside a key file. Raises `Malformed` for another role."""
    from tessera.keystore.keyfile import load_public_identity

    beside = path.parent / f"{path.name}.pub"
    chosen = beside if beside.is_file() and not path.is_dir() else path
    with reading(chosen, kinds.PUBLIC_IDENTITY):
        loaded = load_public_identity(chosen)
    if role is not None:
        _check_role(path, loaded, role)
    return loaded


def input_key(path: Path, passphrase_file: Path | None = None) -> "InputKey":
    """Return the input key in a key file."""
    from tessera.keystore.keyfile import load_input_key

    with reading(path, kinds.INPUT_KEY):
        return load_input_key(path, lazily(path.name, passphrase_file))


def package_secrets(path: Path, passphrase_file: Path | None = None) -> "PackageSecrets":
    """Return a package's keys."""
    from tessera.keystore.grant import load_package_secrets

    with reading(path, kinds.SECRETS):
        return load_package_secrets(path, lazily(path.name, passphrase_file))


def manifest(path: Path) -> "Manifest":
    """Return what a package says about itself; its signature is not checked."""
    from tessera.keystore.package import inspect_package

    with reading(path, kinds.PACKAGE):
        return inspect_package(path)


def licence_file(path: Path) -> "LicenceFile":
    """Return the licence and grant of a licence file; no signature is checked."""
    from tessera.keystore.licence import parse_without_verification, read_licence_file

    with reading(path, kinds.LICENCE):
        held = read_licence_file(path)
        parse_without_verification(held.licence)
        return held


def certificates(path: Path) -> bytes:
    """Return the PEM certificates in a file."""
    with reading(path, kinds.CERTIFICATES):
        with path.open("rb") as stream:
            found = stream.read(MAX_CERTIFICATE_BYTES + 1)
        if b"-----BEGIN CERTIFICATE-----" not in found or len(found) > MAX_CERTIFICATE_BYTES:
            raise Malformed("it holds no certificate in PEM form")
    return found


def issuers(paths: list[Path]) -> Mapping[str, bytes]:
    """Return key id → verification key of the issuers in `paths`."""
    found = [public_identity(path, "issuer") for path in paths]
    return {issuer.key_id: issuer.verify_key for issuer in found}


def refuse_existing(*paths: Path) -> None:
    """Raise `Conflict` when one of `paths` exists: no command replaces a file that it did not write itself."""
    for path in paths:
        if path.exists() or path.is_symlink():
            raise Conflict(f"{path} exists already", remedy="choose another name, or move it away first")


def new_file(*paths: Path) -> None:
    """As `refuse_existing`; also raises `NotFound` or `Denied` where no file can be made, before any work is done."""
    refuse_existing(*paths)
    for path in paths:
        if not path.parent.is_dir():
            raise NotFound(f"{path} cannot be written: {path.parent} is no folder", remedy="make the folder first")
        _check_writable(path, path.parent)


def new_folder(path: Path) -> None:
    """As `refuse_existing`, for a folder that is made with its parents; a file in their place is a `Conflict`."""
    refuse_existing(path)
    possible_folder(path)


def possible_folder(path: Path) -> None:
    """Raise `Conflict` when a file is in the place of `path` or its parents, `Denied` when nobody may write there."""
    if path.exists() and not path.is_dir():
        raise Conflict(f"{path} is not a folder", remedy="choose another folder")
    found = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not found.is_dir():
        raise Conflict(f"{path} cannot be made: {found} is not a folder", remedy="choose another folder")
    _check_writable(path, found)


def replaceable_file(path: Path) -> None:
    """Raise `Conflict` or `NotFound` when `path` can be neither made nor replaced as a file."""
    if path.is_dir():
        raise Conflict(f"{path} is a folder", remedy="name a file")
    if not path.exists():
        new_file(path)


def _check_writable(path: Path, folder: Path) -> None:
    """Raise `Denied` when nothing can be made in `folder`: hours of training must not end at a closed door."""
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise Denied(
            f"{path} cannot be written: {folder} is closed to you or read-only",
            remedy="check the folder's owner and permissions, or choose another",
        )


def _check_role(path: Path, public: "PublicIdentity", role: "Role") -> None:
    if public.role != role:
        raise Malformed(
            f"{path} holds the identity of a{'n' if public.role == 'issuer' else ''} {public.role}, "
            f"where that of a{'n' if role == 'issuer' else ''} {role} is needed",
            remedy="check which key file goes where",
        )
