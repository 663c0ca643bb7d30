"""How good a guess is: on held-out images for the report, and on the attacker's own for a search."""

from collections.abc import Callable, Sequence
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from tessera.protect.audit.guesses import Guess, GuessTransform
from tessera.protect.audit.subject import Subject
from tessera.protect.data import SegmentationDataset
from tessera.protect.evaluate import LabelledImages, score

BATCH_VALUES: Final = 2**20
"""Most input values of one batch of a search."""
TRAINING_BATCH: Final = 64
NO_LABEL: Final = -100
"""What a pixel that is not counted has for a label in the loss: torch's own default."""


class Fronted(nn.Module):
    """A model behind something that changes its images; `front` None leaves them plain."""

    def __init__(self, front: Callable[[Tensor], Tensor] | None, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._front = front

    def forward(self, image: Tensor) -> Tensor:
        """Return what the model gives for the changed images."""
        result: Tensor = self.model(image if self._front is None else self._front(image))
        return result


def reached(
    model: nn.Module, data: LabelledImages, device: torch.device, front: Callable[[Tensor], Tensor] | None = None
) -> float:
    """Return the held-out measure of `model` behind `front`, 0 … 1. Sets eval mode."""
    return score(Fronted(front, model), data, device, None)


def loss_of(logits: Tensor, data_labels: Tensor, data: LabelledImages) -> Tensor:
    """Return the cross-entropy of each image, (N,); of a segmentation the mean over its counted pixels."""
    labels = data_labels.long()
    if isinstance(data, SegmentationDataset):
        labels = torch.where(labels < data.classes, labels, NO_LABEL)
        each = F.cross_entropy(logits, labels, reduction="none", ignore_index=NO_LABEL)
        counted = (labels != NO_LABEL).flatten(1).sum(1).clamp(min=1)
        return each.flatten(1).sum(1) / counted
    return F.cross_entropy(logits, labels, reduction="none")


def doubt_of(logits: Tensor, data_labels: Tensor, data: LabelledImages) -> Tensor:
    """Return the probability that the model does not give to the right answer, 0 … 1, (N,); as a mean over pixels.

    What searches climb by. It is bounded: under cross-entropy the few images that a half-right key gets confidently
    wrong drown all others, and searches end in the nearest hollow.
    """
    labels = data_labels.long()
    counted = (labels < logits.shape[1]).float()
    safe = labels.clamp(max=logits.shape[1] - 1).unsqueeze(1)
    doubt = (1.0 - F.softmax(logits, dim=1).gather(1, safe).squeeze(1)) * counted
    if not isinstance(data, SegmentationDataset):
        return doubt
    return doubt.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)


def chance(sample_labels: LabelledImages, held_out: LabelledImages) -> float:
    """Return what always giving the attacker's most frequent class reaches on `held_out`: the floor of every attack."""
    if isinstance(held_out, SegmentationDataset):
        counts = torch.bincount(sample_labels.labels.reshape(-1), minlength=256)[: held_out.classes]
        present = torch.bincount(held_out.labels.reshape(-1), minlength=256)[: held_out.classes].double()
        share = present[int(counts.argmax())] / present.sum().clamp(min=1)
        return float(share / (present > 0).sum().clamp(min=1))
    usual = int(torch.bincount(sample_labels.labels).argmax())
    return max(float((held_out.labels == usual).double().mean()), 1.0 / held_out.classes)


class Compared:
    """Compares guesses on the attacker's images: several at once, each by mean doubt and by share of right answers."""

    def __init__(self, subject: Subject, model: nn.Module, data: LabelledImages, device: torch.device) -> None:
        self._shape, self._device, self._data = subject.shape, device, data
        self._model = model.eval()
        self._images, self._labels = data.images.to(device), data.labels.to(device)
        size = max(1, data.images[0].numel())
        self.width = max(1, BATCH_VALUES // (size * len(data)))
        """How many guesses are worth comparing at once."""
        self._images_at_once = max(1, BATCH_VALUES // size)

    def losses(self, guesses: Sequence[Guess]) -> list[float]:
        """Return the mean `doubt_of` each guess, which searches take for the loss."""
        return [loss for loss, _ in self.both(guesses)]

    @torch.no_grad()
    def both(self, guesses: Sequence[Guess]) -> list[tuple[float, float]]:
        """Return (mean doubt, share of right answers) of each guess; of a segmentation the share of its pixels."""
        found: list[tuple[float, float]] = []
        for start in range(0, len(guesses), self.width):
            found += self._at_once(guesses[start : start + self.width])
        return found

    def _at_once(self, guesses: Sequence[Guess]) -> list[tuple[float, float]]:
        inputs = torch.cat([GuessTransform(guess, self._shape, self._device)(self._images) for guess in guesses])
        labels = self._labels.repeat(len(guesses), *([1] * (self._labels.ndim - 1)))
        parts = zip(torch.split(inputs, self._images_at_once), torch.split(labels, self._images_at_once), strict=True)
        measured = [self._measured(some, theirs) for some, theirs in parts]
        loss, right = (torch.cat(values).reshape(len(guesses), -1).mean(1) for values in zip(*measured, strict=True))
        return list(zip(loss.tolist(), right.tolist(), strict=True))

    def _measured(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._model(images)
        right = (logits.argmax(1) == labels.long()).double()
        counted = (labels.long() < logits.shape[1]).double()
        share = (right * counted).reshape(len(images), -1).sum(1) / counted.reshape(len(images), -1).sum(1).clamp(min=1)
        return doubt_of(logits, labels, self._data).double(), share
