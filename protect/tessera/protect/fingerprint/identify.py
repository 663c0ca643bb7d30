"""Whose copy a leaked file is: buyers ranked by how well their chips fit it, with a significance that is exact.

Let g be the weights that a leaked tensor gives to each chip, and s a record's chips. z = sum(s * g) / |g|. Somebody
whose chips had no part in the making of the file has chips that are independent of g, and then Hoeffding's inequality
(1963, theorem 2) holds for any g whatever: P(|z| >= t) <= 2 exp(-t^2 / 2). No law of the weights, the training or the
thief enters. It is asked of all tensors together and of each alone, since a thief may leave the mark in one layer only.
Both sides count: who has two copies can add the difference of them once more, and a mark that was taken
out with another's help stands with the opposite sign.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import Tensor

from tessera.keystore.copyright import CopyrightRecord
from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.keystore.secrets import InputKey
from tessera.protect.bundle import Bundle
from tessera.protect.fingerprint.chips import carriers, draw_chips, fingerprint_key
from tessera.protect.fingerprint.embed import refuse_tiers
from tessera.protect.fingerprint.evidence import Evidence, evidence, pair
from tessera.protect.fingerprint.matching import Floats

SIGNIFICANT: Final = 1e-6
"""A buyer is named when chance would give any of the records tried as good a fit less often than this."""
CARRIES: Final = 1e-2
"""A tensor counts as carrying a mark below this, times the number of tensors."""


@dataclass(frozen=True)
class Heard:
    """One tensor that the original and the leaked file have in common."""

    name: str
    leaked_name: str
    how: str
    """What was undone before it was compared, as `tessera.protect.fingerprint.align.Aligned.how`."""
    distance: float
    """Median difference from the original, in root mean squares of rows."""
    values: int
    """How many of its values say something."""


@dataclass(frozen=True)
class FingerprintSuspect:
    """One record and how well its chips fit."""

    record: CopyrightRecord
    z: float
    """About 0, give or take 1, for a stranger. Far below 0 for a copy that was used to take its own mark out."""
    log10_p: float
    """Logarithm of the bound on the chance that any of the records tried fits as well, in all or in one tensor, without
    having had a part in the file; at most 0."""
    named: bool
    by_tensor: tuple[float, ...]
    """The statistic of each tensor alone, in the order of `Identification.tensors`."""

    @property
    def strongest(self) -> float:
        """The statistic that is furthest from 0, of all tensors together and of each."""
        return max((self.z, *self.by_tensor), key=abs)

    @property
    def p_value(self) -> float:
        """The same chance as a number; 0.0 where it is too small for one."""
        return 10.0**self.log10_p if self.log10_p > -300 else 0.0

    @property
    def carried_by(self) -> int:
        """How many tensors carry the record's mark beyond doubt, each taken alone."""
        limit = math.log(CARRIES / max(len(self.by_tensor), 1))
        return sum(math.log(2) - z * z / 2 < limit for z in self.by_tensor)


@dataclass(frozen=True)
class Identification:
    """Buyers, best first, and what the leaked file has in common with the original."""

    suspects: tuple[FingerprintSuspect, ...]
    tensors: tuple[Heard, ...]
    missing: tuple[str, ...]
    """Marked tensors of the original for which the leaked file has none."""
    significance: float

    @property
    def named(self) -> tuple[FingerprintSuspect, ...]:
        """Those whose copies the file was made from; several when copies were mixed."""
        return tuple(suspect for suspect in self.suspects if suspect.named)

    @property
    def values(self) -> int:
        """How many values differ from the original's; 0 when the leaked file is the original itself."""
        return sum(one.values for one in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Return the object printed with --json."""
        return {
            "significant_below": self.significance,
            "values": self.values,
            "suspects": [
                {
                    **one.record.to_json(),
                    "z": round(one.z, 3), "strongest": round(one.strongest, 3), "p_value": one.p_value,
                    "log10_p": round(one.log10_p, 2), "named": one.named,
                    "tensors_with_mark": one.carried_by,
                }
                for one in self.suspects
            ],
            "tensors": [
                {
                    "name": one.name, "leaked_name": one.leaked_name, "compared": one.how,
                    "distance": round(one.distance, 5), "values": one.values,
                    "z": round(self.suspects[0].by_tensor[number], 3),
                }
                for number, one in enumerate(self.tensors)
            ],
            "missing": list(self.missing),
        }  # fmt: skip


def identify(
    original: Bundle,
    leaked: Bundle | Mapping[str, Tensor],
    key: InputKey,
    records: Sequence[CopyrightRecord],
    *,
    significance: float = SIGNIFICANT,
    progress: Callable[[int, int], None] | None = None,
) -> Identification:
    """Return how well each record's mark, made with `key`, fits the weights that leaked.

    `original` is the bundle that copies were made from. Raises `ApiMisuse` without records, with one twice, or for a
    significance outside 0 to 1; `Malformed` when the leaked weights have no marked tensor in common with the original,
    and for an original in tiers.
    """
    if not records or len(set(records)) != len(records):
        raise ApiMisuse("an identification needs records, each once")
    if not 0 < significance < 1:
        raise ApiMisuse(f"a significance is between 0 and 1, not {significance}")
    refuse_tiers(original)
    ours, theirs = original.tensors, leaked.tensors if isinstance(leaked, Bundle) else leaked
    pairs = pair(ours, theirs)
    if not pairs:
        raise Malformed(
            "the leaked weights have no marked tensor in common with the original, by name or shape",
            remedy="Give the bundle that buyers' copies were made from.",
        )
    keys = [fingerprint_key(key, record) for record in records]
    fits, energies, heard = [], [], []
    for number, found in enumerate(evidence(ours, theirs, pairs)):
        fits.append([float(draw_chips(one, found.name, found.weights.size) @ found.weights) for one in keys])
        energies.append(float(found.weights @ found.weights))
        heard.append(_heard(found))
        if progress is not None:
            progress(number + 1, len(pairs))
    suspects = _ranked(records, np.array(fits), np.array(energies), significance)
    missing = tuple(name for name in carriers(ours) if name not in pairs)
    return Identification(suspects, tuple(heard), missing, significance)


def log10_bound(z: float, trials: int) -> float:
    """Return log10 of Hoeffding's bound for the furthest of so many statistics, at most 0 (rule F-9)."""
    return min(0.0, math.log10(2 * trials) - z * z / (2 * math.log(10)))


def _ranked(
    records: Sequence[CopyrightRecord], fits: Floats, energies: Floats, significance: float
) -> tuple[FingerprintSuspect, ...]:
    """Return the suspects, best first; `fits` is (tensors, records)."""
    total = math.sqrt(float(energies.sum()))
    each = np.sqrt(energies)[:, None]
    by_tensor = np.divide(fits, each, out=np.zeros_like(fits), where=each > 0)
    suspects = []
    for number, record in enumerate(records):
        z = float(fits[:, number].sum()) / total if total else 0.0
        each_z: list[float] = by_tensor[:, number].tolist()
        chance = log10_bound(max((z, *each_z), key=abs), len(records) * (len(each_z) + 1))
        named = chance < math.log10(significance)
        suspects.append(FingerprintSuspect(record, z, chance, named, tuple(each_z)))
    return tuple(sorted(suspects, key=lambda one: (-abs(one.strongest), one.record.label)))


def _heard(found: Evidence) -> Heard:
    values = int(np.count_nonzero(found.weights))
    return Heard(found.name, found.leaked_name, found.how, found.distance, values)
