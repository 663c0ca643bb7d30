"""The blocking client against a real appliance over TLS."""

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from support import keys
from support.appliance import KEYED, PLAIN, Site
from support.background import Background, client, expected, file, images
from tessera.client import (
    Answer,
    Client,
    GrantInvalid,
    InvalidTensor,
    LicenceExpired,
    LicenceNotYetValid,
    NotYourLicence,
    QuotaExhausted,
    RateLimited,
    RequestConflict,
    RetryPolicy,
    SeatsFull,
    ServerUnverified,
    Unreachable,
    WrongInputKey,
)
from tessera.keystore.errors import ApiMisuse
from tessera.keystore.licence import LicenceFile, Quota
from tessera.keystore.store.tls import issue_server_certificate, make_ca

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One appliance for all tests of this module."""
    with Background(tmp_path_factory.mktemp("site")) as site:
        yield site


def test_a_call_from_end_to_end(site: Site) -> None:
    """Right answers, a verified receipt, and the usage the ledger has for it."""
    with client(site) as c:
        x = images(3)
        answer = c.infer_detailed("digits", x, request_id="first")
        assert np.allclose(answer.output, expected(x), atol=1e-5)
        assert answer.receipt is not None
        assert (answer.receipt.request_id, answer.receipt.samples) == ("first", 3)
        assert c.infer("digits", x[0]).shape == (10,)
        usage = c.usage("digits")
        assert (usage.requests, usage.samples, usage.quota_samples) == (2, 4, None)
        info = c.session_info("digits")
        assert (info.model, info.version, info.tier) == ("digits", 1, 1)
        assert info.node_id == site.node.key_id


def test_a_keyed_model_takes_its_key_from_the_grant(site: Site) -> None:
    """The grant in the licence file, or the one the node holds, gives the key; the contract names it."""
    with client(site, file(site, KEYED)) as c:
        assert c.infer("secret-digits", images(1)[0]).shape == (10,)
        assert c.contract("secret-digits").input_key_id


def test_a_grant_is_fetched_from_the_node(site: Site) -> None:
    """A licence without a grant works once the node has the grant installed."""
    whole = file(site, KEYED)
    with client(site, whole) as first:
        first.contract("secret-digits")
    with client(site, LicenceFile(whole.licence, None)) as second:
        assert second.infer("secret-digits", images(2)).shape == (2, 10)
    with client(site, file(site, KEYED, grant=False)) as third, pytest.raises(GrantInvalid) as caught:
        third.contract("secret-digits")
    assert caught.value.reason == "grant-missing"


def test_one_client_many_licences_and_threads(site: Site) -> None:
    """Eight threads share one client; each licence has one session."""
    with client(site, file(site), file(site, KEYED)) as c:
        x = images(4)
        wanted = expected(x)
        wrong: list[object] = []

        def work() -> None:
            for model in ("digits", "secret-digits") * 4:
                found = c.infer(model, x)
                if not np.allclose(found, wanted, atol=1e-5):
                    wrong.append(found)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert c.usage("digits").requests == 32


def test_a_large_batch_is_split(site: Site) -> None:
    """More than the model's largest batch becomes several requests and one answer."""
    with client(site) as c:
        x = images(37)
        answer = c.infer_detailed("digits", x)
        assert np.allclose(answer.output, expected(x), atol=1e-5)
        assert [record.samples for record in answer.receipts] == [16, 16, 5]


def test_the_same_id_is_charged_once(site: Site) -> None:
    """Again with the same payload is a replay, with another payload a conflict."""
    with client(site) as c:
        first = c.infer_detailed("digits", images(2), request_id="once")
        second = c.infer_detailed("digits", images(2), request_id="once")
        assert first.receipt == second.receipt
        with pytest.raises(RequestConflict) as caught:
            c.infer("digits", images(3), request_id="once")
        assert (caught.value.reason, caught.value.request_id) == ("request-id-conflict", "once")
        assert c.usage("digits").samples == 2


