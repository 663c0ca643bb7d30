"""The order of the demo: vendor, operator, buyers, refusals, ledger, closing table."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tessera.cli import console
from tessera.cli.demo import buyers, ledger, refusals, vendor
from tessera.cli.demo.afterwards import commands_to_go_on
from tessera.cli.demo.findings import Findings
from tessera.cli.demo.server import ServerProcess, furnish, initialise

ADA_QUOTA = 20_000
BO_QUOTA = 200


def play(*, json_file: Path | None, keep: Path | None, seed: int) -> bool:
    """Run the demo in `keep` or in a folder that is removed afterwards; return whether all went as expected."""
    began_s = time.monotonic()
    with _folder(keep) as folder:
        findings = _acts(folder, seed)
        _closing(findings, time.monotonic() - began_s)
        if json_file is not None:
            json_file.write_text(json.dumps(findings.to_json(), indent=1) + "\n", encoding="utf-8")
        if keep is not None:
            for line in commands_to_go_on(folder):
                console.out().print(line, markup=False, soft_wrap=True)
    return findings.ok


def _acts(folder: Path, seed: int) -> Findings:
    findings, now_s = Findings(), int(time.time())
    _heading("Vendor: train on keyed inputs, seal")
    seller = vendor.prepare(folder / "vendor", seed=seed, now_s=now_s)
    measured = seller.trained.report["accuracy"]
    _say(f"{seller.package.name}: package {seller.manifest.package_id}, right-key accuracy {measured['right_key']:.1%}")

    _heading("Operator: key store; vendor: licences")
    node, passphrase = initialise(folder / "node", folder / "passphrase", now_s=now_s)
    ada, bo = (buyers.new_buyer(name, folder / name.lower()) for name in ("Ada", "Bo"))
    expired = ada.folder / "expired.licence"
    for buyer, quota in ((ada, ADA_QUOTA), (bo, BO_QUOTA)):
        vendor.license_to(seller, buyer.identity.public, node, buyer.licence_file, quota=quota, start_s=now_s)
    vendor.license_to(seller, ada.identity.public, node, expired, quota=None, start_s=now_s - 2 * vendor.TERM_S)
    installed = [ada.licence_file, bo.licence_file]
    furnish(folder / "node", seller.issuer.public, seller.package, installed, now_s=now_s)
    _say(f"node {node.key_id}; licences for Ada ({ADA_QUOTA} samples) and Bo ({BO_QUOTA} samples)")

    images, labels = vendor.test_set()
    np.save(folder / "scans.npy", images[:10])
    with ServerProcess(folder / "node", folder / "passphrase", folder / "server.log") as server:
        _say(f"serving on {server.address} (TLS), metrics on {server.metrics_address}")
        stage = refusals.Stage(seller, server, ada, bo, expired, images, labels)
        receipt, sent = _serve_buyers(stage, findings)
        _heading("What does not work, and why")
        refusals.show(stage, findings, now_s=now_s)
        sent["Ada"] += refusals.measure_without_key(stage, findings)
        _heading("The ledger")
        ledger.report(server, [ada, bo], sent, findings)
        ledger.verify(server, folder, node, receipt, findings)
        _heading("Metrics")
        ledger.scrape(server, findings)
        findings.expect("server: exit status after SIGTERM", 0, server.stop())
    _search(folder, findings, {"plaintext weights": seller.weights_sample(), "passphrase": passphrase})
    return findings


def _serve_buyers(stage: refusals.Stage, findings: Findings) -> tuple[str, dict[str, int]]:
    """Let both buyers work; return one of Ada's receipts and the samples each has sent."""
    _heading("Buyers: the client SDK, keys applied locally")
    rounds = buyers.STREAM_ROUNDS
    ada = buyers.work(stage.ada, stage.server, stage.images, stage.labels, unary=buyers.UNARY_CALLS, rounds=rounds)
    few = slice(0, BO_QUOTA)
    bo = buyers.work(stage.bo, stage.server, stage.images[few], stage.labels[few], unary=0, rounds=1)
    for name, got in (("Ada", ada), ("Bo", bo)):
        _say(f"{name}: accuracy {got.accuracy:.1%}, streaming {got.throughput_samples_per_s:,.0f} samples/s")
    _say(f"Ada, one image at a time: median {ada.median_s * 1e3:.1f} ms, slowest {ada.slowest_s * 1e3:.1f} ms")
    findings.accuracy["right_key"] = ada.accuracy
    findings.throughput_samples_per_s = ada.throughput_samples_per_s
    findings.expect_at_least("accuracy with the right key (Ada)", 0.9, ada.accuracy)
    findings.expect_at_least("accuracy with the right key (Bo)", 0.9, bo.accuracy)
    return ada.receipt, {"Ada": ada.samples, "Bo": bo.samples}


def _search(folder: Path, findings: Findings, secrets: dict[str, bytes]) -> None:
    """Hold that no file of the demo contains one of `secrets`; the passphrase has one file of its own."""
    allowed = folder / "passphrase"
    files = [path for path in folder.rglob("*") if path.is_file() and path != allowed]
    for name, secret in secrets.items():
        found = [path.name for path in files if secret in path.read_bytes()]
        findings.expect(f"files that contain the {name}", [], found)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        made = Path(tempfile.mkdtemp(prefix="tessera-demo-"))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return
    keep.mkdir(parents=True, exist_ok=True, mode=0o700)
    yield keep


def _closing(findings: Findings, seconds: float) -> None:
    _heading("Expected and observed")
    rows = [
        (expectation.name, expectation.expected, expectation.observed, "ok" if expectation.ok else "FAILED")
        for expectation in findings.expectations
    ]
    console.out().print(console.table(("expectation", "expected", "observed", ""), rows))
    failed = sum(not expectation.ok for expectation in findings.expectations)
    verdict = "all as expected" if not failed else f"{failed} NOT as expected"
    _say(f"{len(rows)} expectations, {verdict}; {seconds:.0f} s")


def _heading(text: str) -> None:
    from rich.rule import Rule

    console.out().print(Rule(text, align="left"))


def _say(sentence: str) -> None:
    console.out().print(f"  {sentence}", markup=False, soft_wrap=True)
