"""Tier keys: a chain, in which a tier's key gives the keys of every tier below it and of none above (rules P-35, P-36).

top = TierKey.generate(package_id, 5)             by the vendor, when the package is sealed
top.at(3)                                         what a licence for tier 3 carries
top.at(3).at(4)                                   WrongKey
"""

from dataclasses import dataclass, field
from typing import Final, Self

from tessera.keystore import kdf
from tessera.keystore._claims import HEX_16_BYTES, check_integer, check_text
from tessera.keystore.errors import WrongKey
from tessera.keystore.secrets import TierSecret

MAX_TIERS: Final = 16
"""Most tiers of one package."""

CHAIN_LABEL: Final = "tessera/v1/package/tier/"


@dataclass(frozen=True, slots=True)
class TierKey:
    """The key of one tier of one package. Construction raises `Malformed` for a tier outside 1 … 16."""

    package_id: str
    """32 hexadecimal digits; the chain of one package is worth nothing for another."""
    tier: int
    secret: TierSecret = field(repr=False)

    def __post_init__(self) -> None:
        check_text(self.package_id, HEX_16_BYTES, "package_id")
        check_integer(self.tier, 1, MAX_TIERS, "a tier key's tier")

    @classmethod
    def generate(cls, package_id: str, tier: int) -> Self:
        """Return a fresh key for the top tier of a package."""
        return cls(package_id, tier, TierSecret.generate())

    def at(self, tier: int) -> "TierKey":
        """Return the key of a tier at or below this one. Raises `WrongKey` for one above, which it cannot give."""
        check_integer(tier, 1, MAX_TIERS, "a tier")
        if tier > self.tier:
            raise WrongKey(f"a key of tier {self.tier} opens nothing of tier {tier}")
        secret, salt = self.secret, bytes.fromhex(self.package_id)
        for below in range(self.tier - 1, tier - 1, -1):
            secret = TierSecret(kdf.derive(secret.reveal(), f"{CHAIN_LABEL}{below}", salt=salt))
        return TierKey(self.package_id, tier, secret)
