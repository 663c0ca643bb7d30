"""Time as something that is handed in, so that rules about time can be tested by arithmetic.

Two readings, never mixed: the wall clock judges licences (it is what their dates speak of) and may jump; the monotonic
clock measures time to live, rates and deadlines and never goes back.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Where admission takes its time from; it asks once for each decision."""

    def now_s(self) -> float:
        """Return Unix time in seconds, UTC; may jump when the machine's clock is set."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds from an arbitrary start that never run backwards."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_s(self) -> float:
        """Return `time.time()`."""
        return time.time()

    def monotonic_s(self) -> float:
        """Return `time.monotonic()`."""
        return time.monotonic()
