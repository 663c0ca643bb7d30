"""Training with keyed inputs: augment, transform under the key, learn; all on the device.

A run is determined by its task, transform, key, seed, device and number of threads: each epoch draws its order,
augmentation and dropout from a seed of its own, so a resumed run ends with the same bits as one without a break.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tessera.keystore.errors import ApiMisuse, Conflict
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.protect.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tessera.protect.evaluate import Accuracy, accuracy, evaluate, evaluation_keys
from tessera.protect.models import PixelModel
from tessera.protect.task import Recipe, TrainingTask
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform, TransformSpec

REPORT_FORMAT: Final = "tessera-training-report/1"
WRONG_KEYS: Final = 20

_WARM_UP: Final = 0.15
"""Share of the steps over which the learning rate rises."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands after an epoch; `epoch` counts from 1."""

    epoch: int
    epochs: int
    loss: float
    test_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """What a run gives: the model, in eval mode on the CPU and taking uint8 pixels, and what was measured on it.

    `report` is JSON; `accuracy` is the same measurement unrounded. The key itself is not kept.
    """

    name: str
    model: PixelModel
    shape: tuple[int, int, int]
    transform: TransformSpec | None
    input_key_id: str | None
    max_batch: int
    accuracy: Accuracy
    report: dict[str, Any]


def train(
    task: Recipe | TrainingTask,
    *,
    transform: TransformSpec | None,
    key: InputKey | None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    epochs: int | None = None,
    wrong_keys: int = WRONG_KEYS,
    progress: Callable[[Progress], None] | None = None,
    checkpoint_dir: Path | None = None,
) -> Trained:
    """Train `task` on inputs transformed under `key`, or on plain ones when both are None, and measure the result.

    `progress` is called after each epoch. With `checkpoint_dir` the state is saved there after each epoch, and a run
    with the same settings goes on from it. Raises `ApiMisuse` when only one of transform and key is given,
    `TransformError` when the spec does not fit the images, `MissingExtra` when the recipe's data needs a library,
    and what `load_checkpoint` raises.
    """
    plan = task.task() if isinstance(task, Recipe) else task
    if (transform is None) != (key is None):
        raise ApiMisuse("a transform needs an input key, and a key a transform", remedy="Give both, or neither.")
    started_s = time.monotonic()
    run = _Run(plan, transform, key, seed, torch.device(device), plan.epochs if epochs is None else epochs)
    with torch.random.fork_rng(), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        history = run.all_epochs(progress, checkpoint_dir)
    found = evaluate(
        run.model,
        plan.data.test,
        transform=transform,
        key=key,
        wrong_keys=evaluation_keys(wrong_keys, seed),
        device=run.device,
    )
    report = run.describe() | {
        "accuracy": found.to_json(),
        "history": history,
        "seconds": round(time.monotonic() - started_s, 2),
        "torch_version": torch.__version__,
    }
    key_id = None if key is None else input_key_id(key)
    model = run.model.to("cpu").eval()
    return Trained(plan.name, model, plan.shape, transform, key_id, plan.max_batch, found, report)


class _Run:
    """One run's model, optimiser and data on the device."""

    def __init__(
        self,
        task: TrainingTask,
        transform: TransformSpec | None,
        key: InputKey | None,
        seed: int,
        device: torch.device,
        epochs: int,
    ) -> None:
        if epochs < 1 or not 0 <= seed < 2**32:
            raise ApiMisuse("epochs are at least 1 and a seed lies in 0 to 2**32 - 1")
        self.task, self.transform, self.seed, self.device, self.epochs = task, transform, seed, device, epochs
        self.key_id = None if key is None else input_key_id(key)
        self.lock: TorchTransform | None = None
        if transform is not None and key is not None:
            self.lock = TorchTransform(Transform(transform, key, *task.shape), device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = PixelModel(task.network(), task.mean, task.std).to(device)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=task.learning_rate, weight_decay=task.weight_decay
        )
        self.images, self.labels = task.data.train.images.to(device), task.data.train.labels.to(device)

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine the run, fit for a report."""
        return {
            "format": REPORT_FORMAT,
            "task": self.task.name,
            "transform": None if self.transform is None else str(self.transform),
            "input_key_id": self.key_id,
            "seed": self.seed,
            "epochs": self.epochs,
            "batch": self.task.batch,
            "learning_rate": self.task.learning_rate,
            "weight_decay": self.task.weight_decay,
            "device": str(self.device),
            "train_samples": len(self.task.data.train),
            "test_samples": len(self.task.data.test),
        }

    def all_epochs(
        self, progress: Callable[[Progress], None] | None, checkpoint_dir: Path | None
    ) -> list[dict[str, float]]:
        """Train the epochs that no checkpoint covers and return the history of all."""
        settings = repr(sorted(self.describe().items()))
        history: list[dict[str, float]] = []
        saved = load_checkpoint(checkpoint_dir, run=settings) if checkpoint_dir is not None else None
        if saved is not None:
            history = saved.history
            self._restore(saved)
        started_s = time.monotonic()
        for epoch in range(len(history), self.epochs):
            history.append(self._epoch(epoch))
            if checkpoint_dir is not None:
                state = (self.model.state_dict(), self.optimiser.state_dict())
                save_checkpoint(checkpoint_dir, Checkpoint(settings, epoch + 1, *state, history))
            if progress is not None:
                last = history[-1]
                spent_s = time.monotonic() - started_s
                progress(Progress(epoch + 1, self.epochs, last["loss"], last["test_accuracy"], spent_s))
        return history

    def _restore(self, saved: Checkpoint) -> None:
        try:
            self.model.load_state_dict(saved.model)
            self.optimiser.load_state_dict(saved.optimiser)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Conflict(
                "the checkpoint belongs to another network", remedy="Choose another folder for this run's checkpoints."
            ) from error

    def _epoch(self, epoch: int) -> dict[str, float]:
        draws = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        torch.manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images), generator=draws).to(self.device)
        # A last batch of one sample has no variance, which batch normalisation cannot train on.
        size = self.task.batch
        batches = [order[at : at + size] for at in range(0, len(order), size) if size == 1 or at + 1 < len(order)]
        self.model.train()
        total = torch.zeros((), device=self.device)
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        for number, chosen in enumerate(batches):
            self._set_learning_rate((epoch + number / len(batches)) / self.epochs)
            loss, hits = self._step(self._inputs(chosen, draws), self.labels[chosen])
            total += loss * len(chosen)
            right += hits
        seen = sum(len(chosen) for chosen in batches)
        tested = accuracy(self.model, self.task.data.test, self.device, self.lock)
        return {
            "loss": round(float(total) / seen, 6),
            "train_accuracy": round(int(right) / seen, 4),
            "test_accuracy": round(tested, 4),
        }

    def _inputs(self, chosen: Tensor, draws: torch.Generator) -> Tensor:
        images = self.images[chosen]
        if self.task.augment is not None:
            images = self.task.augment(images, draws)
        return images if self.lock is None else self.lock(images)

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimiser.step()
        return loss.detach(), (logits.argmax(dim=1) == labels).sum()

    def _set_learning_rate(self, done: float) -> None:
        """Rise from a tenth to the full rate over the warm-up, then fall to zero along a cosine; `done` is in 0 … 1."""
        if done < _WARM_UP:
            factor = 0.1 + 0.9 * done / _WARM_UP
        else:
            factor = 0.5 * (1.0 + math.cos(math.pi * (done - _WARM_UP) / (1.0 - _WARM_UP)))
        for group in self.optimiser.param_groups:
            group["lr"] = self.task.learning_rate * factor
