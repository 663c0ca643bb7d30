"""The selectors that PSS is compared with (section 1.4 of the paper's code): no data, no gradients.

random     any order
descend    largest |mean of the unit's weights| first
ascend     smallest |mean| first
mean       |mean| nearest to the layer's average of |mean| first
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from tessera.keystore.errors import ApiMisuse
from tessera.protect.selective.pss import Scores
from tessera.protect.selective.units import Layer, check_weights

BaselineKind = Literal["random", "descend", "ascend", "mean"]


def _away_from_average(means: Tensor) -> Tensor:
    return -(means - means.mean()).abs()


_OF_MEANS: Final[Mapping[BaselineKind, Callable[[Tensor], Tensor]]] = {
    "descend": torch.clone,
    "ascend": torch.neg,
    "mean": _away_from_average,
}


def baseline_scores(state: dict[str, Tensor], layers: Sequence[Layer], kind: BaselineKind, *, seed: int = 0) -> Scores:
    """Return the scores of a baseline selector; `seed` matters for `random` alone, which is for comparison only.

    Raises `Malformed` for weights that are not finite.
    """
    check_weights(state, layers)
    if kind == "random":
        draws = torch.Generator().manual_seed(seed)
        return {layer.weight: torch.rand(layer.count, generator=draws, dtype=torch.float64) for layer in layers}
    if kind not in _OF_MEANS:
        raise ApiMisuse(f"there is no baseline {kind!r}", remedy="They are: random, descend, ascend, mean.")
    means = {layer: layer.rows(state[layer.weight].detach().cpu().double()).mean(dim=1).abs() for layer in layers}
    return {layer.weight: _OF_MEANS[kind](value) for layer, value in means.items()}
