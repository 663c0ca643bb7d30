"""What admission needs from the rest of the appliance, as narrow as it can be said."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tessera.keystore.usage import UsageRecord

ModelState = Literal["published", "loading", "ready", "unloaded", "failed"]
"""`published`: here and never decrypted, because no grant has brought its key yet; `unloaded`: by the operator's
wish."""


@dataclass(frozen=True)
class Offer:
    """One published package, as far as admission cares."""

    package_id: str
    """32 hexadecimal digits."""
    issuer_id: str
    """Key id of the vendor who sealed it; only that vendor's licences open it (rule W-11, step 9)."""
    model: str
    """Model name."""
    version: int
    """Model version, positive."""
    tiers: frozenset[int]
    """Tiers that the package has."""
    input_key_id: str | None
    """Id of the input key its inputs are transformed with; None when they are plain."""
    max_batch: int
    """Most samples in one request."""
    input_key_ids: frozenset[str] = frozenset()
    """Ids of the bound keys of a model for several buyers; `input_key_id` is None then."""
    tier_keys: bool = False
    """Whether its tiers have keys, so that a grant must carry one."""


class ModelDirectory(Protocol):
    """The published packages and whether they can run."""

    def offers(self, model: str) -> Sequence[Offer]:
        """Return the published packages of this name, newest version first."""
        ...

    def state(self, package_id: str) -> ModelState:
        """Return the state of a published package."""
        ...

    def serves(self, package_id: str, tier: int) -> bool:
        """Return whether the weights of `tier` are there, so that it can be served at once."""
        ...


class UsageView(Protocol):
    """The durable ledger, for reading."""

    def samples_used(self, licence_id: str, since_us: int) -> int:
        """Return the samples charged to a licence at or after a Unix time in microseconds."""
        ...

    def find_usage(self, licence_id: str, request_id: str) -> UsageRecord | None:
        """Return the record of a charged request, or None."""
        ...

    def clock_mark_us(self) -> int:
        """Return the newest time on record, Unix microseconds."""
        ...
