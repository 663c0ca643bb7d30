"""`tessera licence revoke`: add licences to the vendor's signed, numbered list, and give the list to a node."""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tessera.cli import console, kinds
from tessera.cli.loading import new_file
from tessera.cli.options import IssuerKey, JsonFlag, PassphraseFile
from tessera.cli.reading import argument, reading
from tessera.keystore.errors import Malformed, NotFound, TesseraError

if TYPE_CHECKING:
    from tessera.keystore.revocation import RevocationList

MAX_LIST_BYTES = 4 * 1024 * 1024
_LICENCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def revoke(
    licence_ids: Annotated[
        list[str], typer.Argument(metavar="LICENCE_ID", help="Ids of the licences to revoke, or their licence files.")
    ],
    issuer: IssuerKey,
    list_file: Annotated[
        Path, typer.Option("--list", metavar="FILE", help="The issuer's revocation list: added to, or started.")
    ],
    reason: Annotated[str, typer.Option(help="Why; written into the list, which buyers may read.")] = "unspecified",
    keystore: Annotated[
        Path | None,
        typer.Option("--keystore", "-k", envvar="TESSERA_KEYSTORE", metavar="DIR", help="Apply the list to this node."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Revoke licences: a running node closes their sessions at once. A revocation cannot be undone."""
    from tessera.cli import loading, node
    from tessera.keystore import revocation

    signer = loading.identity(issuer, "issuer", passphrase_file)
    trusted = {signer.public.key_id: signer.public.verify_key}
    current = _current(list_file, trusted)
    now_s = int(time.time())
    revoked = dict(current.revoked) if current else {}
    for licence_id in map(_licence_id, licence_ids):
        revoked.setdefault(licence_id, revocation.Revocation(now_s, reason))
    number = current.number + 1 if current else 1
    with argument("--reason", "give 1 to 128 printable characters"):
        updated = revocation.issue(number=number, revoked=revoked, issuer=signer, now_s=now_s)
    revocation.supersede(current, updated)
    _replace(list_file, updated)
    try:
        closed = node.apply_revocations(keystore, updated) if keystore is not None else None
    except TesseraError as error:
        if error.reason == "revocation-rollback":  # the usual remedy, to ask the issuer, is no help to the issuer
            error.remedy = f"add to the list that is in force on {keystore} by --list; {list_file} is not that one"
        raise
    document = {
        "list": str(list_file),
        "number": updated.number,
        "revoked": len(updated.revoked),
        "applied_to": str(keystore) if keystore is not None else None,
        "sessions_closed": closed,
    }
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


def _licence_id(text: str) -> str:
    """Return the id in a licence file, or `text` itself where there is no such file."""
    from tessera.cli.loading import licence_file
    from tessera.keystore.licence import parse_without_verification

    path = Path(text)
    if _names_a_file(path):
        return parse_without_verification(licence_file(path).licence).licence_id
    if _LICENCE_ID.fullmatch(text) is None:
        raise NotFound(
            f"there is no licence file at {text[:200]!r}, and that is no licence id either",
            remedy="give a licence file, or the id that `tessera licence inspect` shows",
        )
    return text


def _names_a_file(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a path may be, or with a zero byte
        return False


def _current(path: Path, trusted: Mapping[str, bytes]) -> "RevocationList | None":
    """Return the list at `path`, None when there is none yet."""
    from tessera.keystore import revocation

    if not path.exists():
        new_file(path)
        return None
    with reading(path, kinds.REVOCATIONS):
        with path.open("rb") as stream:
            raw = stream.read(MAX_LIST_BYTES + 1)
        if len(raw) > MAX_LIST_BYTES or not raw.isascii():
            raise Malformed(f"not at most {MAX_LIST_BYTES} ASCII characters")
        return revocation.verify(raw.decode("ascii").strip(), trusted)


def _replace(path: Path, updated: "RevocationList") -> None:
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="ascii") as stream:
        stream.write(updated.token + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)
