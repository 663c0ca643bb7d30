"""The inputs that an input-sensitive network must not answer, drawn anew for every batch.

Clean images, other keys or records (which give unrelated patterns: rule C-4), nearly right patterns, noise of the same
strength, and for the form by content the right pattern with signs that the image does not call for: everywhere the
same, by chance, or those of another image. Those last ones are what whoever averages or inverts comes up with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from tessera.keystore.errors import ApiMisuse
from tessera.protect.isnn.legal import LegalInputs
from tessera.protect.perturbation_torch import block_bits, perturbed

IllegalKind = Literal["clean", "other-key", "near-key", "noise", "misplaced"]

KINDS: Final[tuple[IllegalKind, ...]] = get_args(IllegalKind)

SHARES: Final[Mapping[IllegalKind, float]] = {
    "clean": 0.25, "other-key": 0.12, "near-key": 0.22, "noise": 0.03, "misplaced": 0.38,
}  # fmt: skip
"""How often each kind is drawn; `misplaced` means nothing in the fixed form, where its share goes to the others."""

NEAREST: Final = 0.05
FARTHEST: Final = 0.5
"""Shares of the signs that a near key has wrong."""


@dataclass(frozen=True)
class IllegalMixture:
    """How often each kind of illegal input is drawn, as weights of any sum. Raises `ApiMisuse`."""

    shares: Mapping[IllegalKind, float] = field(default_factory=lambda: dict(SHARES))

    def __post_init__(self) -> None:
        if self.shares.keys() - set(KINDS) or min(self.shares.values(), default=-1) < 0 or not self.shares.get("clean"):
            raise ApiMisuse(
                f"shares of illegal inputs are numbers from 0 for {', '.join(KINDS)}, and above 0 for clean"
            )

    def of(self, kind: IllegalKind, *, content: bool) -> float:
        """Return the share of `kind`, 0 … 1."""
        fitting = {name: share for name, share in self.shares.items() if content or name != "misplaced"}
        return fitting.get(kind, 0.0) / sum(fitting.values())


class IllegalInputs:
    """Draws illegal inputs beside `legal` ones."""

    def __init__(self, legal: LegalInputs, mixture: IllegalMixture | None = None) -> None:
        mixture = mixture if mixture is not None else IllegalMixture()
        self._legal = legal
        self._shares = torch.tensor([mixture.of(kind, content=legal.step.content) for kind in KINDS])
        self._makers: dict[IllegalKind, Callable[[Tensor, torch.Generator], Tensor]] = {
            "clean": lambda x, _draws: x,
            "other-key": self.other_keys,
            "near-key": self.near_keys,
            "noise": self.noise,
            "misplaced": self.misplaced,
        }

    def __call__(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """Return uint8 `x` (N, C, H, W) made illegal, each image in a way drawn from the CPU generator `draws`."""
        kinds = torch.multinomial(self._shares, len(x), replacement=True, generator=draws)
        y = x.clone()
        for number, kind in enumerate(KINDS):
            at = (kinds == number).nonzero()[:, 0].to(x.device)
            if len(at):
                y[at] = self._makers[kind](x[at], draws)
        return y

    def other_keys(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """Perturb under patterns of keys or records that nobody has: balanced signs by chance, one pattern an image."""
        step = self._legal.step
        signs = _balanced(len(x), self._legal.signs[0].numel(), draws, odd=1.0).to(x.device)
        signs = signs.reshape(len(x), *self._legal.signs.shape[1:])
        bits = None
        if self._legal.weights is not None:
            cells = step.block // 2
            weights = _balanced(x.shape[1], cells * cells, draws, odd=0.0).to(x.device).reshape(-1, cells, cells)
            bits = block_bits(x, weights.repeat_interleave(2, 1).repeat_interleave(2, 2))
        return perturbed(x, signs, step.epsilon, bits)

    def near_keys(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """Perturb under a buyer's pattern of which `NEAREST` to `FARTHEST` of the signs are turned."""
        shares = NEAREST + (FARTHEST - NEAREST) * torch.rand(len(x), 1, generator=draws)
        values = self._legal.signs[0].numel()
        ranks = torch.rand(len(x), values, generator=draws).argsort(dim=1).argsort(dim=1)
        turned = torch.where(ranks < (shares * values).ceil(), -1.0, 1.0).to(x.device)
        buyers = self._buyers(x, draws)
        signs = self._legal.signs[buyers] * turned.reshape(-1, *self._legal.signs.shape[1:])
        return perturbed(x, signs, self._legal.step.epsilon, self._legal.bits(x, buyers))

    def noise(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """Add signs by chance, of the same strength, everywhere anew."""
        signs = torch.randint(0, 2, x.shape, generator=draws).to(x.device) * 2.0 - 1.0
        return (x.to(torch.float32) + signs * self._legal.step.epsilon).clamp_(0, 255).to(torch.uint8)

    def misplaced(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """Add a buyer's pattern where the image calls for its opposite, and the other way round (form by content)."""
        buyers = self._buyers(x, draws)
        right = self._legal.bits(x, buyers)
        assert right is not None  # the fixed form draws none of these
        chance = torch.rand(right.shape, generator=draws).to(x.device) < 0.5
        same = (torch.rand(len(x), 1, 1, 1, generator=draws).to(x.device) < 0.5).expand_as(right)
        way = torch.randint(0, 4, (len(x), 1, 1, 1), generator=draws).to(x.device)
        another = right.roll(1, 0)  # the hardest: pictures are alike, so more than half of its turns are right
        bits = torch.where(way == 0, chance, torch.where(way == 1, same, another))
        return perturbed(x, self._legal.signs[buyers], self._legal.step.epsilon, bits)

    def _buyers(self, x: Tensor, draws: torch.Generator) -> Tensor:
        return torch.randint(0, len(self._legal), (len(x),), generator=draws).to(x.device)


def _balanced(rows: int, count: int, draws: torch.Generator, *, odd: float) -> Tensor:
    """Return float32 (rows, count): in each row as many 1 as -1 by chance, and `odd` for one left over."""
    ranks = torch.rand(rows, count, generator=draws).argsort(dim=1)
    half = count // 2
    return torch.where(ranks < half, -1.0, torch.where(ranks < 2 * half, 1.0, odd))
