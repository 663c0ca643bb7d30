"""A training run whose batches hold legal and illegal inputs."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.protect.checkpoint import restore_weights
from tessera.protect.evaluate import BatchTransform
from tessera.protect.isnn.illegal import IllegalInputs
from tessera.protect.isnn.legal import LegalInputs
from tessera.protect.isnn.settings import IsnnSettings
from tessera.protect.isnn.universal import UniversalAdversary
from tessera.protect.loop import Run, digest_of
from tessera.protect.models import PixelModel
from tessera.protect.task import TrainingTask
from tessera.transforms import TransformSpec

_ADVERSARY_SEED: Final = 7919


class IsnnRun(Run):
    """Trains a model to answer images perturbed under any of `keys`, and no others.

    `start` holds the weights of a model that answers plain images, to be fine-tuned; without it training begins anew.
    Its score is over the test set with the buyers in turn. Raises as `Run` and `LegalInputs`, and `Conflict` for
    weights of another network.
    """

    def __init__(
        self,
        task: TrainingTask,
        transform: TransformSpec,
        keys: Sequence[InputKey],
        settings: IsnnSettings,
        *,
        seed: int,
        device: torch.device,
        epochs: int,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.legal = LegalInputs(transform, keys, task.shape, device)
        self.settings, self._start = settings, start
        super().__init__(task, transform, keys[0], seed=seed, device=device, epochs=epochs)
        if settings.target == "wrong-class" and settings.wrong_class >= task.class_count:
            raise ApiMisuse(f"{task.name} has {task.class_count} classes and no class {settings.wrong_class}")
        self.key_ids = sorted(input_key_id(key) for key in keys)
        self.key_id = self.key_ids[0] if len(self.key_ids) == 1 else None
        self._illegal = IllegalInputs(self.legal, settings.mixture)
        self._teacher: nn.Module | None = None
        if start is not None and settings.teacher_share:
            self._teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        self._adversary: UniversalAdversary | None = None
        if self.legal.step.content and settings.adversary_share and isinstance(self.model, PixelModel):
            draws = torch.Generator().manual_seed(seed + _ADVERSARY_SEED)
            step = self.legal.step
            self._adversary = UniversalAdversary(task.shape, step.block, step.epsilon, draws)

    def _lock(self, key: InputKey | None) -> BatchTransform:  # noqa: ARG002 - all keys count
        def in_turn(x: Tensor) -> Tensor:
            return self.legal(x, torch.arange(len(x), device=x.device) % len(self.legal))

        return in_turn

    def _fresh_model(self) -> nn.Module:
        model = super()._fresh_model()
        if self._start is not None:
            restore_weights(model, dict(self._start), Path("start"))
        return model

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine the run, fit for a report."""
        return super().describe() | {
            "input_key_ids": self.key_ids,
            "buyers": len(self.key_ids),
            "isnn": dict(self.settings.to_json()),
            "fine_tuned": self._start is not None,
        }

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree in: here the weights of the start too, since they are the teacher's."""
        start = None if self._start is None else digest_of(*(self._start[name] for name in sorted(self._start)))
        return super().identity() | {"start_sha256": start}

    def _extra(self) -> dict[str, Any]:
        return {} if self._adversary is None else {"adversary": self._adversary.state()}

    def _restore_extra(self, saved: dict[str, Any]) -> None:
        if self._adversary is not None:
            self._adversary.restore(saved["adversary"])

    def _learn(self, chosen: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = self._augmented(chosen, draws)
        legal = max(1, round(len(images) * (1 - self.settings.illegal_share)))
        buyers = torch.randint(0, len(self.legal), (legal,), generator=draws).to(images.device)
        parts, rest = [self.legal(images[:legal], buyers)], images[legal:]
        shown = 0 if self._adversary is None else round(len(rest) * self.settings.adversary_share)
        if self._adversary is not None and shown:
            parts.append(self._adversary.added(rest[:shown], draws))
        if len(rest) > shown:
            parts.append(self._illegal(rest[shown:], draws))
        logits = self._logits(torch.cat(parts))
        loss = self._legal_loss(logits[:legal], images[:legal], labels[:legal])
        if len(logits) > legal:
            loss = loss + self.settings.weight * self._illegal_loss(logits[legal:], draws)
        self.stepper.step(loss)
        if self._adversary is not None and shown:
            known = labels[legal : legal + shown]
            self._adversary.learn(self.model, self.objective.loss, rest[:shown], known, draws)
        return loss.detach(), self.objective.share_right(logits[:legal], labels[:legal])

    def _legal_loss(self, logits: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """Return the task's loss, in a fine-tune mixed with how far answers are from the first model's."""
        loss = self.objective.loss(logits, labels)
        if self._teacher is None:
            return loss
        with torch.no_grad():
            known = F.softmax(self._teacher(clean).float(), dim=1)
        apart = -(known * F.log_softmax(logits.float(), dim=1)).sum(1).mean()
        return (1 - self.settings.teacher_share) * loss + self.settings.teacher_share * apart

    def _illegal_loss(self, logits: Tensor, draws: torch.Generator) -> Tensor:
        """Return how far the answers to illegal inputs are from their target."""
        logits = logits.float()[:, : self.task.class_count]
        if self.settings.target == "uniform":
            return -F.log_softmax(logits, dim=1).mean() - torch.log(torch.tensor(float(logits.shape[1])))
        shape = (len(logits), *logits.shape[2:])
        if self.settings.target == "wrong-class":
            target = torch.full(shape, self.settings.wrong_class, device=logits.device)
        else:
            target = torch.randint(0, logits.shape[1], shape, generator=draws).to(logits.device)
        return F.cross_entropy(logits, target)
