"""Ambiguity: somebody claims the model with a key and a record of their own.

A claim counts when the claimed key, bound to the claimed record, unlocks the model. The binding is a MAC (rule C-4), so
a claimant cannot start from a pattern that works and look for a key that gives it: all they can do is try keys. How far
the best of many tries gets, and how near its pattern is to the true one, is what this measures.
"""

from math import comb
from typing import Final

import torch

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.measure import reached
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject, some
from tessera.protect.evaluate import evaluation_keys
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Perturbation, Transform

NAME: Final = "ambiguity"
_SEED: Final = 90_001


def run(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Try `random_keys` claims on a few images, then judge the best by the held-out ones."""
    meter.expect(budget.random_keys)
    model = subject.victim().to(device)
    own = some(sample.attacker, budget.search_images, seed)
    true = Perturbation.of(subject.spec, subject.key, *subject.shape).signs
    best, best_key, nearest, done = -1.0, subject.key, 0.0, 0
    for key in evaluation_keys(budget.random_keys, _SEED + seed):
        if meter.over and done:
            break
        lock = TorchTransform(Transform(subject.spec, key, *subject.shape), device)
        found = reached(model, own, device, lock)
        signs = Perturbation.of(subject.spec, key, *subject.shape).signs
        nearest = max(nearest, float((signs == true).mean()))
        if found > best:
            best, best_key = found, key
        done += 1
        meter.did()
    score = reached(
        model, sample.held_out, device, TorchTransform(Transform(subject.spec, best_key, *subject.shape), device)
    )
    row = Row(
        label=f"the best of {done} claimed keys and records",
        score=score,
        images=len(own),
        work=done,
        unit="keys tried",
        cut_short=done < budget.random_keys,
    )
    values = int(true.size)
    details = {
        "patterns": f"{comb(values, values // 2):.3g}",
        "nearest_share_of_signs": round(nearest, 4),
    }
    return AttackResult(name=NAME, rows=(row,), details=details)
