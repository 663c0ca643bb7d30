"""What training lowers and how far it got: the loss of a task and the share of right answers."""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tessera.keystore.errors import ApiMisuse
from tessera.protect.data import SegmentationDataset
from tessera.protect.task import TrainingTask

_NEVER = -100
"""An ignored label that no data holds; torch's own default."""


class Objective:
    """Cross-entropy of a task's logits, with its smoothing, class weights and ignored label."""

    def __init__(self, task: TrainingTask, device: torch.device) -> None:
        weights = task.class_weights
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device)
        self.smoothing, self.classes, self.name = task.label_smoothing, task.class_count, task.name
        train = task.data.train
        ignored = train.ignore if isinstance(train, SegmentationDataset) else None
        self.ignored = _NEVER if ignored is None else ignored

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over the labels that are not ignored: a float32 scalar.

        `logits` are (N, classes, …) and `labels` (N, …) of any integer dtype. Raises `ApiMisuse` for other shapes.
        """
        if logits.ndim != labels.ndim + 1 or logits.shape[0] != labels.shape[0] or logits.shape[2:] != labels.shape[1:]:
            raise ApiMisuse(
                f"the network gives {tuple(logits.shape)} for labels of {tuple(labels.shape)}",
                remedy="Let it give one number per class, first the batch and then the classes.",
            )
        if logits.shape[1] < self.classes:
            raise ApiMisuse(
                f"the network tells {logits.shape[1]} classes apart and {self.name} has {self.classes}",
                remedy=f"Make the network with {self.classes} classes.",
            )
        return F.cross_entropy(
            logits.float(),
            labels.long(),
            weight=self.weights,
            ignore_index=self.ignored,
            label_smoothing=self.smoothing,
        )

    def share_right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the share of the labels that are not ignored for which the largest logit is the right one."""
        counted = labels != self.ignored
        right = (logits.detach().argmax(dim=1) == labels) & counted
        return right.sum() / counted.sum().clamp(min=1)