def test_a_replay_in_another_session_has_the_first_receipt(site: Site) -> None:
    """The receipt names the first session, and is accepted."""
    licence = file(site)
    with client(site, licence) as c:
        first = c.infer_detailed("digits", images(2), request_id="r")
    with client(site, licence) as c:
        assert c.infer_detailed("digits", images(2), request_id="r").receipt == first.receipt


def test_a_quota_ends(site: Site) -> None:
    """The last sample is answered, the next is refused with its reason, and nothing more is charged."""
    with client(site, file(site, quota=Quota(3))) as c:
        c.infer("digits", images(3))
        with pytest.raises(QuotaExhausted) as caught:
            c.infer("digits", images(1))
        assert (caught.value.reason, caught.value.status) == ("quota-exhausted", "RESOURCE_EXHAUSTED")
        assert c.usage("digits").samples_left == 0


def test_a_rate_is_kept(site: Site) -> None:
    """More at once than the licence allows in a second is refused, and says so."""
    with client(site, file(site, rate_samples_per_s=2)) as c:
        c.infer("digits", images(16))  # the bucket holds one full batch
        with pytest.raises(RateLimited):
            c.infer("digits", images(16))


def test_seats_are_freed_by_closing(site: Site) -> None:
    """A licence with one seat holds one session at a time; closing gives it back."""
    licence = file(site, sessions=1)
    with client(site, licence) as first:
        first.contract("digits")
        with client(site, licence) as second, pytest.raises(SeatsFull):
            second.contract("digits")
    with client(site, licence) as third:
        third.contract("digits")


def test_times_are_the_servers_to_judge(site: Site) -> None:
    """Expired and not-yet-valid licences are refused by name."""
    with client(site, file(site, starts_in_s=-200, ends_in_s=-100)) as c, pytest.raises(LicenceExpired):
        c.infer("digits", images(1))
    with client(site, file(site, starts_in_s=100)) as c, pytest.raises(LicenceNotYetValid):
        c.infer("digits", images(1))


@pytest.mark.parametrize("kind", [PLAIN, KEYED], ids=["plain", "keyed"])
def test_a_stolen_licence_opens_nothing(site: Site, kind: Any) -> None:
    """Somebody else's licence and grant are refused for want of their key."""
    with client(site, file(site, kind, buyer=keys.OTHER_BUYER)) as c, pytest.raises(NotYourLicence) as caught:
        c.infer(kind.model, images(1))
    assert caught.value.status == "PERMISSION_DENIED"


def test_a_wrong_input_key_is_an_error_and_not_a_bad_answer(site: Site) -> None:
    """The server refuses before inference, and nothing is charged."""
    licence = file(site, KEYED)
    wrong = client(site, licence, input_key=keys.OTHER_INPUT_KEY)
    with wrong as c, pytest.raises(WrongInputKey) as caught:
        c.infer("secret-digits", images(1))
    assert (caught.value.reason, caught.value.status) == ("wrong-input-key", "PERMISSION_DENIED")
    with client(site, licence, input_key=keys.INPUT_KEY) as c:
        assert c.usage("secret-digits").samples == 0


def test_a_lost_session_is_reopened(site: Site) -> None:
    """When the server has forgotten every session, the same call opens another and goes through."""
    with client(site) as c:
        before = c.session_info("digits").session_id
        site.appliance.node.gate.drop_licences([(keys.ISSUER.key_id, c.whoami().licences[0].licence_id)])
        assert c.infer_detailed("digits", images(1)).attempts == 2
        assert c.session_info("digits").session_id != before


def test_a_tensor_that_does_not_fit_is_not_sent(site: Site) -> None:
    """The client names it before the server would have to."""
    with client(site) as c:
        with pytest.raises(InvalidTensor, match="float32"):
            c.infer("digits", images(1).astype(np.float32))
        assert c.usage("digits").requests == 0


def test_a_server_of_another_authority_is_not_believed(site: Site) -> None:
    """A certificate of an unknown CA is `ServerUnverified`, not an outage, and is not tried again."""
    with client(site, root_certificates=None, retries=3) as c, pytest.raises(ServerUnverified) as caught:
        c.contract("digits")
    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.detail


