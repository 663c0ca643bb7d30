"""How a licence and its grant are cut from a package's secrets: for `tessera licence issue` and for the demo."""

from dataclasses import dataclass
from pathlib import Path

from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore.errors import Conflict
from tessera.keystore.identity import Identity, PublicIdentity
from tessera.keystore.licence import ExpiryPolicy, Licence, LicenceFile, Quota, Terms
from tessera.keystore.package import Manifest, inspect_package

STOP = ExpiryPolicy("stop")


@dataclass(frozen=True)
class Offer:
    """What one buyer gets; times are Unix seconds, `tier=None` means the package's best."""

    package: Path
    secrets: Path
    buyer: PublicIdentity
    node: PublicIdentity
    not_before_s: int
    expires_at_s: int
    quota: Quota | None = None
    rate_samples_per_s: int | None = None
    sessions: int = 4
    tier: int | None = None
    expiry: ExpiryPolicy = STOP
    passphrase_file: Path | None = None


def cut(offer: Offer, out: Path, *, issuer: Identity, now_s: int) -> Licence:
    """Issue a licence and its grant, write both to `out`, return the licence. Raises `Conflict` for foreign secrets."""
    from tessera.cli.loading import existing
    from tessera.cli.passphrases import lazily

    manifest = inspect_package(existing(offer.package, "package"))
    secrets = grants.load_package_secrets(
        existing(offer.secrets, "package secrets file"), lazily(offer.secrets.name, offer.passphrase_file)
    )
    if secrets.package_id != manifest.package_id:
        raise Conflict(
            f"{offer.secrets} holds the keys of another package than {offer.package}", remedy="check --secrets"
        )
    licence = licences.issue(
        _terms(offer, manifest),
        issuer=issuer,
        buyer=offer.buyer,
        node=offer.node,
        not_before_s=offer.not_before_s,
        expires_at_s=offer.expires_at_s,
        now_s=now_s,
    )
    grant = grants.issue(licence, issuer=issuer, secrets=secrets, buyer=offer.buyer, node=offer.node, now_s=now_s)
    licences.write_licence_file(out, LicenceFile(licence.token, grant.token))
    return licence


def _terms(offer: Offer, manifest: Manifest) -> Terms:
    return Terms(
        model=manifest.model,
        min_version=manifest.version,
        tier=offer.tier or max(tier.tier for tier in manifest.tiers),
        input_key_id=manifest.input_key_id,
        quota=offer.quota,
        rate_samples_per_s=offer.rate_samples_per_s,
        sessions=offer.sessions,
        expiry=offer.expiry,
    )
