"""Averaging: the mean of what was sent minus the mean of what it shows, and that added to any image.

Against one pattern for all images a single pair is enough. Against a pattern whose sign follows the image the mean
tends to nothing, and blown up to full strength it is right for the images, block by block, that happen to call for it.
"""

import functools
from typing import Final

import torch
from torch import Tensor

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.inversion import added
from tessera.protect.audit.measure import reached
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject, some
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform

NAME: Final = "averaging"
PAIRS: Final = (1, 10, 100, 1000)
"""Images seen before and after."""


def run(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Average over each number of pairs; add the mean as it is, and at full strength by its signs; keep the better."""
    del budget  # eight measurements are few enough for all of them
    meter.expect(len(PAIRS))
    model = subject.victim().to(device)
    lock = TorchTransform(Transform(subject.spec, subject.key, *subject.shape), device)
    rows = []
    for count in PAIRS:
        own = some(sample.attacker, count, seed)
        if len(own) < count:
            rows.append(_row(count, None, f"not run: the attacker's part holds {len(own)} images"))
            continue
        clean = own.images.to(device)
        scores = {
            words: reached(model, sample.held_out, device, functools.partial(added, perturbation=change))
            for words, change in _changes(lock(clean), clean, subject).items()
        }
        words, score = max(scores.items(), key=lambda pair: pair[1])
        rows.append(_row(count, score, words))
        meter.did()
    return AttackResult(name=NAME, rows=tuple(rows))


def _changes(sent: Tensor, clean: Tensor, subject: Subject) -> dict[str, Tensor]:
    """Return what an averager adds to images: (C, H, W) float32, by what it is in words."""
    step, (channels, height, width) = subject.spec.steps[0], subject.shape
    mean = (sent.to(torch.float32) - clean.to(torch.float32)).mean(0)
    blocks = mean.reshape(channels, height // step.block, step.block, width // step.block, step.block)
    tile = blocks.mean((1, 3)).repeat(1, height // step.block, width // step.block)
    return {
        "the mean as it is": mean,
        "the mean's signs at full strength": mean.sign() * step.epsilon,
        "the signs of the mean over blocks at full strength": tile.sign() * step.epsilon,
    }


def _row(count: int, score: float | None, note: str) -> Row:
    label = "1 pair of images" if count == 1 else f"{count} pairs of images"
    return Row(label=label, score=score, at=count, images=0, work=count, unit="pairs", note=note)
