"""The buyers' part: the SDK as their programs use it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tessera.cli import console
from tessera.cli.demo.server import ServerProcess
from tessera.cli.demo.vendor import MODEL
from tessera.client import Client
from tessera.keystore.identity import Identity
from tessera.keystore.keyfile import save_identity
from tessera.keystore.secrets import InputKey

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNARY_CALLS = 50
STREAM_ROUNDS = 4
"""How often the test set is streamed for the throughput; the first round is also the accuracy."""


@dataclass(frozen=True)
class Buyer:
    """A buyer's folder: identity and licence file."""

    name: str
    folder: Path
    identity: Identity

    @property
    def licence_file(self) -> Path:
        """The licence as the vendor sent it."""
        return self.folder / f"{self.name.lower()}.licence"

    def client(
        self, server: ServerProcess, *, licence: Path | None = None, input_key: InputKey | None = None
    ) -> Client:
        """Return a client of the server with this buyer's identity, and with the licence and key given instead."""
        return Client(
            server.address,
            identity=self.identity,
            licence=licence or self.licence_file,
            root_certificates=server.ca,
            input_key=input_key,
        )


@dataclass(frozen=True)
class Service:
    """What one buyer got: shares in 0 … 1, seconds, samples a second, and one signed receipt."""

    accuracy: float
    samples: int
    median_s: float
    slowest_s: float
    throughput_samples_per_s: float
    receipt: str


def new_buyer(name: str, folder: Path) -> Buyer:
    """Make a buyer's identity in a folder of their own."""
    folder.mkdir()
    identity = Identity.generate("buyer", name)
    save_identity(folder / f"{name.lower()}.key", identity)
    return Buyer(name, folder, identity)


def work(
    buyer: Buyer,
    server: ServerProcess,
    images: "NDArray[np.uint8]",
    labels: "NDArray[np.int64]",
    *,
    unary: int,
    rounds: int,
) -> Service:
    """Send `unary` single images, then stream all `images` `rounds` times, one a frame; the key is applied in here."""
    with buyer.client(server) as client:
        answers = [client.infer_detailed(MODEL, images[index]) for index in range(unary)]
        began_s = time.monotonic()
        guesses = _stream(client, buyer, images, rounds)
        seconds = time.monotonic() - began_s
    times = sorted(answer.seconds for answer in answers) or [0.0]
    return Service(
        accuracy=float(np.mean(guesses[: len(labels)] == labels)),
        samples=unary + rounds * len(images),
        median_s=times[len(times) // 2],
        slowest_s=times[-1],
        throughput_samples_per_s=rounds * len(images) / seconds,
        receipt=answers[0].receipt_tokens[0] if answers else "",
    )


def _stream(client: Client, buyer: Buyer, images: "NDArray[np.uint8]", rounds: int) -> "NDArray[np.int64]":
    guesses: list[int] = []
    total = rounds * len(images)
    with console.progress(f"{buyer.name} streams {total} images") as advance:
        frames = (image for _ in range(rounds) for image in images)
        for scores in client.stream(MODEL, frames):
            guesses.append(int(np.argmax(scores)))
            advance(len(guesses), total)
    return np.array(guesses, dtype=np.int64)
