"""Copyright records, the keys that follow from them, and licences and grants that carry them (C rules)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import keys, naive_copyright
from tessera.keystore import canonical
from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore.copyright import MAX_RECORD_BYTES, CopyrightRecord, bound_key, buyer_input_key
from tessera.keystore.errors import REASONS, Denied, Malformed
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.licence import Terms
from tessera.keystore.proof import confirmation_key, input_key_id
from tessera.keystore.secrets import InputKey, SecretBytes
from tessera.keystore.tiers import TierKey

VECTORS = Path(__file__).resolve().parents[2] / "vectors"
DOCUMENT: dict[str, Any] = json.loads((VECTORS / "copyright.json").read_text(encoding="utf-8"))
RECORD = CopyrightRecord("Acme", "Globex", "L-17")
OTHER = CopyrightRecord("Acme", "Globex", "L-18")
OWN = buyer_input_key(keys.INPUT_KEY, RECORD)
BOUND = bound_key(OWN, RECORD)
TERMS = Terms("digits", input_key_id=input_key_id(BOUND), copyright=RECORD)

texts = st.text(min_size=1, max_size=128).filter(lambda text: text.isprintable() and text == text.strip())


@pytest.mark.parametrize("vector", DOCUMENT["vectors"], ids=lambda v: v["record"][:30])
def test_vectors(vector: dict[str, Any]) -> None:
    """Record, buyer's key and bound key are the recorded ones (rules C-2 to C-4)."""
    record = CopyrightRecord(vector["owner"], vector["buyer"], vector["licence"])
    assert record.to_bytes().decode() == vector["record"]
    own = buyer_input_key(InputKey(bytes.fromhex(vector["master"])), record)
    assert own.reveal().hex() == vector["buyer_key"]
    assert bound_key(own, record).reveal().hex() == vector["bound_key"]


def test_the_file_is_what_the_generator_writes() -> None:
    """Nobody edited the vectors by hand, and the code that makes them imports nothing of ours."""
    source: dict[str, Any] = {"__name__": "make_copyright", "__file__": str(VECTORS / "make_copyright.py")}
    exec((VECTORS / "make_copyright.py").read_text(encoding="utf-8"), source)
    assert source["render"]() == (VECTORS / "copyright.json").read_text(encoding="utf-8")
    assert len(DOCUMENT["vectors"]) >= 8
    assert "tessera" not in Path(naive_copyright.__file__).read_text(encoding="utf-8").replace("tessera/v1", "")


@given(owner=texts, buyer=texts, licence=texts)
def test_records_come_back(owner: str, buyer: str, licence: str) -> None:
    """Object and canonical form give the same record, the naive form is the same bytes."""
    try:
        record = CopyrightRecord(owner, buyer, licence)
    except Malformed:  # three long texts of wide characters
        assert len(naive_copyright.record_bytes(owner, buyer, licence)) > MAX_RECORD_BYTES
        return
    assert CopyrightRecord.from_json(record.to_json()) == record
    assert CopyrightRecord.from_bytes(record.to_bytes()) == record
    assert record.to_bytes() == naive_copyright.record_bytes(owner, buyer, licence)


@given(raw=st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists))
def test_anything_else_is_refused(raw: Any) -> None:
    """No bytes and no JSON value but a record becomes one, and the error says how to write it (rule C-1)."""
    read = CopyrightRecord.from_bytes if isinstance(raw, bytes) else CopyrightRecord.from_json
    with pytest.raises(Malformed) as caught:
        read(raw)
    assert caught.value.reason == "copyright-malformed"
    assert "owner" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    "raw",
    [
        b'{"owner":"Acme","buyer":"Globex","licence":"L-17"}',
        b'{"buyer":"Globex","licence":"L-17","owner":"Acme"} ',
        b'{"buyer":"Globex","licence":"L-17","owner":"\\u0041cme"}',
        b'{"buyer":"Globex","buyer":"Globex","licence":"L-17","owner":"Acme"}',
        b'{"buyer":"Globex","licence":"L-17","owner":"Acme","year":1}',
        b'{"buyer":"Globex","licence":"L-17"}',
    ],
)
def test_a_record_that_is_not_canonical(raw: bytes) -> None:
    """Another spelling of the same record is refused: keys are bound to bytes (rule C-2)."""
    with pytest.raises(Malformed) as caught:
        CopyrightRecord.from_bytes(raw)
    assert caught.value.reason == "copyright-malformed"
    assert caught.value.reason in REASONS


def test_texts_of_a_record() -> None:
    """Empty, long, padded and unprintable texts are refused, and so is a record that is too long in all."""
    for text in ("", "x" * 129, " a", "a ", "a\nb", "a\x00"):
        for name in ("owner", "buyer", "licence"):
            with pytest.raises(Malformed, match=name):
                dataclasses.replace(RECORD, **{name: text})
    wide = "\U0001f511" * 128
    assert len(CopyrightRecord(wide, wide, wide).to_bytes()) <= MAX_RECORD_BYTES
    assert RECORD.label == "Globex (L-17)"
    assert len(RECORD.digest) == 32


