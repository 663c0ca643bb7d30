"""`tessera licence revoke`: add licences to the vendor's signed, numbered list, and give the list to a node."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tessera.cli import console
from tessera.cli.options import IssuerKey, JsonFlag, PassphraseFile
from tessera.keystore.errors import Malformed

if TYPE_CHECKING:
    from tessera.keystore.revocation import RevocationList

MAX_LIST_BYTES = 4 * 1024 * 1024


def revoke(
    licence_ids: Annotated[
        list[str], typer.Argument(metavar="LICENCE_ID…", help="Ids of the licences to revoke, or their licence files.")
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
    current = revocation.verify(_read(list_file), trusted) if list_file.exists() else None
    now_s = int(time.time())
    revoked = dict(current.revoked) if current else {}
    for licence_id in map(_licence_id, licence_ids):
        revoked.setdefault(licence_id, revocation.Revocation(now_s, reason))
    updated = revocation.issue(number=current.number + 1 if current else 1, revoked=revoked, issuer=signer, now_s=now_s)
    revocation.supersede(current, updated)
    _replace(list_file, updated)
    closed = node.apply_revocations(keystore, updated) if keystore is not None else None
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
    from tessera.keystore.licence import parse_without_verification, read_licence_file

    path = Path(text)
    return parse_without_verification(read_licence_file(path).licence).licence_id if path.is_file() else text


def _read(path: Path) -> str:
    with path.open("rb") as stream:
        raw = stream.read(MAX_LIST_BYTES + 1)
    if len(raw) > MAX_LIST_BYTES or not raw.isascii():
        raise Malformed(f"{path} is no revocation list")
    return raw.decode("ascii").strip()


def _replace(path: Path, updated: "RevocationList") -> None:
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="ascii") as stream:
        stream.write(updated.token + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)
