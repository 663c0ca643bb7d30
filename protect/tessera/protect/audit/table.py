"""Every attack there is, in one explicit table: what it does in plain words, and what it applies to.

A further attack is a module with a function of this form and an entry here; report and progress need no change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch

from tessera.keystore.errors import NotFound
from tessera.protect.audit import (
    adapters,
    ambiguity,
    averaging,
    fine_tuning,
    first_layer,
    inversion,
    keyless,
    known_pairs,
    near,
    pattern_pairs,
    pruning,
    searching,
    substitution,
    tier_keys,
    tier_localisation,
    tier_retraining,
    tier_use,
)
from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.result import AttackResult
from tessera.protect.audit.subject import Protection, Sample, Subject

KEYED: Final[frozenset[Protection]] = frozenset({"keyed-input"})
TIERS: Final[frozenset[Protection]] = frozenset({"tiers"})
BLOCKWISE: Final = frozenset({"shf", "np", "ffx"})
FAINT: Final = frozenset({"isnn"})


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
    protections: frozenset[Protection] = KEYED
    """It applies where the model has one of these."""
    axis: str = ""
    """What the `at` of its rows counts, below its picture."""
    steps: frozenset[str] = BLOCKWISE
    """It applies where the spec has a step of one of these kinds."""

    def fits(self, subject: Subject) -> bool:
        """Tell whether it attacks something that protects `subject`."""
        return bool(self.protections & subject.protections)

    def unfit(self, subject: Subject) -> str:
        """Return why it does not apply to `subject`; empty when it does."""
        if not self.fits(subject):
            return f"it applies to models protected by {' or '.join(sorted(self.protections))}"
        if "keyed-input" in self.protections and not self.steps & subject.kinds:
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
            steps=BLOCKWISE | FAINT,
        ),
        Attack(
            name=near.NAME,
            title="Keys that are nearly right",
            explained="Part of the key is wrong. If quality falls slowly with that part, a search has a slope to "
            "climb, however many keys there are.",
            axis="share of the key that is wrong",
            run=near.run,
            share=0.5,
            steps=BLOCKWISE | FAINT,
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
            name=first_layer.NAME,
            title="Reading the key in the first layer",
            explained="The thief tries nothing out. A layer that takes whole keyed blocks holds how their values go "
            "together, and neighbours in a picture are alike: compared with ordinary pictures of the same kind, "
            "without labels, that tells which place is which and what is inverted. One that looks values up in "
            "tables has them in the order of what they stand for.",
            run=first_layer.run,
            share=1,
        ),
        Attack(
            name=adapters.NAME,
            title="An adapter in front of the model",
            explained="The thief leaves the model as it is and trains a small layer in front of it, on a few labelled "
            "images, until ordinary images work.",
            axis="labelled images",
            run=adapters.run,
            share=3,
            steps=BLOCKWISE | FAINT,
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
            steps=BLOCKWISE | FAINT,
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
        Attack(
            name=substitution.NAME,
            title="Reading tables off images that pass by",
            explained="Somebody sees transformed images pass, as the operator of a node does, and has no label and no "
            "image before the transform. How often each pixel position shows each value gives away which positions are "
            "replaced, and what stands beside a value says what it stands for. Half of the attacker's images are taken "
            "for those that pass, the others for ordinary ones found elsewhere.",
            axis="transformed images seen",
            run=substitution.run,
            share=1,
            steps=frozenset({"ffx"}),
        ),
        Attack(
            name=inversion.NAME,
            title="Finding a perturbation that unlocks",
            explained="The thief follows the model's own gradient to one small change that is added to every image, on "
            "a few labelled ones, and needs no key.",
            axis="labelled images",
            run=inversion.run,
            share=3,
            steps=FAINT,
        ),
        Attack(
            name=averaging.NAME,
            title="Averaging away what images show",
            explained="Somebody sees images before and after, takes the mean difference, and adds it to any image, as "
            "it is or at full strength.",
            axis="pairs of images",
            run=averaging.run,
            share=0.5,
            steps=FAINT,
        ),
        Attack(
            name=pattern_pairs.NAME,
            title="Images before and after, read cleverly",
            explained="Somebody sees images both as they were and as they were sent, takes the pattern from their "
            "difference, and fits what its sign depends on. No label is needed and nothing is searched.",
            axis="pairs of images",
            run=pattern_pairs.run,
            share=0.3,
            steps=FAINT,
        ),
        Attack(
            name=pruning.NAME,
            title="Pruning, then training further",
            explained="The thief cuts off the smallest weights, in the hope that the lock sits in them, and trains the "
            "rest on ordinary images.",
            axis="share of the weights that is cut off",
            run=pruning.run,
            share=2,
            steps=FAINT,
        ),
        Attack(
            name=ambiguity.NAME,
            title="Claiming the model with another key and record",
            explained="Somebody claims the model as theirs: they must show a key and a copyright record that unlock "
            "it, and can only try them one after the other.",
            run=ambiguity.run,
            share=1,
            steps=FAINT,
        ),
        Attack(
            name=tier_use.NAME,
            title="What each tier answers",
            explained="The weights of the file with every decoy in place, and of each tier, as they are. Whoever holds "
            "a tier has the right input key as well, if the model has one: this is about the withheld weights alone.",
            axis="tier; 0 is the file alone",
            run=tier_use.run,
            share=0.3,
            protections=TIERS,
        ),
        Attack(
            name=tier_localisation.NAME,
            title="Finding the encrypted weights",
            explained="The thief has the weights of the file, or of a lower tier, and computes a number for each "
            "kernel that is larger for what looks like a decoy. An AUC of 0.5 says that the number tells nothing, 1 "
            "that it finds them all, and 0 as much as 1. The thief is told the layers.",
            run=tier_localisation.run,
            share=0.3,
            protections=TIERS,
        ),
        Attack(
            name=tier_retraining.NAME,
            title="Training a lower tier up",
            explained="The thief has a few labelled images and trains what the file or a lower tier gives: all "
            "weights, or only the layers that hold encrypted ones. Beside it: the same network trained from nothing "
            "with the same images and steps.",
            axis="labelled images",
            run=tier_retraining.run,
            share=6,
            protections=TIERS,
        ),
        Attack(
            name=tier_keys.NAME,
            title="Using a lower tier's key on a higher tier",
            explained="A buyer of a lower tier has that tier's key and the whole sealed file, and tries to open the "
            "tiers above: with the key itself, with keys derived from it, past the reader's own checks, and by putting "
            "one tier's part in another's place. Every attempt must end in an authentication failure.",
            run=tier_keys.run,
            share=0.3,
            protections=TIERS,
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
