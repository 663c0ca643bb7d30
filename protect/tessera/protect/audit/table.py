"""Every attack there is, in one explicit table: what it does in plain words, and what it applies to.

A further attack is a module with a function of this form and an entry here; report and progress need no change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch

from tessera.keystore.errors import NotFound
from tessera.protect.audit import adapters, fine_tuning, keyless, known_pairs, near, searching
from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.result import AttackResult
from tessera.protect.audit.subject import Protection, Sample, Subject


class Run(Protocol):
    """What carries an attack out; the same arguments give the same result as long as time does not cut it short."""

    def __call__(
        self, subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
    ) -> AttackResult:
        """Attack `subject` with the attacker's images of `sample` and judge by those held out."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One entry of the table."""

    name: str
    title: str
    explained: str
    """What the attacker has and does, for a reader who is no engineer."""
    run: Run
    share: float
    """Its share of the time, relative to the others."""
    protections: frozenset[Protection] = frozenset({"keyed-input"})
    axis: str = ""
    """What the `at` of its rows counts, below its picture."""
    steps: frozenset[str] = frozenset({"shf", "np", "ffx"})
    """It applies where the spec has a step of one of these kinds."""

    def unfit(self, subject: Subject) -> str:
        """Return why it does not apply to `subject`; empty when it does."""
        if subject.protection not in self.protections:
            return f"it applies to {', '.join(sorted(self.protections))}"
        if not self.steps & subject.kinds:
            return f"it applies to transforms with {' or '.join(sorted(self.steps))}, and this one is {subject.spec}"
        return ""


ATTACKS: Final[dict[str, Attack]] = {
    attack.name: attack
    for attack in (
        Attack(
            name=keyless.NAME,
            title="No key, wrong key",
            explained="Somebody copied the model and just runs it: on ordinary images, or with keys made up at random.",
            run=keyless.run,
            share=1.5,
        ),
        Attack(
            name=near.NAME,
            title="Keys that are nearly right",
            explained="Part of the key is wrong. If quality falls slowly with that part, a search has a slope to "
            "climb, however many keys there are.",
            axis="share of the key that is wrong",
            run=near.run,
            share=0.5,
        ),
        Attack(
            name="random-search",
            title="Trying many random keys",
            explained="The thief tries random keys on a few labelled images and keeps the one that works best.",
            run=searching.run_random,
            share=1.5,
        ),
        Attack(
            name="greedy-search",
            title="Improving a key piece by piece",
            explained="Starting from a random key the thief swaps two entries at a time and keeps what helps: once as "
            "published, judged by right answers, and once judged by the model's own confidence (its loss), which says "
            "more.",
            run=searching.run_greedy,
            share=3,
        ),
        Attack(
            name="mask-search",
            title="Finding inverted pixels one by one",
            explained="The thief switches the inversion of one pixel position at a time and keeps what helps.",
            run=searching.run_mask,
            share=1,
            steps=frozenset({"np"}),
        ),
        Attack(
            name=adapters.NAME,
            title="An adapter in front of the model",
            explained="The thief leaves the model as it is and trains a small layer in front of it, on a few labelled "
            "images, until ordinary images work.",
            axis="labelled images",
            run=adapters.run,
            share=3,
        ),
        Attack(
            name=fine_tuning.NAME,
            title="Training the model further",
            explained="The thief has a part of the training data and trains the stolen model on ordinary images. "
            "Beside it: the same network trained from nothing with the same images, steps and settings. Only the "
            "difference is what the stolen file was worth.",
            axis="share of the training data",
            run=fine_tuning.run,
            share=4,
        ),
        Attack(
            name=known_pairs.NAME,
            title="One image before and after",
            explained="Somebody sees one image both as it was and as it was sent, for instance in the memory of a "
            "licensed machine, and reads the transform off. No label is needed and nothing is searched.",
            axis="pairs of images",
            run=known_pairs.run,
            share=0.5,
        ),
    )
}
"""Every attack by name, in the order of the report."""


def chosen_attacks(names: Sequence[str] | None) -> list[Attack]:
    """Return the attacks called `names`, or all, in the order of the table. Raises `NotFound` for an unknown name."""
    if names is None:
        return list(ATTACKS.values())
    for name in names:
        if name not in ATTACKS:
            raise NotFound(f"there is no attack {name!r}", remedy=f"Choose among: {', '.join(ATTACKS)}.")
    return [attack for attack in ATTACKS.values() if attack.name in names]