def test_keys_of_records_have_nothing_in_common() -> None:
    """Master, buyer's keys and bound keys all differ, and so do a right key with a wrong record and the reverse."""
    found = [
        keys.INPUT_KEY, OWN, BOUND, buyer_input_key(keys.INPUT_KEY, OTHER), bound_key(OWN, OTHER),
        bound_key(keys.INPUT_KEY, RECORD), buyer_input_key(keys.OTHER_INPUT_KEY, RECORD),
    ]  # fmt: skip
    assert len({key.reveal() for key in found}) == len(found)


def test_a_licence_carries_its_record() -> None:
    """Claims come back; a licence without a record has no such claim; a record needs the id of a key (rule L-4)."""
    licence = keys.licence(TERMS)
    assert licences.verify(licence.token, keys.ISSUERS).terms == TERMS
    assert Terms.from_claims(TERMS.to_claims()) == TERMS
    assert "copyright" not in keys.TERMS.to_claims()
    with pytest.raises(Malformed) as caught:
        Terms("digits", copyright=RECORD)
    assert caught.value.reason == "licence-malformed"
    with pytest.raises(Malformed) as caught:
        Terms.from_claims(TERMS.to_claims() | {"copyright": {"owner": "Acme"}})
    assert caught.value.reason == "licence-malformed"


def test_a_grant_seals_key_and_record_to_the_buyer() -> None:
    """The buyer gets their own key and checks the record; the node confirms the bound key (rules G-2, G-5)."""
    licence = keys.licence(TERMS)
    made = keys.grant(licence, secrets=keys.RECORD_SECRETS)
    grant = grants.verify(made.token, licence, keys.ISSUERS)
    own = grants.open_for_buyer(grant, keys.BUYER, RECORD)
    assert own is not None
    assert own.reveal() == OWN.reveal()
    node = grants.open_for_node(grant, keys.NODE)
    assert node.confirmation_key is not None
    assert node.confirmation_key.reveal() == confirmation_key(BOUND).reveal()
    for wrong in (OTHER, None):
        with pytest.raises(Denied) as caught:
            grants.open_for_buyer(grant, keys.BUYER, wrong)
        assert caught.value.reason == "grant-mismatch"
    with pytest.raises(Denied):  # and a box without a record does not pass for one with it
        grants.open_for_buyer(keys.grant(keys.licence()), keys.BUYER, RECORD)


def test_the_longest_record_fits_into_a_grant() -> None:
    """A box holds any record that there can be (rule G-1)."""
    wide = "\U0001f511" * 128
    record = CopyrightRecord(wide, wide, wide)
    bound = bound_key(buyer_input_key(keys.INPUT_KEY, record), record)
    licence = keys.licence(Terms("digits", input_key_id=input_key_id(bound), copyright=record))
    made = keys.grant(licence, secrets=keys.RECORD_SECRETS)
    grant = grants.verify(made.token, licence, keys.ISSUERS)
    assert grants.open_for_buyer(grant, keys.BUYER, record) is not None


@pytest.mark.parametrize(
    "terms",
    [
        Terms("digits", input_key_id=input_key_id(BOUND), copyright=OTHER),
        Terms("digits", input_key_id=input_key_id(keys.INPUT_KEY), copyright=RECORD),
        Terms("digits", input_key_id=input_key_id(BOUND)),
        Terms("digits", input_key_id=input_key_id(keys.INPUT_KEY)),
        Terms("digits"),
    ],
    ids=["another record's id", "the master's id", "no record", "the master's id and no record", "no key"],
)
def test_no_grant_for_an_id_that_is_not_the_records(terms: Terms) -> None:
    """A licence whose id is not that of its own bound key gets no grant (rule G-3)."""
    with pytest.raises(Denied) as caught:
        keys.grant(keys.licence(terms), secrets=keys.RECORD_SECRETS)
    assert caught.value.reason == "grant-mismatch"
    assert "record" in caught.value.remedy


def test_no_grant_with_a_record_for_a_package_without() -> None:
    """A package that was not made for records issues none for them, whatever id the licence names (rule G-3)."""
    with pytest.raises(Denied, match="not made for copyright records") as caught:
        keys.grant(keys.licence(TERMS))
    assert caught.value.reason == "grant-mismatch"
    assert "without" in caught.value.remedy


@pytest.mark.parametrize("tier_key", [None, TierKey.generate(keys.PACKAGE_ID, 2)], ids=["plain", "tiers"])
def test_secrets_say_that_their_key_is_a_master(tier_key: TierKey | None) -> None:
    """First byte 3 or 4; older secrets keep their bytes, and a master is never absent (rule G-6)."""
    secrets = PackageSecrets(keys.PACKAGE_ID, keys.CONTENT_KEY, keys.INPUT_KEY, tier_key, by_record=True)
    raw = secrets.to_secret().reveal()
    plain = dataclasses.replace(secrets, by_record=False).to_secret().reveal()
    assert raw[0] == plain[0] + 2 == (3 if tier_key is None else 4)
    assert raw[1:] == plain[1:]
    assert PackageSecrets.from_secret(SecretBytes(raw)) == secrets
    for broken in (raw[:-32], raw[:-1], raw + b"\0", b"\5" + raw[1:]):
        with pytest.raises(Malformed):
            PackageSecrets.from_secret(SecretBytes(broken))


def test_canonical_is_the_same_as_for_licences() -> None:
    """The record inside a licence has the very bytes that keys are bound to."""
    claims = canonical.dumps(TERMS.to_claims())
    assert RECORD.to_bytes() in claims
