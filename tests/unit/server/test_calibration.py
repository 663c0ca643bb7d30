"""Where a larger batch ceases to pay; the stopwatch is the test's own, so nothing depends on this machine."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch

from support.models import a_manifest
from tessera.keystore.package import Manifest, TensorSpec
from tessera.server.engine.calibration import BUDGET_S, best_batch
from tessera.server.engine.executor import QUIET_STEPS, Executor
from tessera.server.engine.program import Array


class Timed:
    """A program whose runs take `cost(samples)` seconds of a clock that only it moves."""

    manifest: Manifest = a_manifest((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),), max_batch=64)
    max_batch = 64
    device_bytes = 0

    def __init__(self, cost: Callable[[int], float]) -> None:
        self.now_s = 0.0
        self.sizes: list[int] = []
        self._cost = cost

    def seconds(self) -> float:
        """Return the time its runs have taken so far."""
        return self.now_s

    def run(self, parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """Let time pass."""
        samples = sum(len(part["x"]) for part in parts)
        self.sizes.append(samples)
        self.now_s += self._cost(samples)
        return {"y": np.zeros(samples, np.float32)}

    def erase(self) -> None:
        """Nothing to erase."""


@pytest.mark.parametrize(
    ("cost", "best"),
    [
        (lambda n: 1e-4 + 1e-9 * n, 64),  # all overhead: the more the better
        (lambda n: 1e-3 * n, 1),  # no overhead: company gains nothing
        (lambda n: 1e-3 + 1e-3 * n, 8),  # 8/9 of what is to be had; 4/5 falls short
        (lambda n: 1e-4 * n if n <= 8 else 3e-4 * n, 1),  # falls out of the cache
    ],
    ids=["overhead", "linear", "both", "cache"],
)
def test_the_smallest_batch_that_is_nearly_best(cost: Callable[[int], float], best: int) -> None:
    """Of all sizes within fifteen percent of the best rate the smallest wins."""
    program = Timed(cost)
    assert best_batch(program, at_most=64, seconds=program.seconds) == best


def test_time_is_bounded() -> None:
    """A slow model is measured at the first size and no further."""
    program = Timed(lambda n: BUDGET_S * n)
    assert best_batch(program, at_most=64, seconds=program.seconds) == 1
    assert set(program.sizes) == {1}


@pytest.mark.parametrize("at_most", [1, 2, 3, 7, 8, 48])
def test_nothing_larger_than_allowed_is_run(at_most: int) -> None:
    """The limit itself is tried, and nothing beyond."""
    program = Timed(lambda n: 1e-6)
    assert best_batch(program, at_most=at_most, seconds=program.seconds) == at_most
    assert max(program.sizes) == at_most


def test_a_lane_alone_gets_all_threads() -> None:
    """With two threads there are two lanes of one thread each; after some quiet a lone lane takes both."""
    executor = Executor("cpu", threads=2)
    try:
        assert executor.lanes == 2

        def threads() -> int:
            executor.spread()
            return torch.get_num_threads()

        seen = [executor.call(threads).result(10) for _ in range(2 * QUIET_STEPS)]
    finally:
        executor.close()
    assert seen[0] == 1
    assert seen[-1] == 2


def test_one_thread_is_one_lane() -> None:
    """There is nothing to share."""
    executor = Executor("cpu", threads=1)
    executor.close()
    assert executor.lanes == 1
