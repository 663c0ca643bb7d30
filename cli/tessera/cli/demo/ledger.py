"""What the ledger says, checked with nothing but the node's public identity; and what Prometheus sees."""

import json
import urllib.request
from pathlib import Path
from typing import Any

from tessera.cli import console, usage
from tessera.cli.demo.buyers import Buyer
from tessera.cli.demo.findings import Findings
from tessera.cli.demo.server import ServerProcess
from tessera.keystore.errors import Tampered
from tessera.keystore.identity import PublicIdentity

_METRICS_SHOWN = (
    "tessera_samples_total",
    "tessera_refusals_total",
    "tessera_ledger_commits_total",
    "tessera_ledger_records_total",
    "tessera_batch_samples_sum",
    "tessera_batch_samples_count",
)
MAX_METRICS_BYTES = 1 << 20


def report(server: ServerProcess, buyers: list[Buyer], expected: dict[str, int], findings: Findings) -> None:
    """Print the usage of each buyer and hold it against the samples that were really sent."""
    names = {buyer.identity.key_id: buyer.name for buyer in buyers}
    entries = usage.totals(server.keystore)
    findings.usage = [{"buyer": names[entry["buyer_id"]], **entry} for entry in entries]
    columns = ("buyer", "model", "requests", "samples", "bytes_in", "compute_seconds")
    rows = [[_rounded(entry[column]) for column in columns] for entry in findings.usage]
    console.out().print(console.table(columns, rows))
    samples = {entry["buyer"]: entry["samples"] for entry in findings.usage}
    for name, sent in expected.items():
        findings.expect(f"samples charged to {name}", sent, samples.get(name, 0))


def verify(server: ServerProcess, folder: Path, node: PublicIdentity, receipt: str, findings: Findings) -> None:
    """Export the ledger, verify chain, checkpoint and one receipt offline, and see that a changed record is noticed."""
    export = folder / "usage.jsonl"
    count = usage.export_from_server(server.keystore, export)
    chain = usage.verified_export(export, node.key_id, node.verify_key)
    findings.expect("ledger: records whose hash chain verifies", count, chain["records"])
    (folder / "one.receipt").write_text(receipt + "\n", encoding="ascii")
    record = usage.verified_receipt(receipt, node.key_id, node.verify_key)
    in_ledger = json.loads(export.read_text(encoding="utf-8").splitlines()[record["sequence"] - 1])
    claims = {name: value for name, value in record.items() if name != "verified"}
    findings.expect("receipt: signed by the node and equal to the ledger's record", True, claims == in_ledger)
    findings.expect("ledger with one record changed", "ledger-broken", _after_forgery(export, node))
    console.out().print(
        f"  {count} records, head {chain['head'][:16]}…, signed {chain['signed_at']}; "
        f"receipt {record['sequence']} is the node's",
        markup=False,
        soft_wrap=True,
    )


def scrape(server: ServerProcess, findings: Findings) -> None:
    """Print a few lines of `/metrics`."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as answer:
        page = answer.read(MAX_METRICS_BYTES).decode("utf-8")
    lines = [line for line in page.splitlines() if line.startswith(_METRICS_SHOWN)]
    for line in (line for line in lines if not line.endswith(" 0.0")):  # every reason has a counter from the start
        console.out().print(f"  {line}", markup=False, soft_wrap=True)
    findings.expect("metrics: samples are counted", True, any("tessera_samples_total" in line for line in lines))


def _after_forgery(export: Path, node: PublicIdentity) -> str:
    lines = export.read_text(encoding="utf-8").splitlines()
    forged: dict[str, Any] = json.loads(lines[0])
    forged["samples"] += 1
    lines[0] = json.dumps(forged, sort_keys=True, separators=(",", ":"))
    copy = export.with_name("forged.jsonl")
    copy.write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        usage.verified_export(copy, node.key_id, node.verify_key)
    except Tampered as error:
        return error.reason
    return "accepted"


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
