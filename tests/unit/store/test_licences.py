"""Trusted issuers, installed licences and grants, revocation lists (rules S-22 to S-25)."""

import pytest

from support import keys
from support.stores import licensed
from tessera.keystore import grant as grants
from tessera.keystore import revocation
from tessera.keystore.errors import Conflict, Denied, Malformed, Unauthenticated
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.identity import Identity
from tessera.keystore.revocation import RevocationList
from tessera.keystore.store import Store


@pytest.fixture(autouse=True)
def _trusting(store: Store) -> None:
    store.trust_issuer(keys.ISSUER.public)


def _list(number: int, *licence_ids: str, issuer: Identity = keys.ISSUER) -> RevocationList:
    revoked = {licence_id: (keys.NOW_S, f"because of {licence_id}") for licence_id in licence_ids}
    return revocation.issue(number, revoked, issuer=issuer, now_s=keys.NOW_S)


def test_only_issuers_are_trusted(store: Store) -> None:
    """Another role is refused; trusting twice is one entry; the name is kept beside the key."""
    store.trust_issuer(keys.ISSUER.public)
    for identity in (keys.NODE, keys.BUYER):
        with pytest.raises(Malformed):
            store.trust_issuer(identity.public)
    assert store.issuers() == keys.ISSUERS
    assert store.issuer_names() == {keys.ISSUER.key_id: "vendor"}


def test_a_licence_is_kept_with_its_grant(store: Store) -> None:
    """What was installed is found by id and listed; installing it again changes nothing."""
    licence, grant = licensed(store)
    assert store.installed("lic-1") is None
    store.install_licence(licence, grant, now_s=keys.NOW_S)
    store.install_licence(licence, grant, now_s=keys.NOW_S)
    kept = store.installed("lic-1")
    assert kept is not None
    assert (kept.licence, kept.grant, kept.grants) == (licence, grant, (grant,))
    assert (kept.installed_at_s, kept.revoked) == (keys.NOW_S, None)
    assert store.licences() == [kept]


def test_a_licence_has_one_grant_for_each_package(store: Store) -> None:
    """A grant for another package is added, a new one for the same package takes the old one's place; newest first."""
    licence, first = licensed(store)
    store.install_licence(licence, first, now_s=keys.NOW_S)
    other = PackageSecrets("ff" * 16, keys.CONTENT_KEY, keys.INPUT_KEY)
    second, renewed = (
        grants.issue(
            licence, issuer=keys.ISSUER, secrets=secrets, buyer=keys.BUYER.public, node=store.node, now_s=keys.NOW_S
        )
        for secrets in (other, keys.SECRETS)
    )
    store.install_licence(licence, second, now_s=keys.NOW_S + 1)
    store.install_licence(licence, renewed, now_s=keys.NOW_S + 2)
    kept = store.installed("lic-1")
    assert kept is not None
    assert kept.grants == (renewed, second)


def test_installing_verifies(store: Store) -> None:
    """A licence of an unknown issuer, another licence's grant and another node's grant are refused and not kept."""
    _, grant = licensed(store)
    foreign, foreign_grant = licensed(store, issuer=keys.OTHER_ISSUER)
    with pytest.raises(Unauthenticated):
        store.install_licence(foreign, foreign_grant, now_s=keys.NOW_S)
    other, _ = licensed(store, licence_id="lic-2")
    with pytest.raises(Denied) as caught:
        store.install_licence(other, grant, now_s=keys.NOW_S)
    assert caught.value.reason == "grant-mismatch"
    anywhere = keys.licence(node=None)
    with pytest.raises(Denied) as caught:
        store.install_licence(anywhere, keys.grant(anywhere, node=keys.OTHER_NODE), now_s=keys.NOW_S)
    assert caught.value.reason == "grant-mismatch"
    assert store.licences() == []


def test_a_licence_id_belongs_to_one_licence(store: Store) -> None:
    """A second licence with a known id is a conflict, also when another trusted issuer signs it."""
    store.trust_issuer(keys.OTHER_ISSUER.public)
    first = licensed(store)
    store.install_licence(*first, now_s=keys.NOW_S)
    with pytest.raises(Conflict):
        store.install_licence(*licensed(store, issuer=keys.OTHER_ISSUER), now_s=keys.NOW_S)
    assert [kept.licence for kept in store.licences()] == [first[0]]


def test_revocations_go_forward_only(store: Store) -> None:
    """A list takes effect at once; the same one again is fine; a lower number or a shorter list is refused."""
    store.install_licence(*licensed(store), now_s=keys.NOW_S)
    assert store.revoked() == {}
    assert store.revocation_list(keys.ISSUER.key_id) is None
    second = _list(2, "lic-1")
    store.apply_revocations(second)
    store.apply_revocations(second)
    assert store.revoked() == {(keys.ISSUER.key_id, "lic-1"): "because of lic-1"}
    assert store.revocation_list(keys.ISSUER.key_id) == second
    kept = store.installed("lic-1")
    assert kept is not None
    assert kept.revoked == "because of lic-1"
    for refused in (_list(1, "lic-1", "lic-2"), _list(2, "lic-1", "lic-2"), _list(3)):
        with pytest.raises(Conflict) as caught:
            store.apply_revocations(refused)
        assert caught.value.reason == "revocation-rollback"
    store.apply_revocations(_list(3, "lic-1", "lic-2"))
    assert sorted(store.revoked()) == [(keys.ISSUER.key_id, "lic-1"), (keys.ISSUER.key_id, "lic-2")]


def test_a_list_in_force_is_seen_by_other_processes(store: Store) -> None:
    """Another open store of the same directory sees a new list at its next question."""
    with Store.open(store.directory) as other:
        assert other.revoked() == {}
        store.apply_revocations(_list(1, "lic-1"))
        assert list(other.revoked()) == [(keys.ISSUER.key_id, "lic-1")]


def test_nobody_revokes_another_issuers_licence(store: Store) -> None:
    """A list names licences of its own issuer; those of another one stay in force, installed or not."""
    store.trust_issuer(keys.OTHER_ISSUER.public)
    store.install_licence(*licensed(store), now_s=keys.NOW_S)
    theirs = _list(1, "lic-1", "lic-7", issuer=keys.OTHER_ISSUER)
    store.apply_revocations(theirs)  # and no list of the licence's own issuer yet
    assert set(store.revoked()) == {(theirs.issuer_id, "lic-1"), (theirs.issuer_id, "lic-7")}
    store.apply_revocations(_list(1, "lic-8"))
    kept = store.installed("lic-1")
    assert kept is not None
    assert kept.revoked is None
    assert set(store.revoked()) - {(theirs.issuer_id, "lic-1"), (theirs.issuer_id, "lic-7")} == {
        (keys.ISSUER.key_id, "lic-8")
    }


def test_a_list_is_verified(store: Store) -> None:
    """A list of an issuer that is not trusted is refused."""
    with pytest.raises(Unauthenticated):
        store.apply_revocations(_list(1, "lic-1", issuer=keys.OTHER_ISSUER))
    assert store.revoked() == {}
