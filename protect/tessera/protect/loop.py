"""One training run: model, optimiser and data on the device, epoch after epoch, saved and resumed."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse, Conflict, Refused
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.protect.augment import Augmentation, PairAugmentation
from tessera.protect.checkpoint import Checkpoint, load_checkpoint, restore_weights, save_checkpoint
from tessera.protect.evaluate import BatchTransform, Metric, metric_of, score
from tessera.protect.objective import Objective
from tessera.protect.optimise import MovingAverage, Stepper
from tessera.protect.task import PREPARE_SAMPLES, TrainingTask
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform, TransformSpec

PULSE_S: Final = 0.5
"""Seconds between two reports within an epoch."""

_EPOCH_SEEDS = 1_000_003
"""Epoch e of seed s draws from s * this + e, so that runs of different seeds share no draws."""


class Diverged(Refused):
    """The training loss is no number any more; nothing that was trained so far is worth keeping."""

    default_reason = "training-diverged"


@dataclass(frozen=True)
class Pulse:
    """Where a run stands within an epoch; `epoch` counts from 1, `done` is the share of the whole run, 0 … 1.

    `loss` is that of the last step, `remaining_s` what is left at the speed so far, measuring included.
    """

    epoch: int
    epochs: int
    done: float
    loss: float
    samples_per_s: float
    remaining_s: float


@dataclass(frozen=True)
class Progress:
    """Where a run stands after an epoch; `epoch` counts from 1.

    `test_score` is the measure `metric` on the test set with the right key, 0 … 1; `samples_per_s` counts training
    only, `seconds` are those of this process.
    """

    epoch: int
    epochs: int
    loss: float
    test_score: float
    metric: Metric
    seconds: float
    samples_per_s: float


Watcher = Callable[[Progress], None]
PulseWatcher = Callable[[Pulse], None]


class Run:
    """One run's state on the device. Raises `ApiMisuse`, `TransformError` or what the network raises when made."""

    def __init__(
        self,
        task: TrainingTask,
        transform: TransformSpec | None,
        key: InputKey | None,
        *,
        seed: int,
        device: torch.device,
        epochs: int,
    ) -> None:
        if epochs < 1 or not 0 <= seed < 2**32:
            raise ApiMisuse("epochs are at least 1 and a seed lies in 0 to 2**32 - 1")
        self.task, self.transform, self.seed, self.device, self.epochs = task, transform, seed, device, epochs
        self.key_id = None if key is None else input_key_id(key)
        self.lock = self._lock(key)
        self.images, self.labels = task.data.train.images.to(device), task.data.train.labels.to(device)
        self.model = self._fresh_model()
        self.objective, self.stepper = Objective(task, device), Stepper(task, self.model, device)
        self.average = None if task.ema is None else MovingAverage(self.model, task.ema)
        self._forward: nn.Module = cast(nn.Module, torch.compile(self.model)) if task.compile else self.model
        self._pulses: PulseWatcher | None = None
        self._started_s = time.monotonic()

    def _lock(self, key: InputKey | None) -> BatchTransform | None:
        """Return what the right key does to a batch on the device."""
        if self.transform is None or key is None:
            return None
        return TorchTransform(Transform(self.transform, key, *self.task.shape), self.device)

    def _fresh_model(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = self.task.model(self.transform)
            if self.task.prepare is not None:
                stride = math.ceil(len(self.images) / PREPARE_SAMPLES)
                shown = self.images[::stride]
                self.task.prepare(model, (shown if self.lock is None else self.lock(shown)).cpu())
        layout = torch.channels_last if self.task.channels_last else torch.contiguous_format
        placed: nn.Module = model.to(self.device).to(memory_format=layout)  # type: ignore[call-overload]  # a gap in stubs
        return placed

    @property
    def result(self) -> nn.Module:
        """The model that is measured and kept: the moving average where the run has one."""
        return self.model if self.average is None else self.average.model

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine the run, fit for a report."""
        task = self.task
        return {
            "task": task.name,
            "kind": task.kind,
            "transform": None if self.transform is None else str(self.transform),
            "input_key_id": self.key_id,
            "seed": self.seed,
            "epochs": self.epochs,
            "batch": task.batch,
            "optimiser": task.optimiser,
            "learning_rate": task.learning_rate,
            "momentum": None if task.optimiser == "adamw" else task.momentum,
            "muon_rate": task.muon_rate if task.optimiser == "muon" else None,
            "weight_decay": task.weight_decay,
            "decay_vectors": task.decay_vectors,
            "schedule": task.schedule,
            "warm_up": task.warm_up,
            "label_smoothing": task.label_smoothing,
            "class_weights": None if task.class_weights is None else [float(weight) for weight in task.class_weights],
            "clip_norm": task.clip_norm,
            "ema": task.ema,
            "precision": task.precision,
            "compile": task.compile,
            "channels_last": task.channels_last,
            "device": str(self.device),
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "train_samples": len(task.data.train),
            "test_samples": len(task.data.test),
            "mean": [float(value) for value in task.mean],
            "std": [float(value) for value in task.std],
        }

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree in: the settings, and the data by its digest."""
        images_and_labels = [part for half in self.task.data for part in (half.images, half.labels)]
        return self.describe() | {"data_sha256": digest_of(*images_and_labels)}

    def all_epochs(
        self, progress: Watcher | None, pulses: PulseWatcher | None, checkpoint_dir: Path | None
    ) -> list[dict[str, float]]:
        """Train the epochs that no checkpoint covers and return the history of all. Raises `Diverged`."""
        self._pulses = pulses
        settings = {} if checkpoint_dir is None else self.identity()
        history: list[dict[str, float]] = []
        saved = load_checkpoint(checkpoint_dir, run=settings) if checkpoint_dir is not None else None
        if saved is not None and checkpoint_dir is not None:
            history = saved.history
            self._restore(saved, checkpoint_dir)
        self._started_s = time.monotonic()
        for epoch in range(len(history), self.epochs):
            entry, samples_per_s = self._epoch(epoch, first=len(history) if saved else 0)
            history.append(entry)
            if checkpoint_dir is not None:
                save_checkpoint(checkpoint_dir, self._checkpoint(settings, history))
            if progress is not None:
                progress(self._progress(history, samples_per_s))
        return history

    def _progress(self, history: list[dict[str, float]], samples_per_s: float) -> Progress:
        metric, last = metric_of(self.task.data.test), history[-1]
        spent_s = time.monotonic() - self._started_s
        return Progress(len(history), self.epochs, last["loss"], last[f"test_{metric}"], metric, spent_s, samples_per_s)

    def _checkpoint(self, settings: dict[str, Any], history: list[dict[str, float]]) -> Checkpoint:
        return Checkpoint(
            run=settings,
            epoch=len(history),
            model=self.model.state_dict(),
            optimiser=self.stepper.optimiser.state_dict(),
            scaler=self.stepper.scaler.state_dict(),
            average=None if self.average is None else self.average.model.state_dict(),
            history=history,
            extra=self._extra(),
        )

    def _extra(self) -> dict[str, Any]:
        """Return what changes as this run trains and is neither model nor optimiser, for `_restore_extra`."""
        return {}

    def _restore_extra(self, saved: dict[str, Any]) -> None:
        """Take back what `_extra` gave. Raises the errors that `_restore` catches."""

    def _restore(self, saved: Checkpoint, folder: Path) -> None:
        restore_weights(self.model, saved.model, folder)
        if self.average is not None and saved.average is not None:
            restore_weights(self.average.model, saved.average, folder)
        try:
            self.stepper.optimiser.load_state_dict(saved.optimiser)
            self.stepper.scaler.load_state_dict(saved.scaler)
            self._restore_extra(saved.extra)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Conflict(
                f"the optimiser's state in {folder} belongs to another network",
                remedy="Choose another folder for this run's checkpoints.",
            ) from error

    def _epoch(self, epoch: int, first: int) -> tuple[dict[str, float], float]:
        """Train one epoch and return its history entry and samples per second; `first` is this process's first."""
        draws = torch.Generator().manual_seed(self.seed * _EPOCH_SEEDS + epoch)
        torch.manual_seed(self.seed * _EPOCH_SEEDS + epoch)
        batches = self._batches(draws)
        self.model.train()
        total, right = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        seen, started_s, told_s = 0, time.monotonic(), time.monotonic()
        for number, chosen in enumerate(batches):
            self.stepper.set_rate((epoch + number / len(batches)) / self.epochs)
            loss, share = self._learn(chosen, draws)
            if self.average is not None:
                self.average.update(self.model, epoch * len(batches) + number + 1)
            total += loss * len(chosen)
            right += share * len(chosen)
            seen += len(chosen)
            if self._pulses is not None and time.monotonic() - told_s >= PULSE_S:
                told_s = time.monotonic()
                share_done = (epoch + (number + 1) / len(batches)) / self.epochs
                self._pulse(epoch, first, share_done, float(loss), seen / (told_s - started_s))
        mean_loss = float(total) / seen
        spent_s = time.monotonic() - started_s
        if not math.isfinite(mean_loss):
            raise self._diverged(epoch)
        entry = {"loss": round(mean_loss, 6), "train_accuracy": round(float(right) / seen, 4)}
        metric = metric_of(self.task.data.test)
        entry[f"test_{metric}"] = round(score(self.result, self.task.data.test, self.device, self.lock), 4)
        return entry, seen / max(spent_s, 1e-9)

    def _batches(self, draws: torch.Generator) -> list[Tensor]:
        order = torch.randperm(len(self.images), generator=draws).to(self.device)
        # A last batch of one sample has no variance, which batch normalisation cannot train on.
        size = self.task.batch
        return [order[at : at + size] for at in range(0, len(order), size) if size == 1 or at + 1 < len(order)]

    def _pulse(self, epoch: int, first: int, done: float, loss: float, samples_per_s: float) -> None:
        assert self._pulses is not None
        before = first / self.epochs
        remaining_s = (time.monotonic() - self._started_s) * (1.0 - done) / max(done - before, 1e-9)
        self._pulses(Pulse(epoch + 1, self.epochs, done, loss, samples_per_s, remaining_s))

    def _diverged(self, epoch: int) -> Diverged:
        halved = self.task.learning_rate / 2
        return Diverged(
            f"the training loss of epoch {epoch + 1} of {self.epochs} is not a finite number",
            remedy=f"Lower the learning rate (--lr {halved:g}; it was {self.task.learning_rate:g}), "
            "train in fp32, or set clip_norm in the task.",
        )

    def _learn(self, chosen: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Take one step on the training images numbered `chosen`; return its loss and its share of right answers."""
        images, labels = self._augmented(chosen, draws)
        return self._step(images if self.lock is None else self.lock(images), labels)

    def _augmented(self, chosen: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = self.images[chosen], self.labels[chosen]
        if self.task.augment is not None and self.task.kind == "segmentation":
            return cast(PairAugmentation, self.task.augment)(images, labels, draws)
        if self.task.augment is not None:
            images = cast(Augmentation, self.task.augment)(images, draws)
        return images, labels

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._logits(images)
        loss = self.objective.loss(logits, labels)
        self.stepper.step(loss)
        return loss.detach(), self.objective.share_right(logits, labels)

    def _logits(self, images: Tensor) -> Tensor:
        with self.stepper.forward_context():
            return cast(Tensor, self._forward(images))


def digest_of(*tensors: Tensor) -> str:
    """Return half of SHA-256 over the dtypes, shapes and bytes of `tensors`: enough to tell them apart."""
    found = hashlib.sha256()
    for value in tensors:
        found.update(repr((value.dtype, tuple(value.shape))).encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]
