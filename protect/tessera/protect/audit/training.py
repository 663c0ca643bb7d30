"""The one training loop of all attackers: Adam, a rate that falls along a cosine, batches drawn from what they have."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tessera.protect.audit.budget import Meter
from tessera.protect.audit.measure import TRAINING_BATCH, loss_of
from tessera.protect.augment import Augmentation, PairAugmentation
from tessera.protect.data import SegmentationDataset
from tessera.protect.evaluate import LabelledImages

_BATCH_VALUES = 2**21
"""Most input values of one batch: large images go fewer at a time."""


def fit(
    model: nn.Module,
    trained: Sequence[nn.Parameter],
    data: LabelledImages,
    *,
    steps: int,
    rate: float,
    seed: int,
    meter: Meter,
    device: torch.device,
    training: bool,
    augment: Augmentation | PairAugmentation | None = None,
    exactly: int | None = None,
    watch: Callable[[int], None] | None = None,
) -> int:
    """Train the weights `trained` of `model` on `data` for `steps` batches; return how many there was time for.

    `training` is the mode of batch norms and dropout. The cosine is over the planned steps; where time cuts it short,
    the rate is still high. With `exactly`, so many of the steps are done however long they take. `watch` is told how
    many are done after each, and leaves the model's mode as it was.
    """
    learner = torch.optim.Adam(trained, lr=rate)
    draws = torch.Generator().manual_seed(seed)
    images, labels = data.images.to(device), data.labels.to(device)
    batch = max(2, min(TRAINING_BATCH, len(data), _BATCH_VALUES // max(1, data.images[0].numel())))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from it
        model.train(training)
        for step in range(steps):
            if meter.over if exactly is None else step == exactly:
                return step
            for group in learner.param_groups:
                group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            chosen = torch.randint(len(data), (batch,), generator=draws)
            pixels, theirs = _augmented(images[chosen], labels[chosen], data, augment, draws)
            learner.zero_grad()
            torch.autograd.backward(loss_of(model(pixels), theirs, data).mean())
            learner.step()
            meter.did()
            if watch is not None:
                watch(step + 1)
    return steps


def _augmented(
    images: Tensor,
    labels: Tensor,
    data: LabelledImages,
    augment: Augmentation | PairAugmentation | None,
    draws: torch.Generator,
) -> tuple[Tensor, Tensor]:
    if augment is None:
        return images, labels
    if isinstance(data, SegmentationDataset):
        return cast(PairAugmentation, augment)(images, labels, draws)
    return cast(Augmentation, augment)(images, draws), labels
