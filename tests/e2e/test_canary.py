"""No secret anywhere it should not be: a whole life of a node at debug level, then every byte it left is searched."""

import base64
import contextlib
import io
import tempfile
import traceback
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from support.appliance import KEYED, PASSPHRASE, Site, make_site
from support.background import file, images
from support.keys import BUYER, CONTENT_KEY, INPUT_KEY, ISSUER, OTHER_BUYER, OTHER_INPUT_KEY
from support.models import Digits, seeded
from support.process import ServerProcess, start_fork_server
from tessera.client import Client, ClientError
from tessera.keystore.errors import TesseraError
from tessera.keystore.proof import confirmation_key
from tessera.keystore.store import Store

SECRETS = {
    "input key": INPUT_KEY.reveal(),
    "content key": CONTENT_KEY.reveal(),
    "confirmation key": confirmation_key(INPUT_KEY).reveal(),
    "passphrase": PASSPHRASE.reveal(),
    "buyer's identity": BUYER.export_secret().reveal(),
    "buyer's signing seed": BUYER.export_secret().reveal()[:32],
    "issuer's signing seed": ISSUER.export_secret().reveal()[:32],
}


def spellings(secret: bytes) -> Iterator[bytes]:
    """Yield the ways in which a program writes bytes: raw, hexadecimal, base64 of both kinds, and as Python does."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield base64.b64encode(secret).rstrip(b"=")
    yield base64.urlsafe_b64encode(secret).rstrip(b"=")
    yield repr(secret)[2:-1].encode()
    yield str(list(secret))[1:-1].encode()


def weight_samples() -> dict[str, bytes]:
    """Return 32 bytes from the middle of every tensor of the model that are no mere zeros."""
    samples = {}
    for name, tensor in seeded(Digits).state_dict().items():
        raw = tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        middle = raw[len(raw) // 2 // 4 * 4 :][:32]
        if len(set(middle)) > 8:
            samples[f"weights of {name}"] = middle
    return samples


def a_whole_life(site: Site, server: ServerProcess) -> str:
    """Use and misuse the server in every way a peer can, and return all that a client gets to see."""
    seen = io.StringIO()
    licence, other = file(site, KEYED), file(site, KEYED, buyer=OTHER_BUYER)
    expired = file(site, KEYED, starts_in_s=-7200, ends_in_s=-3600)
    attempts = [
        {"identity": BUYER, "licence": licence},
        {"identity": BUYER, "licence": licence, "input_key": OTHER_INPUT_KEY},
        {"identity": OTHER_BUYER, "licence": licence},
        {"identity": BUYER, "licence": other},
        {"identity": BUYER, "licence": expired},
    ]
    for attempt in attempts:
        with Client(server.target, root_certificates=site.root_certificates, retries=0, **attempt) as client:  # type: ignore[arg-type]
            try:
                print(repr(client), client.whoami(), file=seen)
                print(client.session_info(KEYED.model), client.contract(KEYED.model), file=seen)
                answers = [client.infer_detailed(KEYED.model, images(4))]
                answers += client.stream_detailed(KEYED.model, images(12))
                print(answers, client.usage(KEYED.model), file=seen)
                client.infer(KEYED.model, images(4)[:, :, :7])
            except (TesseraError, ClientError) as error:
                print(repr(error), vars(error), file=seen)
                traceback.print_exception(error, file=seen)
    with contextlib.closing(urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics")) as metrics:
        print(metrics.read().decode(), file=seen)
    return seen.getvalue()


def session_tokens(site: Site, server: ServerProcess) -> list[bytes]:
    """Return the bearer token of one more session."""
    with Client(
        server.target, identity=BUYER, licence=file(site, KEYED), root_certificates=site.root_certificates
    ) as client:
        return [dict(client.session_metadata(KEYED.model))["authorization"].removeprefix("Bearer ").encode()]


@pytest.mark.slow
def test_nothing_that_is_left_behind_holds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs at debug level, metrics, errors, reprs, the store and every temporary file hold no key, token or weight."""
    start_fork_server()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    site = make_site(tmp_path / "node", (KEYED,))
    with ServerProcess(site, tmp_path / "server.log", log_level="debug") as server:
        seen = a_whole_life(site, server)
        tokens = session_tokens(site, server)
        while_running = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert server.terminate() == 0
    with Store.open(site.directory) as store:
        store.unseal(PASSPHRASE)
        secrets = SECRETS | weight_samples() | {f"session token {n}": token for n, token in enumerate(tokens)}
        secrets["node's identity"] = store.node_identity().export_secret().reveal()
        seen += f"{store!r} {store.node_identity()!r} {store.packages()!r} {store.licences()!r}"
    places = {str(path): raw for path, raw in while_running.items()}
    places |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    places["what a client sees"] = seen.encode()
    found = [
        f"{name} in {place}"
        for name, secret in secrets.items()
        for spelling in spellings(secret)
        for place, raw in places.items()
        if spelling in raw
    ]
    assert found == []
    assert len(weight_samples()) >= 3
    log = (tmp_path / "server.log").read_text()
    assert '"level": "debug"' in log or '"level":"debug"' in log, "the log says nothing at debug level"
    assert "wrong-input-key" in log + seen


def test_the_search_itself_finds(tmp_path: Path) -> None:
    """Each spelling of a planted secret is found, so that an empty result above means something."""
    planted = bytes(range(7, 39))
    for number, spelling in enumerate(spellings(planted)):
        place = tmp_path / str(number)
        place.write_bytes(b"before" + spelling + b"after")
        assert any(other in place.read_bytes() for other in spellings(planted))
