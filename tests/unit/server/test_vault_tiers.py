"""Where a node's tier keys come from: the grants that are installed, else the package's secrets."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import keys
from support.packages import seeded_issuer
from support.stores import licensed, make_store, trusted_package
from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore.errors import NotFound, SealedError
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.licence import Terms
from tessera.keystore.secrets import TierSecret
from tessera.keystore.store import Store
from tessera.keystore.tiers import TierKey
from tessera.server.vault import Vault

TOP = TierKey(keys.PACKAGE_ID, 4, TierSecret(bytes([9]) * 32))
SECRETS = PackageSecrets(keys.PACKAGE_ID, keys.CONTENT_KEY, None, TOP)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An unsealed store that trusts the issuer."""
    with make_store(tmp_path / "store") as made:
        made.trust_issuer(keys.ISSUER.public)
        yield made


def install(store: Store, tier: int, secrets: PackageSecrets = SECRETS) -> None:
    """Install a licence for `tier` with its grant."""
    licence = licences.issue(
        Terms("digits", tier=tier),
        issuer=keys.ISSUER,
        buyer=keys.BUYER.public,
        node=store.node,
        not_before_s=keys.NOW_S,
        expires_at_s=keys.NOW_S + 60,
        now_s=keys.NOW_S,
        licence_id=f"lic-{tier}",
    )
    grant = grants.issue(
        licence, issuer=keys.ISSUER, secrets=secrets, buyer=keys.BUYER.public, node=store.node, now_s=keys.NOW_S
    )
    store.install_licence(licence, grant, now_s=keys.NOW_S)


def missing(vault: Vault, package_id: str, tier: int | None) -> None:
    """Expect that there is no such key."""
    with pytest.raises(NotFound) as caught:
        vault.tier_key(package_id, tier)
    assert caught.value.reason == "grant-missing"


def test_another_issuers_grant_is_no_key_of_the_package(store: Store, tmp_path: Path) -> None:
    """Who is trusted for models of their own may write grants for anything; they count for their own packages only."""
    small = trusted_package(store, tmp_path / "digits.tessera")
    store.publish(tmp_path / "digits.tessera", now_s=keys.NOW_S)
    store.trust_issuer(keys.OTHER_ISSUER.public)
    package_id = small.manifest.package_id
    false = PackageSecrets(package_id, keys.CONTENT_KEY, keys.INPUT_KEY, TierKey(package_id, 1, TOP.secret))
    foreign = licensed(store, licence_id="foreign", issuer=keys.OTHER_ISSUER, secrets=false)
    store.install_licence(*foreign, now_s=keys.NOW_S)
    vault = Vault(store)
    missing(vault, package_id, None)
    assert not vault.has_content_key(package_id)
    own = licensed(store, issuer=seeded_issuer(), secrets=PackageSecrets(package_id, small.content_key, keys.INPUT_KEY))
    store.install_licence(*own, now_s=keys.NOW_S + 1)
    assert vault.content_key(package_id) == small.content_key


def test_grants_give_their_tier_and_those_below(store: Store) -> None:
    """The highest grant decides what there is; an upgrade adds what it brings, and no other package gains by it."""
    vault = Vault(store)
    missing(vault, keys.PACKAGE_ID, None)
    install(store, 1, PackageSecrets(keys.PACKAGE_ID, keys.CONTENT_KEY, None))  # a package may be published anew
    missing(vault, keys.PACKAGE_ID, None)
    install(store, 2)
    assert vault.tier_key(keys.PACKAGE_ID) == vault.tier_key(keys.PACKAGE_ID, 2) == TOP.at(2)
    assert vault.tier_key(keys.PACKAGE_ID, 1) == TOP.at(1)
    missing(vault, keys.PACKAGE_ID, 3)
    install(store, 4)
    assert [vault.tier_key(keys.PACKAGE_ID, tier) for tier in (1, 2, 3, 4)] == [TOP.at(tier) for tier in (1, 2, 3, 4)]
    assert vault.tier_key(keys.PACKAGE_ID) == TOP
    missing(vault, "ff" * 16, None)


def test_a_node_that_issues_licences_has_the_top_key(store: Store) -> None:
    """The package's secrets will do, for tiers that there are."""
    vault = Vault(store)
    store.put_package_secrets(SECRETS)
    assert vault.tier_key(keys.PACKAGE_ID) == TOP
    assert vault.tier_key(keys.PACKAGE_ID, 2) == TOP.at(2)
    missing(vault, keys.PACKAGE_ID, 5)
    assert store.package_secrets(keys.PACKAGE_ID) == SECRETS
    install(store, 1)
    assert vault.tier_key(keys.PACKAGE_ID) == TOP.at(1)


def test_sealed_there_are_no_keys(store: Store) -> None:
    """Grants are readable and their boxes are not."""
    install(store, 3)
    vault = Vault(store)
    store.seal()
    with pytest.raises(SealedError):
        vault.tier_key(keys.PACKAGE_ID, 1)
