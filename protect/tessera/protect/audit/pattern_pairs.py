"""Reading an isnn off images before and after it: the pattern from any block, its turns by regression.

The differences of all blocks are one pattern up to their sign; which sign a block got is then explained by a linear
measure of what the block showed, fitted by least squares. In the fixed form all signs are alike and nothing is left to
fit. Nothing is searched and no label is needed: this is why a buyer's own machine must be trusted.
"""

from typing import Final

import torch
from torch import Tensor

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.measure import reached
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject, some
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform

NAME: Final = "pattern-pairs"
PAIRS: Final = (1, 10, 100)
"""Images seen before and after."""

_ROUNDS: Final = 5
_RIDGE: Final = 1e-3


def run(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Read pattern and measure off each number of pairs, and judge the substitute on held-out images."""
    del budget  # three regressions are few enough for all of them
    meter.expect(len(PAIRS))
    model = subject.victim().to(device)
    lock = TorchTransform(Transform(subject.spec, subject.key, *subject.shape), device)
    rows = []
    for count in PAIRS:
        label = "1 pair of images" if count == 1 else f"{count} pairs of images"
        own = some(sample.attacker, count, seed)
        if len(own) < count:
            note = f"not run: the attacker's part holds {len(own)} images"
            rows.append(Row(label=label, score=None, at=count, images=0, work=count, unit="pairs", note=note))
            continue
        clean = own.images.to(device)
        substitute = Substitute(clean, lock(clean), subject.spec.steps[0].block, subject.spec.steps[0].epsilon)
        score = reached(model, sample.held_out, device, substitute)
        held_out = sample.held_out.images.to(device)
        right = float((substitute(held_out) == lock(held_out)).double().mean())
        note = f"{right:.1%} of the values of held-out images are the true transform's"
        rows.append(Row(label=label, score=score, at=count, images=0, work=count, unit="pairs", note=note))
        meter.did()
    return AttackResult(name=NAME, rows=tuple(rows))


class Substitute:
    """What `clean` and `sent`, uint8 (N, C, H, W), give away of an isnn, as a transform of uint8 images."""

    def __init__(self, clean: Tensor, sent: Tensor, block: int, epsilon: int) -> None:
        self._block, self._epsilon = block, float(epsilon)
        change = _blocks(sent.float() - clean.float(), block).reshape(-1, _blocks(clean, block).shape[-1])
        pattern = change[change.abs().sum(1).argmax()].sign()
        for _ in range(_ROUNDS):
            turns = (change @ pattern).sign()
            pattern = (turns @ change).sign()
        self._pattern = torch.where(pattern == 0, 1.0, pattern)
        turns = (change @ self._pattern).sign().double()
        shown = _features(_blocks(clean.float(), block).reshape(len(change), -1))
        square = shown.T @ shown / len(shown) + _RIDGE * torch.eye(shown.shape[1], device=shown.device)
        self._weights = torch.linalg.solve(square, shown.T @ turns / len(shown))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the guessed transform of uint8 (N, C, H, W)."""
        images, channels, height, width = x.shape
        blocks = _blocks(x.float(), self._block)
        turns = torch.where(_features(blocks.reshape(-1, blocks.shape[-1])) @ self._weights >= 0, 1.0, -1.0)
        change = (turns[:, None].float() * self._pattern * self._epsilon).reshape(blocks.shape)
        across = (images, height // self._block, width // self._block, channels, self._block, self._block)
        y = (blocks + change).reshape(across).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
        return y.clamp(0, 255).to(torch.uint8)


def _blocks(x: Tensor, block: int) -> Tensor:
    """Return (N, blocks, C * M * M) of (N, C, H, W)."""
    images, channels, height, width = x.shape
    parts = x.reshape(images, channels, height // block, block, width // block, block)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(images, -1, channels * block * block)


def _features(blocks: Tensor) -> Tensor:
    """Return blocks (B, L) as float64 of about one in size, with a constant: (B, L + 1)."""
    scaled = (blocks.double() - blocks.double().mean(1, keepdim=True)) / 32.0
    return torch.cat([scaled, torch.ones(len(scaled), 1, dtype=torch.float64, device=scaled.device)], dim=1)