def test_a_server_of_another_name_is_not_believed(site: Site, tmp_path: Path) -> None:
    """A certificate of the right CA for another host is refused: names are verified."""
    authority = make_ca("test", now_s=site.clock.now_s())
    issued = issue_server_certificate(authority, ["elsewhere.example"], now_s=site.clock.now_s())
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([(issued.key.reveal(), issued.certificate)])
    port = server.add_secure_port("localhost:0", credentials)
    server.start()
    settings: dict[str, Any] = {"identity": keys.BUYER, "licence": file(site)}
    with (
        Client(f"localhost:{port}", root_certificates=authority.certificate, **settings) as c,
        pytest.raises(ServerUnverified) as caught,
    ):
        c.contract("digits")
    assert "Hostname" in caught.value.detail
    server.stop(None).wait()


def test_nobody_at_the_address_is_unreachable(site: Site) -> None:
    """A closed port is `Unreachable`, with what the transport said."""
    with (
        Client(
            "localhost:1", identity=keys.BUYER, licence=file(site), root_certificates=site.root_certificates, retries=1
        ) as c,
        pytest.raises(Unreachable) as caught,
    ):
        c.contract("digits")
    assert "refused" in caught.value.detail


def test_threads_share_the_news_that_nobody_answers(site: Site) -> None:
    """One attempt to open a session is enough for all who wait; one after the other would take each its time."""
    patience = RetryPolicy(3, base_s=0.2)
    gone = Client("localhost:1", identity=keys.BUYER, licence=file(site), retry=patience, timeout_s=2.0)
    with gone as c, ThreadPoolExecutor(20) as threads:
        calls = [threads.submit(c.infer, "digits", images(1)) for _ in range(20)]
        calls.append(threads.submit(c.infer, "digits", images(1), timeout_s=0.1))
        refusals = [call.exception() for call in calls]
    assert {type(refusal) for refusal in refusals} == {Unreachable}
    assert len({id(refusal) for refusal in refusals}) == len(refusals)


@pytest.mark.parametrize("plaintext", [False, True], ids=["tls", "plaintext"])
def test_what_is_for_this_machine_does_not_go_to_a_proxy(
    site: Site, monkeypatch: pytest.MonkeyPatch, plaintext: bool
) -> None:
    """Whatever proxy the environment names: it could not reach the loopback, and could read what has no TLS."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("grpc_proxy", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_grpc_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        # The appliance speaks TLS only, so without it nothing is understood; what matters is who was asked.
        settings: dict[str, Any] = {"root_certificates": None, "danger_plaintext": True} if plaintext else {}
        with client(site, **settings) as c, pytest.raises(Unreachable) if plaintext else nullcontext():
            assert c.contract("digits").name == "digits"
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_a_server_that_vanished_is_noticed(site: Site) -> None:
    """The kernel is told how long bytes may stay unacknowledged; by itself it would try for a quarter of an hour."""
    with client(site) as c:
        c.contract("digits")
        limits_ms = [
            found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for found in connections(site.appliance.port)
        ]
    assert limits_ms == [20_000]


def connections(port: int) -> Iterator[socket.socket]:
    """Yield duplicates of this process's sockets that are connected to `port`."""
    for name in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # no socket, or closed meanwhile
            continue
        with found, suppress(OSError):
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.getpeername()[1] == port:
                yield found


def test_a_closed_client_leaves_no_session(site: Site) -> None:
    """Closing ends the sessions on the server."""
    c = client(site)
    c.contract("digits")
    licence_id = c.whoami().licences[0].licence_id
    c.close()
    assert site.appliance.node.gate.drop_licences([(keys.ISSUER.key_id, licence_id)]) == 0
    with pytest.raises(ApiMisuse):
        c.infer("digits", images(1))


def test_answers_are_plain_values(site: Site) -> None:
    """What comes back holds no channel, no key and no token."""
    with client(site) as c:
        answer = c.infer_detailed("digits", images(1))
        token = dict(c.session_metadata("digits"))["authorization"].removeprefix("Bearer ")
        assert isinstance(answer, Answer)
        assert token not in repr(answer) + repr(c) + repr(c.session_info("digits"))
        assert c.transformed("digits", images(1)[0])["image"].shape == (1, 1, 8, 8)
