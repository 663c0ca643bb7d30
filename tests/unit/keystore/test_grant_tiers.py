"""Grants of packages whose tiers have keys: each licence gets its own tier's key and no more (rules G-1 to G-6)."""

from pathlib import Path
from typing import Any

import pytest

from support.keys import BUYER, CONTENT_KEY, INPUT_KEY, ISSUER, ISSUERS, NODE, PACKAGE_ID, PLAIN_SECRETS, grant, licence
from tessera.keystore import grant as grants
from tessera.keystore import jws
from tessera.keystore.errors import Denied, Malformed, WrongKey
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.licence import Licence, Terms
from tessera.keystore.secrets import SecretBytes, TierSecret
from tessera.keystore.tiers import TierKey

TIER_KEY = TierKey(PACKAGE_ID, 3, TierSecret(bytes([0x71]) * 32))
KEYED = PackageSecrets(PACKAGE_ID, CONTENT_KEY, INPUT_KEY, TIER_KEY)
PLAIN = PackageSecrets(PACKAGE_ID, CONTENT_KEY, None, TIER_KEY)


def of_tier(tier: int) -> Licence:
    """Return a licence for `tier` with plain inputs."""
    return licence(Terms("digits", tier=tier))


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_a_grant_carries_the_key_of_its_licences_tier(tier: int) -> None:
    """The node learns that tier's key, from which those below follow and none above; the buyer learns nothing of it."""
    mine = of_tier(tier)
    found = grants.verify(grant(mine, secrets=PLAIN).token, mine, ISSUERS)
    key = grants.open_for_node(found, NODE).tier_key
    assert key is not None
    assert (found.tier, key) == (tier, TIER_KEY.at(tier))
    assert key.at(1) == TIER_KEY.at(1)
    if tier < 3:
        with pytest.raises(WrongKey):
            key.at(tier + 1)
    with pytest.raises(WrongKey):
        BUYER.open(found.tier_key_box or b"")
    shown = repr(found) + repr(grants.open_for_node(found, NODE)) + repr(PLAIN)
    assert key.secret.reveal().hex()[:16] not in shown
    assert "box" not in shown


def test_an_upgrade_is_a_licence_and_one_key() -> None:
    """For the same package a higher licence's grant brings another tier key; content key and package stay."""
    low, high = (grant(of_tier(tier), secrets=PLAIN) for tier in (1, 3))
    assert low.package_id == high.package_id
    assert grants.open_for_node(low, NODE).content_key == grants.open_for_node(high, NODE).content_key
    assert len(high.token) < 2048


def test_no_licence_gets_a_tier_that_the_package_lacks() -> None:
    """Above the top it is `tier-unavailable`, before anything is sealed."""
    for tier in (4, 255):
        with pytest.raises(Denied) as caught:
            grant(of_tier(tier), secrets=PLAIN)
        assert caught.value.reason == "tier-unavailable"
    assert grant(of_tier(9), secrets=PLAIN_SECRETS).tier is None  # a package without tier keys is judged at the node


def forged(of: Licence, **change: Any) -> grants.Grant:
    """Return a grant of `of` that the issuer really signed, with some claims exchanged; None takes one out."""
    claims = jws.parse(grant(of, secrets=PLAIN).token, typ=grants.TYP).claims
    inner = {name: value for name, value in (claims["tessera"] | change).items() if value is not None}
    return grants.verify(jws.sign(grants.TYP, claims | {"tessera": inner}, ISSUER), of, ISSUERS)


def test_tier_keys_cannot_be_moved() -> None:
    """A tier key of another licence, tier, purpose or package does not open; the tier is always the licence's."""
    mine = of_tier(2)
    low, high = (
        jws.parse(grant(of, secrets=PLAIN).token, typ=grants.TYP).claims["tessera"] for of in (mine, of_tier(3))
    )
    moved: list[dict[str, Any]] = [
        {"tier_key_box": high["tier_key_box"]},
        {"tier_key_box": low["content_key_box"]},
        {"content_key_box": low["tier_key_box"]},
        {"package_id": "ff" * 16},
    ]
    for change in moved:
        with pytest.raises(Denied) as caught:
            grants.open_for_node(forged(mine, **change), NODE)
        assert caught.value.reason == "grant-mismatch"
    with pytest.raises(Denied) as caught:
        forged(mine, tier=3, tier_key_box=high["tier_key_box"])
    assert caught.value.reason == "grant-mismatch"


OTHER_TIERS: tuple[Any, ...] = (2.0, 0, 17, "2", True, None, [])
OTHER_BOXES: tuple[Any, ...] = (1, "A=", "A" * 1000, None)


@pytest.mark.parametrize(
    "change", [*({"tier": value} for value in OTHER_TIERS), *({"tier_key_box": value} for value in OTHER_BOXES)]
)
def test_other_forms_are_malformed(change: dict[str, Any]) -> None:
    """Types and ranges are exact, and tier and key come together."""
    with pytest.raises(Malformed):
        forged(of_tier(2), **change)


@pytest.mark.parametrize("secrets", [KEYED, PLAIN])
def test_secrets_come_back(tmp_path: Path, secrets: PackageSecrets) -> None:
    """One secret and back, and through a key file."""
    assert PackageSecrets.from_secret(secrets.to_secret()) == secrets
    grants.save_package_secrets(tmp_path / "open", secrets)
    assert grants.load_package_secrets(tmp_path / "open") == secrets


def test_secrets_of_a_package_with_tiers() -> None:
    """Rule G-6, second form: the top tier and its key; sizes, versions and tiers outside it are `Malformed`."""
    raw = KEYED.to_secret().reveal()
    assert (len(raw), raw[0], raw[49]) == (114, 2, 3)
    assert len(PLAIN.to_secret()) == 82
    assert len(PLAIN_SECRETS.to_secret()) == 49
    for broken in (raw[:-1], raw + b"x", b"\1" + raw[1:], b"\3" + raw[1:], raw[:49] + b"\0" + raw[50:], b""):
        with pytest.raises(Malformed):
            PackageSecrets.from_secret(SecretBytes(broken))
    with pytest.raises(Malformed):
        PackageSecrets("ff" * 16, CONTENT_KEY, None, TIER_KEY)
