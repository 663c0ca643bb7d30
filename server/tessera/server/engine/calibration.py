"""How large a batch pays: measured when a model is loaded, because it depends on model, machine and library.

Past some size a larger batch only adds latency: its activations leave the cache, and while one batch holds every
request, nothing is left to read, check and answer meanwhile.
"""

import time
from collections.abc import Callable
from typing import Final

import numpy as np

from tessera.server.engine.datatypes import DATATYPES
from tessera.server.engine.program import Program

BUDGET_S: Final = 0.8
"""No further size is measured after this long; large models are measured at fewer sizes."""
REPEATS: Final = 4
SHORTEST_S: Final = 1e-9
"""Stands for a run that the stopwatch cannot see."""
GOOD_ENOUGH: Final = 0.85
"""The smallest batch with this share of the best rate wins."""


def best_batch(program: Program, *, at_most: int, seconds: Callable[[], float] = time.perf_counter) -> int:
    """Return the smallest of the sizes 1, 2, 4, … `at_most` that gives nearly the best rate of samples.

    Runs zeros through `program` in the calling thread, with the torch threads it has. Sizes that the time does not
    suffice for are taken to be no better. `seconds` is the stopwatch.
    """
    rates: dict[int, float] = {}
    until_s = seconds() + BUDGET_S
    size = 1
    while size <= at_most and (not rates or seconds() < until_s):
        rates[size] = size / _shortest_s(program, size, seconds)
        size = at_most if size < at_most < 2 * size else 2 * size
    best = max(rates.values())
    return min(size for size, rate in rates.items() if rate >= GOOD_ENOUGH * best)


def _shortest_s(program: Program, samples: int, seconds: Callable[[], float]) -> float:
    """Return the shortest of a few runs, which is the one least disturbed by others."""
    part = {
        spec.name: np.zeros((samples, *spec.shape[1:]), DATATYPES[spec.datatype].numpy_dtype)
        for spec in program.manifest.inputs
    }
    shortest_s = float("inf")
    for _ in range(REPEATS):
        started_s = seconds()
        program.run([part])
        shortest_s = min(shortest_s, seconds() - started_s)
    return max(shortest_s, SHORTEST_S)
