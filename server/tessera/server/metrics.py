"""What the appliance counts, in Prometheus form.

Label sets are bounded: rpc names, status codes and reasons come from fixed tables, models and tiers from what was
published; a licence, buyer, session or request id is never a label. Children are bound once and kept, because a look-up
by label costs more than the observation.
"""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from tessera.keystore.errors import REASONS

PHASES: Final = ("parse", "admit", "queue", "compute", "commit", "respond")
"""Where the time of one request goes, in order; rule W-66."""

_REQUEST_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_PHASE_BUCKETS: Final = (
    0.00002,
    0.00005,
    0.0001,
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.5,
    2.0,
    10.0,
)
_COMMIT_BUCKETS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)
_BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ModelMetrics:
    """The children of one model, bound once: `batch_samples`, `samples(tier, count)`, `loaded(tier, there)` and the
    depth of its queues.

    The depth is read at each scrape from the queues that asked to be watched, so waiting costs nothing on the hot path.
    """

    def __init__(self, model: str, batch: Histogram, queue: Gauge, samples: Counter, loaded: Gauge) -> None:
        self.batch_samples = batch.labels(model)
        queue.labels(model).set_function(lambda: float(sum(depth() for depth in self._queues)))
        self._queues: list[Callable[[], int]] = []
        self._samples = samples
        self._loaded = loaded
        self._model = model
        self._tiers: dict[int, Counter] = {}

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Add a queue whose waiting samples `depth` tells."""
        self._queues.append(depth)

    def forget_queue(self, depth: Callable[[], int]) -> None:
        """Take back `watch_queue(depth)`."""
        self._queues.remove(depth)

    def loaded(self, tier: int, there: bool) -> None:
        """Note whether the weights of `tier` are in memory."""
        self._loaded.labels(self._model, str(tier)).set(float(there))

    def samples(self, tier: int, count: int) -> None:
        """Add `count` charged samples served at `tier`."""
        child = self._tiers.get(tier)
        if child is None:
            child = self._tiers[tier] = self._samples.labels(self._model, str(tier))
        child.inc(count)


class Metrics:
    """Every metric of one appliance, in a registry of its own, so that two appliances in one process do not mix.

    All names begin with `tessera_`, durations are in seconds, and `promtool check metrics` accepts the page (rule
    W-66).
    """

    def __init__(self, *, version: str = "0") -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter("tessera_requests", "Calls answered.", ["rpc", "code"], registry=registry)
        self._request_seconds = Histogram(
            "tessera_request_seconds", "Duration of calls.", ["rpc"], buckets=_REQUEST_BUCKETS, registry=registry
        )
        phase = Histogram(
            "tessera_phase_seconds",
            "Time of one inference request by phase; compute and commit are observed once a batch.",
            ["phase"],
            buckets=_PHASE_BUCKETS,
            registry=registry,
        )
        bound = {name: phase.labels(name) for name in PHASES}
        self.parse, self.admit, self.queue = bound["parse"], bound["admit"], bound["queue"]
        self.compute, self.commit, self.respond = bound["compute"], bound["commit"], bound["respond"]
        self._batch = Histogram(
            "tessera_batch_samples", "Samples in one batch.", ["model"], buckets=_BATCH_BUCKETS, registry=registry
        )
        self._queue = Gauge("tessera_queue_samples", "Samples waiting for the device.", ["model"], registry=registry)
        self._samples = Counter("tessera_samples", "Samples charged.", ["model", "tier"], registry=registry)
        self._loaded = Gauge(
            "tessera_variant_loaded", "1 while a tier's weights are in memory.", ["model", "tier"], registry=registry
        )
        self._refusals = Counter("tessera_refusals", "Requests refused or failed.", ["reason"], registry=registry)
        self.ledger_commits = Counter("tessera_ledger_commits", "Durable ledger transactions.", registry=registry)
        self.ledger_records = Counter("tessera_ledger_records", "Usage records appended.", registry=registry)
        self.ledger_commit_seconds = Histogram(
            "tessera_ledger_commit_seconds",
            "Duration of ledger transactions.",
            buckets=_COMMIT_BUCKETS,
            registry=registry,
        )
        self._sessions = Gauge("tessera_sessions", "Live sessions.", registry=registry)
        self._sealed = Gauge("tessera_store_sealed", "1 while the store is sealed, else 0.", registry=registry)
        self._certificate = Gauge(
            "tessera_certificate_end_timestamp_seconds",
            "Unix time at which the server's certificate ends.",
            registry=registry,
        )
        Info("tessera_build", "Version of the running software.", registry=registry).info({"version": version})
        self._models: dict[str, ModelMetrics] = {}
        self._request_children: dict[tuple[str, str], Counter] = {}
        self._second_children: dict[str, Histogram] = {}
        # Every reason from the start, at 0: Prometheus' `increase` does not see the refusal with which a series begins,
        # and an alert on a full disk or a clock set back would stay silent.
        self._refusal_children = {reason: self._refusals.labels(reason) for reason in REASONS}

    def request(self, rpc: str, code: str, seconds: float) -> None:
        """Count one finished call; `rpc` is `Service/Method` of a registered method, `code` a gRPC status name."""
        child = self._request_children.get((rpc, code))
        if child is None:
            child = self._request_children[rpc, code] = self._requests.labels(rpc, code)
        child.inc()
        timer = self._second_children.get(rpc)
        if timer is None:
            timer = self._second_children[rpc] = self._request_seconds.labels(rpc)
        timer.observe(seconds)

    def refusal(self, reason: str) -> None:
        """Count one refusal; a reason outside `REASONS` is counted as `internal`, so the label set stays bounded."""
        self._refusal_children.get(reason, self._refusal_children["internal"]).inc()

    def model(self, name: str) -> ModelMetrics:
        """Return the children of the published model `name`, the same object each time."""
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = ModelMetrics(name, self._batch, self._queue, self._samples, self._loaded)
        return found

    def watch_sessions(self, count: Callable[[], float]) -> None:
        """Read the number of live sessions from `count` at each scrape."""
        self._sessions.set_function(count)

    def watch_sealed(self, sealed: Callable[[], bool]) -> None:
        """Read whether the store is sealed from `sealed` at each scrape."""
        self._sealed.set_function(lambda: float(sealed()))

    def watch_certificate(self, ends_at_s: Callable[[], float]) -> None:
        """Read the end of the server's certificate, Unix seconds, from `ends_at_s` at each scrape."""
        self._certificate.set_function(ends_at_s)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page and its content type, in the exposition format that the `Accept` header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
