"""When to try again and how long to wait: arithmetic only; time and chance are passed in."""

from dataclasses import dataclass

from tessera.keystore.errors import ApiMisuse


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter: the n-th pause is between half and all of `min(cap_s, base_s * 2**(n-1))`.

    `retries` counts repetitions after the first attempt; 0 means never. Raises `ApiMisuse` for negative values.
    """

    retries: int = 3
    base_s: float = 0.1
    cap_s: float = 5.0

    def __post_init__(self) -> None:
        if self.retries < 0 or self.base_s < 0 or self.cap_s < 0:
            raise ApiMisuse("retries, base_s and cap_s are not negative")

    def pause_s(self, failures: int, chance: float) -> float | None:
        """Return the pause after `failures` (1, 2, …) failed attempts with `chance` in [0, 1); None to give up.

        Half of the pause is fixed, so that a server that is just starting is not hammered.
        """
        if failures > self.retries:
            return None
        longest = min(self.cap_s, self.base_s * 2.0 ** min(failures - 1, 32))
        return longest * (0.5 + 0.5 * chance)
