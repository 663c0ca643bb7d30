"""Every way to score units under one name: what `--scores` takes and what the comparison runs side by side."""

from collections.abc import Sequence
from typing import Final, Literal, cast

from tessera.keystore.errors import ApiMisuse
from tessera.protect.selective.baselines import BaselineKind, baseline_scores
from tessera.protect.selective.fast_scores import fast_scores
from tessera.protect.selective.gates import frozen_state
from tessera.protect.selective.objective import Objective
from tessera.protect.selective.pss import SHORT, Progress, Schedule, Scores, learn_scores
from tessera.protect.selective.units import Layer

ScoreKind = Literal["pss", "opening", "gradient", "fisher", "random", "descend", "ascend", "mean"]

SCORES: Final[dict[str, str]] = {
    "pss": "learned gates, as in the paper; minutes to hours",
    "opening": "PSS's first step alone; seconds per layer",
    "gradient": "mean |gate gradient|; seconds",
    "fisher": "mean squared gate gradient; seconds",
    "random": "no score at all (baseline)",
    "descend": "largest |mean| first (baseline)",
    "ascend": "smallest |mean| first (baseline)",
    "mean": "|mean| nearest to the layer's average first (baseline)",
}
"""Name to what it is."""


def score_by(
    kind: ScoreKind,
    objective: Objective,
    layers: Sequence[Layer],
    *,
    schedule: Schedule = SHORT,
    together: bool = False,
    batches: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Return the scores called `kind`; `schedule` and `together` are for `pss`, `batches` for the one-shot scores.

    Raises `ApiMisuse` for a kind that is not there, and what the scores themselves raise.
    """
    if kind not in SCORES:
        raise ApiMisuse(f"there are no scores called {kind!r}", remedy=f"They are: {', '.join(SCORES)}.")
    if kind == "pss":
        return learn_scores(objective, layers, schedule, seed=seed, together=together, progress=progress)
    if kind in ("opening", "gradient", "fisher"):
        return fast_scores(objective, layers, kind, batches=batches, seed=seed, progress=progress)
    return baseline_scores(frozen_state(objective.model), layers, cast("BaselineKind", kind), seed=seed)
