"""Key files and public identities, as the commands load them: with the passphrase asked for only when one is needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.cli.passphrases import lazily
from tessera.keystore.errors import Conflict, Malformed, NotFound

if TYPE_CHECKING:
    from tessera.keystore.identity import Identity, PublicIdentity, Role
    from tessera.keystore.secrets import InputKey


def identity(path: Path, role: "Role", passphrase_file: Path | None = None) -> "Identity":
    """Return the identity in a key file. Raises `Malformed` when it has another role than `role`."""
    from tessera.keystore.keyfile import load_identity

    loaded = load_identity(path, lazily(path.name, passphrase_file))
    _check_role(path, loaded.public, role)
    return loaded


def public_identity(path: Path, role: "Role | None" = None) -> "PublicIdentity":
    """Return the public identity in `path`, or in `path`.pub beside a key file. Raises `Malformed` for another role."""
    from tessera.keystore.keyfile import load_public_identity

    beside = path.with_name(path.name + ".pub")
    loaded = load_public_identity(beside if beside.exists() else path)
    if role is not None:
        _check_role(path, loaded, role)
    return loaded


def input_key(path: Path, passphrase_file: Path | None = None) -> "InputKey":
    """Return the input key in a key file."""
    from tessera.keystore.keyfile import load_input_key

    return load_input_key(path, lazily(path.name, passphrase_file))


def issuers(paths: list[Path]) -> Mapping[str, bytes]:
    """Return key id → verification key of the issuers in `paths`."""
    found = [public_identity(path, "issuer") for path in paths]
    return {issuer.key_id: issuer.verify_key for issuer in found}


def refuse_existing(*paths: Path) -> None:
    """Raise `Conflict` when one of `paths` exists: no command replaces a file that it did not write itself."""
    for path in paths:
        if path.exists():
            raise Conflict(f"{path} exists already", remedy="choose another name, or move it away first")


def existing(path: Path, what: str) -> Path:
    """Return `path`. Raises `NotFound`, calling it `what`, when there is nothing."""
    if not path.exists():
        raise NotFound(f"there is no {what} at {path}", remedy="check the path")
    return path


def _check_role(path: Path, public: "PublicIdentity", role: "Role") -> None:
    if public.role != role:
        raise Malformed(
            f"{path} holds the identity of a{'n' if public.role == 'issuer' else ''} {public.role}, "
            f"where that of a{'n' if role == 'issuer' else ''} {role} is needed",
            remedy="check which key file goes where",
        )
