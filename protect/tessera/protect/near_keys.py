"""Keys that are nearly right: what a search has reached when part of the permutation or mask is still wrong.

A real wrong key shares nothing with the right one (rule T-5), so nearness lives in what the key turns into: the
permutation of a block, the mask of the places that are inverted or replaced, or the signs of a pattern. The tables of
`ffx` and the turns of an `isnn` stay right.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.protect.perturbation_torch import TorchPerturbation, perturbed
from tessera.transforms import Perturbation, Step, TransformSpec, block_positions, mask, permutation
from tessera.transforms.passes import step_tables

_FEWEST_MOVED: Final = 2
"""One entry of a permutation alone cannot be wrong."""


class NearKeyTransform:
    """Applies a spec under a key of which a share of every step's permutation or mask is wrong.

    Takes uint8 (N, C, H, W) on `device` and returns a transformed copy. `share`, above 0 and at most 1, is rounded to
    whole places of a block, at least one (two for a permutation); the places follow from `seed`. Raises `ApiMisuse` for
    another share and `TransformError` for a spec that does not fit.
    """

    def __init__(
        self,
        spec: TransformSpec,
        key: InputKey,
        shape: tuple[int, int, int],
        share: float,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 < share <= 1:
            raise ApiMisuse(f"the share of a key that is wrong is above 0 and at most 1, not {share}")
        channels, height, width = shape
        draws = np.random.default_rng(seed)
        if spec.perturbation is not None:
            self._steps: Sequence[Callable[[Tensor], Tensor]] = [
                _NearPattern(Perturbation.of(spec, key, *shape), shape, share, draws, device)
            ]
            return
        self._steps = [
            _NearStep(
                torch.from_numpy(block_positions(channels, height, width, step.block)).to(device),
                *(part.to(device) for part in _near(key, number, step, channels, share, draws)),
            )
            for number, step in enumerate(spec.steps)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the transformed copy of `x`."""
        flat = x.reshape(len(x), -1)
        for step in self._steps:
            flat = step(flat)
        return flat.reshape(x.shape)


class _NearPattern:
    """An isnn on flattened images of which a share of the pattern's signs is turned; its turns stay right."""

    def __init__(
        self,
        right: Perturbation,
        shape: tuple[int, int, int],
        share: float,
        draws: np.random.Generator,
        device: torch.device | str,
    ) -> None:
        self._shape = shape
        self._right = TorchPerturbation(right, device)
        signs = right.signs.reshape(-1).copy()
        wrong = max(1, round(share * len(signs)))
        signs[draws.permutation(len(signs))[:wrong]] *= -1
        self._signs = torch.tensor(signs.reshape(right.signs.shape), dtype=torch.float32, device=device)

    def __call__(self, flat: Tensor) -> Tensor:
        x = flat.reshape(-1, *self._shape)
        return perturbed(x, self._signs, self._right.step.epsilon, self._right.bits(x)).reshape(flat.shape)


class _NearStep:
    """One step on flattened images: move inside each block, then look every value up in the table of its place."""

    def __init__(self, blocks: Tensor, order: Tensor, choice: Tensor, tables: Tensor) -> None:
        self._blocks, self._order, self._tables = blocks, order, tables.reshape(-1)
        self._offsets = choice * tables.shape[1]

    def __call__(self, flat: Tensor) -> Tensor:
        values = flat[:, self._blocks[:, self._order]].long() + self._offsets
        y = torch.empty_like(flat)
        y[:, self._blocks] = self._tables[values]
        return y


def _near(
    key: InputKey, number: int, step: Step, channels: int, share: float, draws: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return order (L,) and choice (L,), int64, and tables (K, 256), uint8, of a step with wrong places."""
    places = step.block * step.block * channels
    order = np.arange(places, dtype=np.int64)
    choice = np.zeros(places, dtype=np.int64)
    identity = np.arange(256, dtype=np.uint8)
    tables = identity[np.newaxis]
    if step.kind == "shf":
        order = permutation(key, number, "shf", step.block, channels).copy()
        chosen = _some(draws, places, max(_FEWEST_MOVED, round(share * places)))
        order[chosen] = order[np.roll(chosen, 1)]  # one long cycle: every chosen entry is wrong
    elif step.kind == "np":
        tables = np.stack([identity, identity ^ 255])
        choice = (mask(key, number, "np", step.block, channels) != 0).astype(np.int64)
        _toggle(choice, draws, share, 2)
    else:
        tables, found = step_tables(key, number, step, channels)
        choice = found.astype(np.int64)
        _toggle(choice, draws, share, len(tables))
    return torch.from_numpy(order), torch.from_numpy(choice), torch.from_numpy(tables.copy())


def _toggle(choice: NDArray[np.int64], draws: np.random.Generator, share: float, tables: int) -> None:
    """Let some places that had a table have none, and those that had none a table."""
    chosen = _some(draws, len(choice), max(1, round(share * len(choice))))
    choice[chosen] = np.where(choice[chosen] == 0, draws.integers(1, tables, len(chosen)), 0)


def _some(draws: np.random.Generator, places: int, count: int) -> NDArray[np.int64]:
    return draws.permutation(places)[: min(count, places)].astype(np.int64)
