"""One model for two buyers by name: keys bound to copyright records, from the licence to the tensors on the wire."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from support import keys
from support.appliance import FAINT, RECORDED, RECORDS, Site, bound_to, terms_of
from support.background import Background, client, expected, images
from tessera.client import GrantInvalid, WrongInputKey
from tessera.keystore.copyright import CopyrightRecord, buyer_input_key
from tessera.keystore.errors import Denied, TesseraError
from tessera.keystore.licence import LicenceFile, Terms
from tessera.keystore.proof import input_key_id
from tessera.transforms import Transform

pytestmark = pytest.mark.slow

BUYERS = (keys.BUYER, keys.OTHER_BUYER)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An appliance that serves the model for the two buyers."""
    with Background(tmp_path_factory.mktemp("site"), (RECORDED,)) as site:
        yield site


def file(site: Site, number: int, terms: Terms | None = None) -> LicenceFile:
    """Return the licence and grant of buyer `number`."""
    buyer = BUYERS[number]
    licence = site.licence(terms or terms_of(RECORDS[number]), kind=RECORDED, buyer=buyer)
    return LicenceFile(licence.token, site.grant(licence, kind=RECORDED, buyer=buyer).token)


def keyed(record: CopyrightRecord, x: Any) -> Any:
    """Return `x` as the record's buyer sends it."""
    return Transform(FAINT, bound_to(record), 1, 8, 8)(x)


@pytest.mark.parametrize("number", [0, 1])
def test_each_buyer_sends_their_own_pattern(site: Site, number: int) -> None:
    """The answer is that for tensors perturbed under the buyer's bound key, and for no other buyer's."""
    x = images(3)
    with client(site, file(site, number), identity=BUYERS[number]) as c:
        found = c.infer(RECORDED.model, x)
        assert np.allclose(found, expected(keyed(RECORDS[number], x)), atol=1e-5)
        assert not np.allclose(found, expected(keyed(RECORDS[1 - number], x)), atol=1e-5)
        assert not np.allclose(found, expected(x), atol=1e-5)
        assert c.contract(RECORDED.model).input_key_id == input_key_id(bound_to(RECORDS[number]))


def test_whoami_shows_the_record(site: Site) -> None:
    """A buyer sees what their licence is bound to, and nothing secret; other licences have none."""
    with client(site, file(site, 0)) as c:
        who = c.whoami()
        assert who.licences[0].copyright == RECORDS[0]
        assert who.licences[0].has_input_key
        assert keys.INPUT_KEY.reveal().hex() not in repr(who)


def test_a_key_file_is_the_buyers_own_key(site: Site) -> None:
    """Given as a file, the buyer's key works; another buyer's and the master are refused and nothing is charged."""
    own = buyer_input_key(keys.INPUT_KEY, RECORDS[0])
    with client(site, file(site, 0), input_key=own) as c:
        assert c.infer(RECORDED.model, images(1)).shape == (1, 10)
        charged = c.usage(RECORDED.model).requests
    for wrong in (buyer_input_key(keys.INPUT_KEY, RECORDS[1]), keys.INPUT_KEY):
        licence = file(site, 0)
        with client(site, licence, input_key=wrong) as c, pytest.raises(WrongInputKey) as caught:
            c.infer(RECORDED.model, images(1))
        assert caught.value.status == "PERMISSION_DENIED"  # the node's word, by the confirmation (rule W-6)
        with client(site, licence) as c:
            assert c.usage(RECORDED.model).requests == 0
    assert charged == 1


def test_another_buyers_grant_opens_nothing(site: Site) -> None:
    """A grant that was cut for another buyer gives no key."""
    mine, theirs = file(site, 0), file(site, 1)
    with client(site, LicenceFile(mine.licence, theirs.grant)) as c, pytest.raises(GrantInvalid):
        c.infer(RECORDED.model, images(1))


def test_a_buyer_that_the_model_was_not_trained_for(site: Site) -> None:
    """The issuer may cut such a licence; the node refuses it, since the package does not name its key (rule C-5)."""
    stranger = CopyrightRecord("Acme", "Umbrella", "L-19")
    with client(site, file(site, 0, terms_of(stranger))) as c, pytest.raises(TesseraError) as caught:
        c.infer(RECORDED.model, images(1))
    assert caught.value.reason == "grant-mismatch"
    assert "trained" in (caught.value.remedy or "")


def test_no_grant_without_the_record(site: Site) -> None:
    """A licence that names the key but not the record gets no grant."""
    terms = Terms(RECORDED.model, input_key_id=input_key_id(bound_to(RECORDS[0])))
    licence = site.licence(terms, kind=RECORDED)
    with pytest.raises(Denied) as caught:
        site.grant(licence, kind=RECORDED)
    assert caught.value.reason == "grant-mismatch"
