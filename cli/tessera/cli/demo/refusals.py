"""What does not work, and the reason that comes back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tessera.cli import console, node, usage
from tessera.cli.demo import plain
from tessera.cli.demo.buyers import Buyer
from tessera.cli.demo.findings import Findings
from tessera.cli.demo.server import ServerProcess
from tessera.cli.demo.vendor import MODEL, Vendor
from tessera.keystore.errors import TesseraError
from tessera.keystore.secrets import InputKey
from tessera.transforms import Transform

if TYPE_CHECKING:
    from numpy.typing import NDArray

WRONG_KEYS = 5


@dataclass(frozen=True)
class Stage:
    """Everybody and everything a refusal needs."""

    vendor: Vendor
    server: ServerProcess
    ada: Buyer
    bo: Buyer
    expired: Path
    images: "NDArray[np.uint8]"
    labels: "NDArray[np.int64]"


def show(stage: Stage, findings: Findings, *, now_s: float) -> None:
    """Try what must be refused, one after the other, and hold that none of it was charged."""
    before = charged(stage.server)
    image = stage.images[0]
    _try(findings, "no licence, so no session", "session-missing", lambda: _without_session(stage))
    _try(
        findings,
        "somebody else's licence",
        "licence-not-yours",
        lambda: _infer(stage, stage.bo, stage.ada.licence_file),
    )
    wrong = InputKey.generate()
    _try(findings, "wrong input key", "wrong-input-key", lambda: _infer(stage, stage.ada, None, wrong))
    _try(findings, "expired licence", "licence-expired", lambda: _infer(stage, stage.ada, stage.expired))
    with stage.bo.client(stage.server) as client:
        _try(findings, "quota used up", "quota-exhausted", lambda: client.infer(MODEL, image))
    damaged = _damaged(stage.vendor.package)
    publish = stage.server.keystore
    _try(
        findings,
        "one byte of the package changed",
        "package-tampered",
        lambda: node.publish(publish, damaged, now_s=now_s),
    )
    findings.expect("samples charged for all these refusals", 0, charged(stage.server) - before)


def measure_without_key(stage: Stage, findings: Findings) -> int:
    """Send tensors under wrong keys and plain ones with a valid session, past the SDK; return the samples sent."""
    shape = stage.images.shape[1:]
    spec = stage.vendor.trained.transform
    if spec is None:
        raise TesseraError("the demo's model has a transform")
    before = charged(stage.server)
    with plain.channel(stage.server) as opened:
        token = plain.open_session(opened, stage.ada, stage.vendor.input_key)
        right = []
        with console.progress(f"inputs under {WRONG_KEYS} wrong keys, with a valid session") as advance:
            for done in range(WRONG_KEYS):
                keyed = Transform(spec, InputKey.generate(), *shape)(stage.images)
                right.append(plain.accuracy(opened, token, keyed, stage.labels))
                advance(done + 1, WRONG_KEYS)
        unkeyed = plain.accuracy(opened, token, stage.images, stage.labels)
    findings.accuracy |= {"wrong_key": float(np.mean(right)), "plain": unkeyed}
    told = f"  accuracy with wrong keys {findings.accuracy['wrong_key']:.1%}, with plain tensors {unkeyed:.1%}"
    console.out().print(told + "; answered and charged: the server cannot tell", markup=False, soft_wrap=True)
    findings.expect_at_most("accuracy with wrong keys", 0.35, findings.accuracy["wrong_key"])
    findings.expect_at_most("accuracy of plain tensors", 0.35, unkeyed)
    sent = (WRONG_KEYS + 1) * len(stage.images)
    findings.expect("samples charged for tensors without the key", sent, charged(stage.server) - before)
    return sent


def charged(server: ServerProcess) -> int:
    """Return the samples that the ledger holds, of all licences."""
    return sum(entry["samples"] for entry in usage.totals(server.keystore))


def _try(findings: Findings, name: str, reason: str, attempt: Callable[[], object]) -> None:
    error = findings.expect_refusal(name, reason, attempt)
    told = f"{error.reason}: {error.public}" if error is not None else "was not refused"
    console.out().print(f"  {name}\n    → {told}", markup=False, soft_wrap=True)


def _without_session(stage: Stage) -> None:
    with plain.channel(stage.server) as opened:
        plain.infer(opened, None, stage.images[:1])


def _infer(stage: Stage, buyer: Buyer, licence: Path | None, key: InputKey | None = None) -> None:
    with buyer.client(stage.server, licence=licence, input_key=key) as client:
        client.infer(MODEL, stage.images[0])


def _damaged(package: Path) -> Path:
    raw = bytearray(package.read_bytes())
    raw[len(raw) // 2] ^= 0x01
    copy = package.with_name("damaged.tessera")
    copy.write_bytes(raw)
    return copy
