"""How fast a key stops working when part of it is wrong: what half-way searches and small leaks are worth.

A cipher's key with one wrong bit gives noise. A keyed transform with a few wrong places gives nearly the right image,
so quality falls slowly with the share that is wrong, and that slope is what every search climbs.
"""

from typing import Final

import torch

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.measure import reached
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject
from tessera.protect.near_keys import NearKeyTransform

NAME = "near-keys"
SHARES: Final = (0.01, 0.02, 0.10, 0.50)
"""Shares of every step's permutation or mask that are wrong."""
DRAWS: Final = 5
"""Nearly right keys of each share; the row has their mean."""


def run(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Measure the mean score over `DRAWS` keys of each share; wrong places are rounded to one at least."""
    del budget  # twenty measurements are few enough for all of them
    meter.expect(DRAWS * len(SHARES))
    model = subject.victim().to(device)
    rows = []
    for share in SHARES:
        scores: list[float] = []
        for draw in range(DRAWS):
            if meter.over and scores:
                break
            near = NearKeyTransform(
                subject.spec, subject.key, subject.shape, share, seed=seed * DRAWS + draw, device=device
            )
            scores.append(reached(model, sample.held_out, device, near))
            meter.did()
        rows.append(
            Row(
                label=f"{share:.0%} of the key wrong",
                score=sum(scores) / len(scores),
                at=share,
                images=0,
                work=len(scores),
                unit="keys",
                cut_short=len(scores) < DRAWS,
                note=f"between {min(scores):.1%} and {max(scores):.1%}",
            )
        )
    whole = "to whole places of a block, one at least and two in a permutation"
    return AttackResult(name=NAME, rows=tuple(rows), details={"the share that is wrong is rounded": whole})
