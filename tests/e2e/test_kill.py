"""kill -9 at any moment: no answer without its record, no record twice, and the chain holds (docs/adr/0006)."""

import contextlib
import itertools
import random
from pathlib import Path

import pytest

from support.appliance import KEYED, Site, make_site
from support.background import file, images
from support.keys import BUYER
from support.process import ServerProcess
from tessera.client import Answer, Client, ClientError
from tessera.keystore.licence import LicenceFile
from tessera.keystore.store import Store
from tessera.keystore.usage import verify_chain

KILLS = 50
LARGEST_STREAM = 60


def buyer(site: Site, server: ServerProcess, licence: LicenceFile) -> Client:
    """Return a client that repeats nothing by itself, so that the test sees every answer and every fault."""
    return Client(server.target, identity=BUYER, licence=licence, root_certificates=site.root_certificates, retries=0)


def stream_until_killed(client: Client, server: ServerProcess, answers_before: int) -> list[Answer]:
    """Stream without end, kill the server after some answers, and return every answer that still arrived."""
    received: list[Answer] = []
    with contextlib.suppress(ClientError):
        for answer in client.stream_detailed(KEYED.model, itertools.cycle(images(16)), window=8):
            received.append(answer)
            if len(received) == answers_before:
                server.kill()
    return received


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_fifty_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    """After fifty kills in mid-stream every received answer is in the ledger exactly once, as its receipt says."""
    site = make_site(tmp_path, (KEYED,))
    licence = file(site, KEYED, sessions=1000)
    moments = random.Random(50)
    received: dict[str, Answer] = {}
    for kill in range(KILLS):
        with ServerProcess(site, tmp_path / "server.log") as server, buyer(site, server, licence) as client:
            if received:
                repeat_an_answered_request(client, *moments.choice(list(received.items())))
            got = stream_until_killed(client, server, moments.randint(1, LARGEST_STREAM))
            assert server.exit_code == -9, f"kill {kill}"
            assert got
            received |= {answer.request_id: answer for answer in got}
    with Store.open(site.directory) as store:
        records = store.usage_records(limit=100_000)
        summary = verify_chain(records, node_id=site.node.key_id, checkpoint=None)
    assert summary.records == len(records) >= len(received)
    by_request = {record.request_id: record for record in records}
    assert len(by_request) == len(records), "a request id was charged twice"
    assert {request: answer.receipt for request, answer in received.items()} == {
        request: by_request.get(request) for request in received
    }


def repeat_an_answered_request(client: Client, request_id: str, answer: Answer) -> None:
    """Send an id from before the crash with another payload: the new process knows it, and refuses."""
    from tessera.client import RequestConflict

    assert answer.receipt is not None
    with pytest.raises(RequestConflict):
        client.infer(KEYED.model, images(3), request_id=request_id)


@pytest.mark.slow
def test_a_retry_after_the_crash_is_answered_and_charged_once(tmp_path: Path) -> None:
    """The same id with the same payload is answered again by the next process, with the first one's receipt."""
    site = make_site(tmp_path, (KEYED,))
    licence = file(site, KEYED)
    x = images(5)
    with ServerProcess(site, tmp_path / "server.log") as server, buyer(site, server, licence) as client:
        first = client.infer_detailed(KEYED.model, x, request_id="one")
        server.kill()
    with ServerProcess(site, tmp_path / "server.log") as server, buyer(site, server, licence) as client:
        again = client.infer_detailed(KEYED.model, x, request_id="one")
        assert client.usage(KEYED.model).samples == 5
    assert (again.output == first.output).all()
    assert again.receipt == first.receipt


@pytest.mark.slow
@pytest.mark.parametrize("answers_before", [1, 20, 45])
def test_sigterm_in_mid_stream_drains(tmp_path: Path, answers_before: int) -> None:
    """A server told to stop in the middle of a stream exits 0, and everything it answered is in the ledger."""
    site = make_site(tmp_path, (KEYED,))
    licence = file(site, KEYED)
    received: list[Answer] = []
    with ServerProcess(site, tmp_path / "server.log") as server, buyer(site, server, licence) as client:
        with contextlib.suppress(ClientError):
            for answer in client.stream_detailed(KEYED.model, itertools.cycle(images(16)), window=8):
                received.append(answer)
                if len(received) == answers_before:
                    server.ask_to_stop()
        assert server.terminate() == 0
    with Store.open(site.directory) as store:
        recorded = store.usage_records()
    assert [answer.receipt for answer in received] == recorded[: len(received)]


@pytest.mark.slow
def test_sigterm_finishes_what_was_admitted(tmp_path: Path) -> None:
    """A drained server exits 0, and what it answered on the way is in the ledger."""
    site = make_site(tmp_path, (KEYED,))
    licence = file(site, KEYED)
    with ServerProcess(site, tmp_path / "server.log") as server, buyer(site, server, licence) as client:
        answered = client.infer_detailed(KEYED.model, images(4))
        assert server.terminate() == 0
    with Store.open(site.directory) as store:
        assert store.usage_records() == [answered.receipt]
