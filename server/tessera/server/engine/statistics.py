"""Counts and durations of one variant in the shape that Triton's ModelStatistics asks for; nanoseconds throughout."""

from dataclasses import dataclass


@dataclass(slots=True)
class Span:
    """How often something happened and how long it took together."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        """Count `count` more occurrences of `ns` nanoseconds together."""
        self.count += count
        self.ns += ns

    def __iadd__(self, other: "Span") -> "Span":
        self.add(other.count, other.ns)
        return self


class Statistics:
    """What one variant has done since it was loaded; touched on the event loop only."""

    __slots__ = ("batches", "compute", "executions", "failures", "last_inference_ms", "queue", "samples", "success")

    def __init__(self) -> None:
        self.last_inference_ms = 0
        self.samples = 0
        self.executions = 0
        self.failures = 0
        self.success = Span()
        self.queue = Span()
        self.compute = Span()
        self.batches: dict[int, Span] = {}

    def batch(
        self,
        *,
        requests: int,
        samples: int,
        batch_samples: int,
        queue_ns: int,
        compute_ns: int,
        total_ns: int,
        ended_ms: int,
    ) -> None:
        """Count one batch of `batch_samples` that was computed and committed.

        `requests` and `samples` are those that were answered, `queue_ns` and `total_ns` sums over these requests.
        """
        self.last_inference_ms = max(self.last_inference_ms, ended_ms)
        self.samples += samples
        self.executions += 1
        self.success.add(requests, total_ns)
        self.queue.add(requests, queue_ns)
        self.compute.add(requests, compute_ns * requests)
        self.batches.setdefault(batch_samples, Span()).add(1, compute_ns)

    def failed(self) -> None:
        """Count one request that got an error after it was queued."""
        self.failures += 1

    def add(self, other: "Statistics") -> None:
        """Add the counts of another variant of the same model."""
        self.last_inference_ms = max(self.last_inference_ms, other.last_inference_ms)
        self.samples += other.samples
        self.executions += other.executions
        self.failures += other.failures
        self.success += other.success
        self.queue += other.queue
        self.compute += other.compute
        for size, span in other.batches.items():
            self.batches.setdefault(size, Span()).add(span.count, span.ns)
