"""Models that answer with a picture: sealed, licensed, served and called by command and by SDK, bit for bit right."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from support.appliance import Site, make_site
from support.cli import document, refusal
from support.keys import BUYER, INPUT_KEY, ISSUER, OTHER_INPUT_KEY
from support.process import ServerProcess
from tessera.client import Client, WrongInputKey
from tessera.keystore.keyfile import save_identity, save_input_key
from tessera.keystore.proof import input_key_id
from tessera.protect import bundle_of_module, write_bundle
from tessera.transforms import Transform, TransformSpec

pytestmark = pytest.mark.slow

CLASSES, CHANNELS, HEIGHT, WIDTH = 5, 3, 24, 32
SPECS = {
    "shf": "shf:4",
    "np": "np:8",
    "ffx": "ffx:4",
    "ffx-positions": "ffx:4:positions",
    "stack": "shf:4,np:4,ffx:2,shf:8",
    "labels": "np:4",
}


class Segmenter(nn.Module):
    """uint8 (N, 3, 24, 32) to float32 scores (N, 5, 24, 32); its weights follow from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.last = nn.Conv2d(CHANNELS, 8, 3, padding=1), nn.Conv2d(8, CLASSES, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return a score for each class and pixel."""
        scores: torch.Tensor = self.last(torch.relu(self.first(image.float() / 255 - 0.5)))
        return scores


class Labels(Segmenter):
    """The same with the number of the best class as its answer, uint8 (N, 24, 32): twenty times less to send."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return a class for each pixel."""
        return super().forward(image).argmax(1).to(torch.uint8)


@dataclass(frozen=True)
class Shop:
    """One model for each transform behind a running server, all made, published and licensed by command."""

    folder: Path
    site: Site
    server: ServerProcess
    modules: dict[str, nn.Module]
    images: NDArray[np.uint8]

    def client(self, model: str, **changes: Any) -> Client:
        """Return a client with the licence for one model."""
        return Client(
            self.server.target,
            identity=self.folder / "buyer.key",
            licence=self.folder / f"{model}.licence",
            root_certificates=self.site.directory / "ca.pem",
            retries=0,
            **changes,
        )

    def infer(self, model: str, *files: Path) -> list[object]:
        """Return the words of `tessera infer`."""
        words: list[object] = ["infer", *files, "--model", model, "--server", self.server.target]
        words += ["--ca", self.site.directory / "ca.pem", "--identity", self.folder / "buyer.key"]
        return [*words, "--licence", self.folder / f"{model}.licence"]

    def vendors(self, model: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the vendor's module says of images under the right key, in this process."""
        transform = Transform(TransformSpec.parse_text(SPECS[model]), INPUT_KEY, CHANNELS, HEIGHT, WIDTH)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                found: NDArray[np.float32] = self.modules[model](torch.from_numpy(transform(images))).numpy()
                return found
        finally:
            torch.set_num_threads(threads)


def publish(folder: Path, site: Site, model: str, seed: int) -> nn.Module:
    """Bundle, seal, publish and license one model by the vendor's and the operator's commands; return the module."""
    module = (Labels if model == "labels" else Segmenter)(seed).eval()
    spec = TransformSpec.parse_text(SPECS[model])
    bundle = bundle_of_module(
        module, (CHANNELS, HEIGHT, WIDTH), transform=spec, input_key_id=input_key_id(INPUT_KEY), max_batch=8
    )
    write_bundle(bundle, folder / f"{model}-bundle")
    package = folder / f"{model}.tessera"
    document(
        *("package", "build", folder / f"{model}-bundle", "--issuer", folder / "issuer.key"),
        *("--input-key", folder / "input.key", "--model", model, "--out", package),
    )
    document("model", "publish", package, "--keystore", site.directory)
    document(
        *("licence", "issue", "--issuer", folder / "issuer.key", "--package", package),
        *("--buyer", folder / "buyer.key.pub", "--node", site.directory / "node.pub", "--quota", 100),
        *("--out", folder / f"{model}.licence"),
    )
    return module


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Publish a model for each transform and serve them, with the very arithmetic of torch."""
    folder = tmp_path_factory.mktemp("shop")
    site = make_site(folder, ())
    save_identity(folder / "issuer.key", ISSUER)
    save_identity(folder / "buyer.key", BUYER)
    save_input_key(folder / "input.key", INPUT_KEY)
    save_input_key(folder / "other.key", OTHER_INPUT_KEY)
    modules = {model: publish(folder, site, model, seed) for seed, model in enumerate(SPECS)}
    images = np.random.default_rng(5).integers(0, 256, (4, CHANNELS, HEIGHT, WIDTH), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSERA_ARITHMETIC", "exact")
        with ServerProcess(site, folder / "server.log") as server:
            yield Shop(folder, site, server, modules, images)


@pytest.mark.parametrize("model", SPECS)
def test_the_answers_are_the_modules_own_bits(shop: Shop, model: str) -> None:
    """One batch, one sample and a stream, for every transform and a stack of four steps."""
    wanted = shop.vendors(model, shop.images)
    with shop.client(model) as client:
        batch = client.infer(model, shop.images)
        single = client.infer(model, shop.images[0])
        streamed = list(client.stream(model, shop.images))
        assert client.contract(model).outputs[0].shape[-2:] == (HEIGHT, WIDTH)
    assert batch.dtype == wanted.dtype
    assert np.array_equal(batch, wanted)
    assert np.array_equal(single, shop.vendors(model, shop.images[:1])[0])
    off = np.abs(np.stack(streamed).astype(np.float64) - wanted)  # batched as they came: sums in another order
    assert (off < 1e-5).mean() > 0.999


@pytest.mark.parametrize("model", SPECS)
def test_a_wrong_key_is_refused_before_inference_and_costs_nothing(shop: Shop, model: str) -> None:
    """The same refusal whatever the transform; without the key the map would be another one."""
    with shop.client(model) as right:
        before = right.usage(model).samples
        with shop.client(model, input_key=OTHER_INPUT_KEY) as wrong, pytest.raises(WrongInputKey):
            wrong.infer(model, shop.images)
        assert right.usage(model).samples == before
    plain = torch.from_numpy(shop.images)
    with torch.inference_mode():
        assert (shop.modules[model](plain).numpy() != shop.vendors(model, shop.images)).any()


def test_the_command_sums_a_map_up_and_keeps_it(shop: Shop, tmp_path: Path) -> None:
    """Shape and share of each class for a person, every score for a program; a picture is taken as it is."""
    np.save(tmp_path / "frames.npy", shop.images[:2])
    Image.fromarray(np.moveaxis(shop.images[2], 0, -1)).save(tmp_path / "frame.png")
    files, out = (tmp_path / "frames.npy", tmp_path / "frame.png"), tmp_path / "maps.npy"
    told = document(*shop.infer("stack", *files), "--out", out)
    maps = np.load(out)
    assert np.array_equal(maps[:2], shop.vendors("stack", shop.images[:2]))
    assert np.array_equal(maps[2:], shop.vendors("stack", shop.images[2:3]))
    assert [entry["shape"] for entry in told["predictions"]] == [[CLASSES, HEIGHT, WIDTH]] * 3
    for entry, scores in zip(told["predictions"], maps, strict=True):
        shares = np.bincount(scores.argmax(0).ravel(), minlength=CLASSES) / (HEIGHT * WIDTH)
        assert {one["class"]: one["share"] for one in entry["shares"]} == {
            number: pytest.approx(share, abs=1e-6) for number, share in enumerate(shares) if share
        }
    assert sum(record["samples"] for record in told["usage"]) == 3


def test_a_map_of_class_numbers_is_summed_up_as_such(shop: Shop, tmp_path: Path) -> None:
    """Whole numbers of the picture's size are classes, whose shares are shown."""
    np.save(tmp_path / "frame.npy", shop.images[0])
    (entry,) = document(*shop.infer("labels", tmp_path / "frame.npy"))["predictions"]
    values, counts = np.unique(shop.vendors("labels", shop.images[:1]), return_counts=True)
    assert entry["shape"] == [HEIGHT, WIDTH]
    assert {one["class"]: round(one["share"] * HEIGHT * WIDTH) for one in entry["shares"]} == dict(
        zip(values.tolist(), counts.tolist(), strict=True)
    )


def test_a_wrong_key_and_a_wrong_size_are_told_at_the_command(shop: Shop, tmp_path: Path) -> None:
    """Before anything is inferred, with the file or the reason named."""
    np.save(tmp_path / "frame.npy", shop.images[0])
    error = refusal(*shop.infer("shf", tmp_path / "frame.npy"), "--input-key", shop.folder / "other.key")
    assert error["reason"] == "wrong-input-key"
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(tmp_path / "tall.png")
    error = refusal(*shop.infer("shf", tmp_path / "tall.png"))
    assert "tall.png has shape [3, 25, 32], the model takes [3, 24, 32]" in error["message"]
