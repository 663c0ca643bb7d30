"""`tessera usage`: what the ledger says, and the proof that nobody changed it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli import console, kinds
from tessera.cli.options import JsonFlag, KeystoreOption, PassphraseFile, format_moment
from tessera.cli.reading import reading

if TYPE_CHECKING:
    from tessera.keystore.store import Store
    from tessera.keystore.usage import UsageRecord

usage_app = typer.Typer(help="Report, export and verify metered usage.", no_args_is_help=True)

_COLUMNS = ("licence_id", "buyer_id", "model", "requests", "samples", "bytes_in", "compute_seconds")
_PAGE = 1000


@usage_app.command("report", epilog="Example: tessera usage report --keystore node --json")
def report(keystore: KeystoreOption, as_json: JsonFlag = False) -> None:
    """Sum the ledger by licence."""
    entries = totals(keystore)
    rows = [[entry[column] for column in _COLUMNS] for entry in entries]
    console.emit({"usage": entries}, as_json=as_json, show=lambda: [console.table(_COLUMNS, rows)])


@usage_app.command("export", epilog="Example: tessera usage export --keystore node --out usage.jsonl")
def export(
    keystore: KeystoreOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="JSON lines to write; never replaced.")],
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Write every usage record and the node's signature over their chain, for offline verification."""
    from tessera.cli import admin
    from tessera.cli.loading import new_file

    new_file(out)
    if admin.server_is_running(keystore):
        count = export_from_server(keystore, out)
    else:
        count = _export_from_store(keystore, out, passphrase_file)
    document = {"file": str(out), "records": count}
    console.emit(document, as_json=as_json, show=lambda: [f"{count} records written to {out}"])


@usage_app.command("verify", epilog="Example: tessera usage verify usage.jsonl --node node.pub")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An export, or a text file with one usage receipt.")],
    node: Annotated[Path, typer.Option("--node", metavar="PUB", help="The node's public identity, node.pub.")],
    as_json: JsonFlag = False,
) -> None:
    """Verify an export's hash chain and checkpoint, or one receipt; needs only the node's public identity."""
    from tessera.cli import loading

    public = loading.public_identity(node, "node")
    with reading(file, kinds.USAGE):
        token = _receipt_token(file)
        document = (
            verified_receipt(token, public.key_id, public.verify_key)
            if token is not None
            else verified_export(file, public.key_id, public.verify_key)
        )
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


def totals(keystore: Path) -> list[dict[str, Any]]:
    """Return the sums of the ledger by licence, from the running server or else from the store."""
    from tessera.cli import admin, node

    if not admin.server_is_running(keystore):
        with node.store(keystore) as opened:
            return [
                {column: getattr(entry, column) for column in _COLUMNS[:-1]}
                | {"compute_seconds": entry.compute_us / 1e6}
                for entry in opened.usage_totals()
            ]
    from tessera.v1 import admin_pb2

    with admin.link(keystore) as stub:
        answer = stub.call("GetUsageReport", admin_pb2.GetUsageReportRequest(), admin_pb2.GetUsageReportResponse)
        return [{column: getattr(usage, column) for column in _COLUMNS} for usage in answer.usages]


def verified_export(file: Path, node_id: str, verify_key: bytes) -> dict[str, Any]:
    """Return the summary of an export whose chain and checkpoint verify. Raises `Tampered` (`ledger-broken`)."""
    from tessera.keystore import usage

    records, token = usage.read_export(file)
    checkpoint = usage.verify_checkpoint(token, {node_id: verify_key})
    chain = usage.verify_chain(records, node_id=node_id, checkpoint=checkpoint)
    return {
        "file": str(file),
        "verified": True,
        "records": chain.records,
        "samples": chain.samples,
        "head": chain.head,
        "signed_at": format_moment(checkpoint.time_us / 1e6),
    }


def verified_receipt(token: str, node_id: str, verify_key: bytes) -> dict[str, Any]:
    """Return the record of a receipt that this node signed. Raises `Tampered` (`receipt-invalid`)."""
    from tessera.keystore import usage

    record = usage.verify_receipt(token, {node_id: verify_key})
    return {"verified": True, **record.to_claims()}


def export_from_server(keystore: Path, out: Path) -> int:
    """Write the running server's export to `out`, whole or not at all; return the number of records."""
    from tessera.cli import admin
    from tessera.v1 import admin_pb2

    count = 0
    partial = out.with_name(out.name + ".part")
    try:
        with admin.link(keystore) as service, partial.open("w", encoding="utf-8") as stream:
            request = admin_pb2.ExportUsageRequest(from_sequence=1)
            for message in service.stream("ExportUsage", request, admin_pb2.ExportUsageResponse):
                stream.writelines(record + "\n" for record in message.records)
                count += len(message.records)
                if message.checkpoint:
                    stream.write(f'{{"checkpoint":"{message.checkpoint}"}}\n')
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _receipt_token(file: Path) -> str | None:
    with file.open("rb") as stream:
        raw = stream.read(65_536)
    text = raw.decode("ascii", errors="replace").strip()
    return text if text.count(".") == 2 and "{" not in text else None


def _export_from_store(keystore: Path, out: Path, passphrase_file: Path | None) -> int:
    from tessera.cli import node
    from tessera.cli.passphrases import passphrase
    from tessera.keystore import usage

    with node.store(keystore) as opened:
        opened.unseal(passphrase(f"the key store {keystore}", passphrase_file))
        identity = opened.node_identity()
        sequence, head = opened.ledger_head()
        now_us = int(time.time() * 1e6)
        token = usage.sign_checkpoint(identity.public.key_id, sequence, head, now_us, identity)
        usage.write_export(out, _records(opened, sequence), token)
    return sequence


def _records(opened: "Store", last: int) -> Iterator["UsageRecord"]:
    following = 1
    while following <= last:
        page = opened.usage_records(following, min(_PAGE, last - following + 1))
        yield from page
        following += len(page)
