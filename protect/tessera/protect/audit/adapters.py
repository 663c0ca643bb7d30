"""Something small in front of the frozen model that learns to key images, from a few labelled ones and no key.

SHF and NP are one affine map for all blocks, FFX is a table for each place of a block, an isnn is a small change that
may follow the block; all can be learned by following the model's own loss back through them. A model whose first
operation looks bytes up lets no gradient out, so there the first layer's own weights are trained in place of something
in front of it.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.measure import Fronted, reached
from tessera.protect.audit.programs import first_weights
from tessera.protect.audit.result import NO_TIME, AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject, some
from tessera.protect.audit.training import fit
from tessera.protect.evaluate import LabelledImages
from tessera.protect.models import BlockStem

NAME = "adapter"
IMAGES: Final = (10, 100, 1000)
"""How many labelled images the attacker has, row by row."""
LEARNING_RATE: Final = 1e-2
MAX_BLOCK_VALUES: Final = 4096
"""Largest block for which a linear map of all its values is learned: it has the square of this many weights."""


def run(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Train an adapter with each number of labelled images and judge it on held-out ones."""
    meter.expect(budget.steps * len(IMAGES))
    rows, form = [], ""
    for at, count in enumerate(IMAGES):
        own = some(sample.attacker, count, seed)
        if len(own) < count:
            rows.append(_not_run(count, f"the attacker's part of the sample holds {len(own)} images"))
            continue
        model = subject.victim().to(device)
        front, trained, form = _front(subject, model, own, device)
        fronted = Fronted(front, model)
        part = meter.part(len(IMAGES) - at)
        done = fit(
            fronted, trained, own, steps=budget.steps, rate=LEARNING_RATE, seed=seed, meter=part, device=device,
            training=False,
        )  # fmt: skip
        score = reached(model, sample.held_out, device, front)
        rows.append(
            Row(
                label=f"{count} labelled images",
                score=score if done else None,
                at=count,
                images=count,
                work=done,
                unit="training steps",
                cut_short=done < budget.steps,
                note="" if done else NO_TIME,
            )
        )
    return AttackResult(name=NAME, rows=tuple(rows), details={"adapter": form})


class LinearFront(nn.Module):
    """Float pixels 0 … 255 to the same: one affine map for every block, which starts as the identity."""

    def __init__(self, channels: int, block: int) -> None:
        super().__init__()
        self.stem = BlockStem(channels, block)

    def forward(self, image: Tensor) -> Tensor:
        """Return the mapped images."""
        mapped: Tensor = self.stem(image.float() / 127.5 - 1.0)
        return (mapped + 1.0) * 127.5


class TableFront(nn.Module):
    """Uint8 pixels to floats 0 … 255: a table of 256 entries for every place of a block, at first the identity."""

    offset: Tensor

    def __init__(self, channels: int, block: int) -> None:
        super().__init__()
        places = channels * block * block
        levels = torch.arange(256, dtype=torch.float32) / 127.5 - 1.0
        self.table = nn.Parameter(levels.repeat(places, 1))
        self.block = block
        offset = torch.arange(places, dtype=torch.int32) * 256
        self.register_buffer("offset", offset.reshape(channels, block, block))

    def forward(self, image: Tensor) -> Tensor:
        """Return the looked-up values of uint8 images."""
        height, width = image.shape[2:]
        places = image.int() + self.offset.repeat(1, height // self.block, width // self.block)
        found = self.table.reshape(-1).index_select(0, places.reshape(-1)).reshape(image.shape)
        return (found + 1.0) * 127.5


class PatternFront(nn.Module):
    """Float pixels 0 … 255 plus a change of at most twice epsilon that may follow the image.

    Two convolutions that take a block apart and put it together again, with what lies between them free, and a bias for
    every place of a block: what it takes to express an isnn in either form. It begins with almost no change.
    """

    def __init__(self, channels: int, block: int, epsilon: int) -> None:
        super().__init__()
        values = channels * block * block
        hidden = min(256, 2 * values)
        self.seen = nn.Conv2d(channels, hidden, block, stride=block)
        self.shown = nn.Conv2d(hidden, values, 1)
        self.place = nn.PixelShuffle(block)
        self._reach = 2.0 * epsilon
        with torch.no_grad():
            self.shown.weight.mul_(0.1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the changed images."""
        scaled = image.float() / 127.5 - 1.0
        change: Tensor = torch.tanh(self.place(self.shown(torch.tanh(self.seen(scaled)))))
        return (image.float() + self._reach * change).clamp(0, 255)


def lets_gradients_out(model: nn.Module, images: Tensor) -> bool:
    """Tell whether the loss of `model` says anything about its pixels: not when it looks them up as whole bytes."""
    probe = images[:1].float().requires_grad_()
    try:
        total = model.eval()(probe).sum()
        (gradient,) = torch.autograd.grad(total, probe, allow_unused=True)
    except (RuntimeError, TypeError):  # floats are refused, or nothing depends on them
        return False
    return gradient is not None and bool(gradient.abs().sum() > 0)


def _front(
    subject: Subject, model: nn.Module, own: LabelledImages, device: torch.device
) -> tuple[nn.Module | None, list[nn.Parameter], str]:
    """Return what goes in front, the weights to train, and what it is in words."""
    if not lets_gradients_out(model, own.images.to(device)):
        weights = first_weights(model)
        return None, weights, "the model looks bytes up, so the weights of its first layer were trained in place of one"
    channels, block = subject.shape[0], math.lcm(*(step.block for step in subject.spec.steps))
    if subject.spec.perturbation is not None:
        pattern = PatternFront(channels, block, subject.spec.perturbation.epsilon).to(device)
        return pattern, list(pattern.parameters()), _PATTERN_WORDS
    parts: list[nn.Module] = []
    if "ffx" in subject.kinds:
        parts.append(TableFront(channels, block))
    moves = subject.kinds != {"ffx"}
    if moves and channels * block * block <= MAX_BLOCK_VALUES:
        parts.append(LinearFront(channels, block))
    front = nn.Sequential(*parts).to(device)
    words = [_WORDS[type(part)] for part in parts]
    return front, list(front.parameters()), f"{' followed by '.join(words)}, blocks of {block}x{block}"


_PATTERN_WORDS: Final = "a small network that changes each value by at most twice epsilon, block by block"

_WORDS: Final[dict[type[nn.Module], str]] = {
    LinearFront: "one linear map for all blocks",
    TableFront: "a table of 256 entries for each place in a block",
}


def _not_run(count: int, why: str) -> Row:
    return Row(
        label=f"{count} labelled images", score=None, at=count, images=count, work=0, unit="training steps",
        note=f"not run: {why}",
    )  # fmt: skip
