"""Clocks that a test sets by hand."""

from tessera.server.clock import SystemClock


class ManualClock:
    """Both clocks stand still until the test moves them."""

    def __init__(self, now_s: float = 1_800_000_000.0, monotonic_s: float = 1000.0) -> None:
        self.wall_s = now_s
        self.steady_s = monotonic_s

    def now_s(self) -> float:
        """Return the wall time the test has set."""
        return self.wall_s

    def monotonic_s(self) -> float:
        """Return the monotonic time the test has set."""
        return self.steady_s

    def advance(self, seconds: float) -> None:
        """Let both clocks run on."""
        self.wall_s += seconds
        self.steady_s += seconds


class ShiftedClock(SystemClock):
    """The machine's clocks, moved by what the test says; for real servers, whose other parts keep real time."""

    def __init__(self) -> None:
        self.wall_shift_s = 0.0
        self.steady_shift_s = 0.0

    def now_s(self) -> float:
        """Return the machine's wall time, moved."""
        return super().now_s() + self.wall_shift_s

    def monotonic_s(self) -> float:
        """Return the machine's monotonic time, moved."""
        return super().monotonic_s() + self.steady_shift_s
