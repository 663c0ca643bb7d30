"""How a licence and its grant are cut from a package's secrets: for `tessera licence issue` and for the demo."""

from dataclasses import dataclass
from pathlib import Path

from tessera.cli import kinds
from tessera.cli.reading import reading
from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore.copyright import CopyrightRecord, bound_key, buyer_input_key
from tessera.keystore.errors import Conflict, NotFound
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.identity import Identity, PublicIdentity
from tessera.keystore.licence import ExpiryPolicy, Licence, LicenceFile, Quota, Terms
from tessera.keystore.package import Manifest, open_package
from tessera.keystore.proof import input_key_id

STOP = ExpiryPolicy("stop")


@dataclass(frozen=True)
class Offer:
    """What one buyer gets; times are Unix seconds; the tier is a number, a name, or None for the package's best."""

    package: Path
    secrets: Path
    buyer: PublicIdentity
    node: PublicIdentity
    not_before_s: int
    expires_at_s: int
    quota: Quota | None = None
    rate_samples_per_s: int | None = None
    sessions: int = 4
    tier: int | str | None = None
    expiry: ExpiryPolicy = STOP
    record: CopyrightRecord | None = None
    """The buyer's copyright record, for a package that was trained for records."""
    passphrase_file: Path | None = None


def cut(offer: Offer, out: Path, *, issuer: Identity, now_s: int) -> Licence:
    """Issue a licence and its grant, write both to `out`, return the licence.

    Raises `Tampered` for a package that is not as it was sealed, `Conflict` for one of another issuer, for foreign
    secrets and for a record that is missing or not wanted, `NotFound` for a tier that the package lacks
    ("tier-unavailable") and for a record that it was not trained for.
    """
    from tessera.cli import loading

    manifest = _own_manifest(offer.package, issuer)
    secrets = loading.package_secrets(offer.secrets, offer.passphrase_file)
    if secrets.package_id != manifest.package_id:
        raise Conflict(
            f"{offer.secrets} holds the keys of another package than {offer.package}", remedy="check --secrets"
        )
    licence = licences.issue(
        _terms(offer, manifest, secrets),
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


def _own_manifest(package: Path, issuer: Identity) -> Manifest:
    """Return what `issuer` itself has signed of the package: a licence states parts of it under the same key."""
    from tessera.cli import loading

    if loading.manifest(package).issuer_id != issuer.key_id:
        raise Conflict(
            f"{package} was sealed by another issuer",
            remedy="give --issuer the key that sealed it; nodes take nobody else's licences for a package",
        )
    own = {issuer.key_id: issuer.public.verify_key}
    with reading(package, kinds.PACKAGE), open_package(package, own) as sealed:
        return sealed.manifest


def _tier(wanted: int | str, option: str, offer: Offer, manifest: Manifest) -> int:
    """Return the number of the tier with this number, else with this name, which one tier alone must have."""
    numbers = [tier.tier for tier in manifest.tiers if str(tier.tier) == str(wanted)]
    found = numbers or [tier.tier for tier in manifest.tiers if tier.name == wanted]
    if len(found) == 1:
        return found[0]
    raise NotFound(
        f"{option} {wanted}: {offer.package} has no such tier",
        reason="tier-unavailable",
        remedy=f"choose one of: {', '.join(f'{tier.tier} ({tier.name})' for tier in manifest.tiers)}",
    )


def _input_key_id(offer: Offer, manifest: Manifest, secrets: PackageSecrets) -> str | None:
    """Return the id of the key that the licence's inputs are made with; of a bound key where there is a record."""
    if offer.record is None:
        if manifest.input_key_ids:
            raise Conflict(
                f"{offer.package} answers buyers by their copyright records, and none was given",
                remedy="give --copyright FILE with the buyer's record, as the model was trained for",
            )
        return manifest.input_key_id
    if secrets.input_key is None or not manifest.input_key_ids:
        raise Conflict(f"{offer.package} was not trained for copyright records", remedy="leave --copyright out")
    found = input_key_id(bound_key(buyer_input_key(secrets.input_key, offer.record), offer.record))
    if found not in manifest.input_key_ids:
        raise NotFound(
            f"{offer.package} was not trained for {offer.record.label}",
            remedy="check the record, letter by letter; train the model again for a new buyer",
        )
    return found


def _terms(offer: Offer, manifest: Manifest, secrets: PackageSecrets) -> Terms:
    best = max(tier.tier for tier in manifest.tiers)
    tier = best if offer.tier is None else _tier(offer.tier, "--tier", offer, manifest)
    if offer.expiry.tier is not None and _tier(offer.expiry.tier, "--degrade-to", offer, manifest) > tier:
        raise Conflict(
            f"--degrade-to {offer.expiry.tier} is above the licence's own tier {tier}",
            remedy="degrade to a tier at or below the licence's",
        )
    return Terms(
        model=manifest.model,
        min_version=manifest.version,
        tier=tier,
        input_key_id=_input_key_id(offer, manifest, secrets),
        copyright=offer.record,
        quota=offer.quota,
        rate_samples_per_s=offer.rate_samples_per_s,
        sessions=offer.sessions,
        expiry=offer.expiry,
    )
