"""What the model is worth to somebody who has it and no key: plain images, and keys drawn by chance."""

import numpy as np
import torch

from tessera.keystore.secrets import InputKey
from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.measure import chance, reached
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject
from tessera.protect.evaluate import Accuracy, evaluation_keys
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform

NAME = "no-key"
RIGHT, PLAIN, WRONG, WRONG_BEST = "right key", "plain images, no key", "random wrong keys, mean", "the luckiest of them"
"""The labels of its rows; verdicts are read from them."""


def run(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Measure the right key, none, and `wrong_keys` random ones. A guess of the commonest class is the floor."""
    meter.expect(budget.wrong_keys)
    model = subject.victim().to(device)
    held_out = sample.held_out
    right = reached(model, held_out, device, _lock(subject, subject.key, device))
    plain = reached(model, held_out, device)
    wrong: list[float] = []
    for key in evaluation_keys(budget.wrong_keys, seed):
        if meter.over and wrong:
            break
        wrong.append(reached(model, held_out, device, _lock(subject, key, device)))
        meter.did()
    found = Accuracy(right, plain, tuple(wrong), sample.metric)
    cut = len(wrong) < budget.wrong_keys
    rows = (
        Row(label=RIGHT, score=right, images=0, work=1, unit="key"),
        Row(label=PLAIN, score=plain, images=0, work=0, unit="keys"),
        Row(label=WRONG, score=found.wrong_key, images=0, work=len(wrong), unit="keys", cut_short=cut),
        Row(label=WRONG_BEST, score=max(wrong), images=0, work=len(wrong), unit="keys", cut_short=cut),
    )
    return AttackResult(name=NAME, rows=rows, details=_details(found, chance(sample.attacker, held_out)))


def _lock(subject: Subject, key: InputKey, device: torch.device) -> TorchTransform:
    return TorchTransform(Transform(subject.spec, key, *subject.shape), device)


def _details(found: Accuracy, floor: float) -> dict[str, object]:
    """Return the wrong keys' distribution: where their mean lies, and where the keys themselves do."""
    low, high = np.quantile(found.wrong_keys, [0.025, 0.975]).tolist()
    interval = found.wrong_key_interval
    return {
        "chance": round(floor, 4),
        "wrong_keys": [round(value, 4) for value in found.wrong_keys],
        "interval_of_the_mean_95": None if interval is None else [round(value, 4) for value in interval],
        "range_of_95_percent_of_keys": [round(low, 4), round(high, 4)],
        "observed_range": [round(min(found.wrong_keys), 4), round(max(found.wrong_keys), 4)],
    }
