"""Misuse of tier keys: somebody who holds tier 2's key and the whole file tries to open tier 3.

Every attempt is made on the sealed package by its real reader, or past the reader's check of the key by its cipher. It
has to end in an authentication failure; anything else counts as opened. So that the attack could fail, the right keys
go the same two ways first and have to open.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import torch
from safetensors import safe_open

from tessera.keystore import kdf
from tessera.keystore.errors import Tampered, TesseraError, WrongKey
from tessera.keystore.package import Manifest, aead
from tessera.keystore.package.parts import Part
from tessera.keystore.secrets import TierSecret
from tessera.keystore.tiers import CHAIN_LABEL, TierKey
from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.cut import Vault
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject
from tessera.protect.audit.tier_use import cut_of

NAME: Final = "tier-keys"
CONTROL, CONTROL_CIPHER = "control: right keys, by the reader", "control: right keys, by the cipher alone"
CONTROLS: Final = (CONTROL, CONTROL_CIPHER)
"""The labels of the rows that have to open everything."""

Attempt = Callable[[], object]
"""Returns when something was opened; raises an authentication failure when not."""


def run(
    subject: Subject,
    sample: Sample,  # noqa: ARG001 - no image is needed
    budget: Budget,  # noqa: ARG001 - at most a few hundred attempts
    meter: Meter,
    *,
    seed: int,  # noqa: ARG001 - keys are not drawn
    device: torch.device,  # noqa: ARG001 - the cipher runs on the CPU
) -> AttackResult:
    """Make every attempt on every tier above each lower one; none is left out for time."""
    with cut_of(subject).sealed() as vault:
        bench = _Bench(vault)
        wanted = bench.attempts()
        meter.expect(len(wanted))
        rows = []
        for label, attempts in wanted.items():
            if attempts:
                rows.append(_tried(label, attempts))
            meter.did()
    return AttackResult(name=NAME, rows=tuple(rows), scale="opened")


def _tried(label: str, attempts: list[Attempt]) -> Row:
    refusals: Counter[str] = Counter()
    for attempt in attempts:
        refusals[_refusal(attempt)] += 1
    opened = refusals.pop("", 0)
    note = ", ".join(f"{count} {words}" for words, count in sorted(refusals.items()))
    return Row(label=label, score=opened / len(attempts), images=0, work=len(attempts), unit="attempts", note=note)


def _refusal(attempt: Attempt) -> str:
    """Return how an attempt was refused; empty when it opened something, be it that what came out was no patch."""
    try:
        attempt()
    except WrongKey:
        return "refused: wrong key"
    except Tampered:
        return "refused: authentication failed"
    except TesseraError:
        return ""
    return ""


class _Bench:
    """A sealed package with every key that a holder of a lower tier has or can make."""

    def __init__(self, vault: Vault) -> None:
        self._package, self._top = vault.package, vault.top
        self._manifest = vault.package.manifest
        self._parts = {int(part.name): part for part in self._manifest.patches}
        with safe_open(vault.path, framework="numpy") as file:
            self._sealed = {tier: bytes(file.get_tensor(part.key)) for tier, part in self._parts.items()}

    def attempts(self) -> dict[str, list[Attempt]]:
        """Return what is tried, by the label of its row."""
        tiers = range(1, self._top.tier + 1)
        right = {tier: self._top.at(tier) for tier in tiers}
        above = [(right[low], high) for low in tiers for high in range(low + 1, self._top.tier + 1)]
        other = TierKey.generate("0" * 32, self._top.tier)
        return {
            CONTROL: [self._read(right[tier]) for tier in tiers],
            CONTROL_CIPHER: [self._decrypt(right[tier].secret, tier, self._sealed[tier]) for tier in tiers],
            "a lower key asked for a higher tier": [self._asked(key, high) for key, high in above],
            "a lower key passed off as a higher one": [self._read(replace(key, tier=high)) for key, high in above],
            "keys derived upwards from a lower one": [
                self._read(TierKey(key.package_id, high, made)) for key, high in above for made in _upwards(key, high)
            ],
            "a lower key, past the check of the key": [
                self._decrypt(key.secret, high, self._sealed[high]) for key, high in above
            ],
            "a lower tier's patch in a higher one's place": [
                self._decrypt(key.secret, high, self._sealed[key.tier], like=key.tier) for key, high in above
            ],
            "the same, opened with the higher key": [
                self._decrypt(right[high].secret, high, self._sealed[key.tier], like=key.tier) for key, high in above
            ],
            "another package's tier keys": [self._read(replace(other.at(tier), tier=tier)) for tier in tiers],
            "no tier key: zeros, by the cipher": [
                self._decrypt(TierSecret(bytes(32)), tier, self._sealed[tier]) for tier in tiers
            ],
        }

    def _asked(self, key: TierKey, high: int) -> Attempt:
        return lambda: self._package.read_patch(key.at(high))

    def _read(self, key: TierKey) -> Attempt:
        return lambda: self._package.read_patch(key)

    def _decrypt(self, secret: TierSecret, tier: int, sealed: bytes, like: int | None = None) -> Attempt:
        """Open `sealed` as the patch of `tier`; with `like`, as one of the same size as that tier's."""
        part = self._parts[tier]
        if like is not None:
            there = self._parts[like]
            part = replace(part, size=there.size, shape=there.shape, chunks=there.chunks)
        return lambda: _decrypted(self._manifest, secret, part, sealed)


def _decrypted(manifest: Manifest, secret: TierSecret, part: Part, sealed: bytes) -> bytes:
    """Return the plaintext of a part, whatever the key's commitment says. Raises `Tampered`."""
    key = aead.package_key(secret, manifest.package_id, manifest.salt)
    cipher = aead.PartCipher(manifest.algorithm, key, manifest.package_id, part, manifest.chunk_bytes)
    plain, step = bytearray(part.size), manifest.chunk_bytes
    for index in range(part.chunks):
        into = memoryview(plain)[index * step : (index + 1) * step]
        begin = index * aead.sealed_bytes(step)
        cipher.open_into(index, memoryview(sealed)[begin : begin + aead.sealed_bytes(len(into))], into)
    return bytes(plain)


def _upwards(key: TierKey, high: int) -> Iterator[TierSecret]:
    """Yield what the chain's own step gives when walked the wrong way: once, and as often as tiers lie between."""
    salt = bytes.fromhex(key.package_id)
    yield TierSecret(kdf.derive(key.secret.reveal(), f"{CHAIN_LABEL}{high}", salt=salt))
    secret = key.secret
    for tier in range(key.tier + 1, high + 1):
        secret = TierSecret(kdf.derive(secret.reveal(), f"{CHAIN_LABEL}{tier}", salt=salt))
    yield secret
