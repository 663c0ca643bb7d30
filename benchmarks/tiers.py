"""What tiers cost: loading a package at a tier, keeping several tiers in memory, serving a mixture of them.

    python -m benchmarks.tiers [--quick] [--tiers 5] [--rounds 7] [--seconds 8] [--json PATH]

- Loading: weights of a tier in memory of our own, out of the sealed package, beside safetensors `load_file` and a clone
  of every tensor; page cache warm. "Memory as found" may lie with the host of a virtual machine, and whoever asks for
  large pages then waits for it; the other rows find them at hand, as on a machine of one's own. "program" adds reading
  and joining the graph, which every kind of loading needs.
- Memory: the bytes of k tiers side by side against k copies of the model.
- Serving: 32 samples in flight over the wire, in as many streams as there are tiers: all of the top one or one of each.

The weights are random and the encrypted slices chosen at random: neither changes what is measured here.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from benchmarks._harness import bar, interleaved_seconds, print_bars, print_table, result_path, spread, write_result
from benchmarks.package_load import forget_freed_memory, settle_memory
from tessera.client import AsyncClient
from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.identity import Identity
from tessera.keystore.licence import LicenceFile, Terms
from tessera.keystore.package import Manifest, PatchEntry, Tier, encode_patch, open_package, write_package
from tessera.keystore.package.manifest import Draft
from tessera.keystore.secrets import ContentKey, Passphrase
from tessera.keystore.store import Store
from tessera.keystore.tiers import TierKey
from tessera.protect import CifarResNet18, PixelModel, bundle_of_module
from tessera.protect.bundle import Bundle
from tessera.protect.models import CifarVgg19, CompactVgg
from tessera.server.app import Appliance
from tessera.server.config import Settings
from tessera.server.engine import load_variant
from tessera.server.engine.sharing import SharedTensors
from tessera.server.engine.variants import read_variant

SEED = 7
BUDGET = 0.08
"""Share of the kernel slices that are encrypted."""
CONCURRENCY = 32
PASSPHRASE = Passphrase(b"benchmark")
SHAPE = (3, 32, 32)
SOME_LAYERS = (1, 2, 3)
"""A choice of few layers, as the method was published with."""
MODEL = "bench"
DAY_S = 86_400


@dataclass(frozen=True)
class Sold:
    """A package in tiers with everything that opens it, and its vendor's own weights."""

    path: Path
    manifest: Manifest
    secrets: PackageSecrets
    issuer: Identity
    full: Mapping[str, torch.Tensor]

    @property
    def issuers(self) -> dict[str, bytes]:
        """The one trusted issuer."""
        return {self.issuer.key_id: self.issuer.public.verify_key}

    def key(self, tier: int) -> TierKey:
        """Return the key of a tier."""
        assert self.secrets.tier_key is not None
        return self.secrets.tier_key.at(tier)


def seal_in_tiers(network: nn.Module, folder: Path, tiers: int, layers: Sequence[int] | None = None) -> Sold:
    """Seal `network` with `BUDGET` of the slices of its `layers` taken out and given back in equal shares from tier 2
    on; `layers` are convolutions by their place in the network, None all of them."""
    bundle = bundle_of_module(PixelModel(network, (0.5,) * 3, (0.25,) * 3).eval(), SHAPE, max_batch=64)
    public, patches = take_out(bundle, tiers, layers)
    issuer, key = Identity.generate("issuer", "bench"), ContentKey.generate()
    package_id = np.random.default_rng(SEED).bytes(16).hex()
    tier_key = TierKey.generate(package_id, tiers)
    path = folder / f"{type(network).__name__}-{tiers}.tessera"
    draft = Draft(
        model=MODEL,
        version=1,
        inputs=bundle.inputs,
        outputs=bundle.outputs,
        tiers=tuple(Tier(number, f"tier-{number}", {}) for number in range(1, tiers + 1)),
        max_batch=bundle.max_batch,
        torch_version=bundle.torch_version,
    )
    manifest = write_package(
        path,
        draft,
        tensors=[(name, _DTYPES[value.dtype], tuple(value.shape), _bytes(value)) for name, value in public.items()],
        program=bundle.program,
        issuer=issuer,
        content_key=key,
        created_at_s=int(time.time()),
        package_id=package_id,
        patches=patches,
        tier_key=tier_key,
    )
    return Sold(path, manifest, PackageSecrets(package_id, key, None, tier_key), issuer, bundle.tensors)


def take_out(bundle: Bundle, tiers: int, layers: Sequence[int] | None) -> tuple[dict[str, torch.Tensor], list[bytes]]:
    """Return the public weights and a patch for each tier; decoys are other slices of the same tensor."""
    random = np.random.default_rng(SEED)
    public = dict(bundle.tensors)
    entries: list[list[PatchEntry]] = [[] for _ in range(tiers)]
    convolutions = [name for name, value in bundle.tensors.items() if value.dim() == 4]
    for name in convolutions if layers is None else [convolutions[place] for place in layers]:
        value = bundle.tensors[name]
        run = value.shape[2] * value.shape[3]
        rows = value.numpy().reshape(-1, run)
        chosen = random.permutation(len(rows))[: max(int(BUDGET * len(rows)), tiers)]
        decoys = rows.copy()
        decoys[chosen] = rows[random.integers(0, len(rows), len(chosen))]
        public[name] = torch.from_numpy(decoys.reshape(value.shape))
        for tier, units in enumerate(np.array_split(chosen, tiers - 1), 1):
            ordered = np.sort(units)
            values = np.ascontiguousarray(rows[ordered]).view(np.uint8)
            entries[tier].append(PatchEntry(name, "F32", run, ordered.astype(np.uint32), values))
    return public, [encode_patch(found) for found in entries]


_DTYPES = {torch.float32: "F32", torch.int64: "I64"}


def _bytes(value: torch.Tensor) -> memoryview:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().data


# -- loading ---------------------------------------------------------------------------------------------------------


def load_state(sold: Sold, tier: int) -> dict[str, torch.Tensor]:
    """Return the weights of a tier, from the file on."""
    with open_package(sold.path, sold.issuers) as sealed:
        package = sealed.unlock(sold.secrets.content_key)
        return read_variant(package, sold.key(tier))[0]


def load_program(sold: Sold, tier: int) -> None:
    """Load a tier to where it could run."""
    with open_package(sold.path, sold.issuers) as sealed:
        load_variant(sealed.unlock(sold.secrets.content_key), tier_key=sold.key(tier))


def measure_loading(sold: Sold, folder: Path, rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return one row for each way to load, and the bar."""
    top = sold.manifest.tiers[-1].tier
    plain = folder / "plain.safetensors"
    safetensors.torch.save_file(dict(sold.full), plain)
    state = load_state(sold, top)
    if any(not torch.equal(state[name], value) for name, value in sold.full.items()):
        raise SystemExit("the top tier is not the vendor's model")

    def load_and_clone() -> None:
        kept = {name: tensor.clone() for name, tensor in safetensors.torch.load_file(plain).items()}
        assert len(kept) == len(sold.full)

    plainly, highest = "safetensors load_file + clone", f"tier {top}"
    variants: dict[str, Callable[[], object]] = {
        plainly: load_and_clone,
        "tier 1": lambda: load_state(sold, 1),
        highest: lambda: load_state(sold, top),
        f"{highest}, program": lambda: load_program(sold, top),
    }
    size = sum(value.nbytes for value in sold.full.values())
    rows, observed = [], 0.0
    for words, prepare in ((", memory as found", forget_freed_memory), ("", lambda: settle_memory(2 * size))):
        seconds = interleaved_seconds(variants, rounds, prepare=prepare)
        medians = {name: spread(values)["median"] for name, values in seconds.items()}
        for name, median in medians.items():
            found = {"value": 1e3 * median, "unit": "ms", "against plain": median / medians[plainly], "MB": size / 1e6}
            rows.append({"what": f"load: {name}{words}", **found})
        observed = medians[highest] / medians[plainly]
    return rows, bar("loading the top tier against load_file + clone", "at most 1.2 times", observed, observed <= 1.2)


# -- memory ----------------------------------------------------------------------------------------------------------


def measure_memory(sold: Sold, which: str) -> list[dict[str, Any]]:
    """Return what all tiers take side by side against as many copies, for both kinds of arithmetic."""
    rows = []
    tiers = [tier.tier for tier in sold.manifest.tiers]
    for arithmetic in ("exact", "fast"):
        shared, programs = SharedTensors(), []
        for tier in tiers:
            with open_package(sold.path, sold.issuers) as sealed:
                package = sealed.unlock(sold.secrets.content_key)
                program = load_variant(package, tier_key=sold.key(tier), shared=shared, arithmetic=arithmetic)
            with torch.inference_mode():
                program.warm_up()
            programs.append(program)
        copies = sum(program.device_bytes for program in programs)
        rows.append(
            {
                "what": f"memory: {len(tiers)} tiers that change {which}, {arithmetic}",
                "value": shared.nbytes / 1e6,
                "unit": "MB",
                "against plain": shared.nbytes / copies,
                "MB": copies / len(tiers) / 1e6,
            }
        )
        for program in programs:
            program.erase()
    return rows


# -- serving ---------------------------------------------------------------------------------------------------------


def open_node(sold: Sold, folder: Path) -> tuple[Path, Identity, dict[int, Path]]:
    """Make a node that has the package, and return its folder, a buyer, and a licence file for each tier."""
    now_s, node = int(time.time()), folder / "node"
    buyer = Identity.generate("buyer", "bench")
    files: dict[int, Path] = {}
    with Store.create(node, master=PASSPHRASE, node_name="bench", now_s=now_s) as store:
        store.trust_issuer(sold.issuer.public)
        store.publish(sold.path, now_s=now_s)
        for tier in (tier.tier for tier in sold.manifest.tiers):
            licence = licences.issue(
                Terms(MODEL, tier=tier, sessions=256), issuer=sold.issuer, buyer=buyer.public, node=store.node,
                not_before_s=now_s - 1, expires_at_s=now_s + DAY_S, now_s=now_s,
            )  # fmt: skip
            grant = grants.issue(
                licence, issuer=sold.issuer, secrets=sold.secrets, buyer=buyer.public, node=store.node, now_s=now_s
            )
            files[tier] = folder / f"tier-{tier}.licence"
            licences.write_licence_file(files[tier], LicenceFile(licence.token, grant.token))
    return node, buyer, files


async def stream(client: AsyncClient, images: Sequence[Any], seconds: float, window: int, pack: int) -> int:
    """Keep `window` requests of `pack` samples on their way for so long; return the samples answered."""
    until_s, done = time.perf_counter() + seconds, 0

    async def frames() -> AsyncIterator[Any]:
        index = 0
        while time.perf_counter() < until_s:
            yield images[index % len(images)]
            index += 1

    async for _ in client.stream(MODEL, frames(), window=window, pack=pack):
        done += 1
    return done


async def measure_serving(
    sold: Sold, folder: Path, seconds: float, rounds: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rates of one tier and of all tiers at once, and the bar."""
    node, buyer, files = open_node(sold, folder)
    images = list(np.random.default_rng(SEED).integers(0, 256, (64, *SHAPE), np.uint8))
    tiers = sorted(files)
    settings = Settings(directory=node, port=0, metrics=False)
    rates: dict[tuple[str, int], list[float]] = {}
    async with Appliance(settings, passphrase=PASSPHRASE) as appliance:
        clients = {
            (kind, number): AsyncClient(
                f"localhost:{appliance.port}",
                identity=buyer,
                licence=files[tiers[-1] if kind == "one tier" else tier],
                root_certificates=node / "ca.pem",
            )
            for kind in ("one tier", "mixed")
            for number, tier in enumerate(tiers)
        }
        try:
            for client in clients.values():  # sessions, and every variant, are there before it is timed
                await client.infer(MODEL, images[0])
            for _ in range(rounds):
                for pack in (1, 4):
                    for kind in ("one tier", "mixed"):
                        mine = [client for (owner, _), client in clients.items() if owner == kind]
                        window = max(CONCURRENCY // len(mine) // pack, 1)
                        started_s = time.perf_counter()
                        done = await asyncio.gather(*(stream(one, images, seconds, window, pack) for one in mine))
                        rates.setdefault((kind, pack), []).append(sum(done) / (time.perf_counter() - started_s))
        finally:
            for client in clients.values():
                await client.close()
    rows = [
        {
            "what": f"serving: {kind}, {len(tiers)} streams, {pack} to a request",
            "value": spread(found)["median"],
            "unit": "samples/s",
            "against plain": spread(found)["median"] / spread(rates["one tier", pack])["median"],
            "MB": None,
        }
        for (kind, pack), found in sorted(rates.items(), key=lambda entry: (entry[0][1], entry[0][0]))
    ]
    share = spread(rates["mixed", 4])["median"] / spread(rates["one tier", 4])["median"]
    name = "a mixture of tiers against one tier, 32 in flight, 4 samples to a request"
    return rows, bar(name, "at least 0.9", share, share >= 0.9)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network and few rounds: does it still run?")
    parser.add_argument("--tiers", type=int, default=5, help="tiers of the package that is loaded")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, in which the variants take turns")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of one measurement of serving")
    parser.add_argument("--json", type=Path, help="where to write the result instead of the recorded place")
    arguments = parser.parse_args()
    rounds, seconds = (2, 0.5) if arguments.quick else (max(arguments.rounds, 5), arguments.seconds)
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = CompactVgg if arguments.quick else CifarVgg19
        tiers = 3 if arguments.quick else arguments.tiers
        large = seal_in_tiers(network(), folder, tiers)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        rows, loading = measure_loading(large, folder, rounds)
        torch.set_num_threads(threads)
        rows += measure_memory(large, "every layer")
        few = seal_in_tiers(network(), folder, tiers, SOME_LAYERS)
        rows += measure_memory(few, "three layers")
        served = few if arguments.quick else seal_in_tiers(CifarResNet18(), folder, 2)
        more, serving = asyncio.run(measure_serving(served, folder, seconds, 1 if arguments.quick else 3))
    rows += more
    bars = [loading, serving]
    print_table(rows)
    print_bars(bars)
    config = {
        "tiers": tiers,
        "budget": BUDGET,
        "rounds": rounds,
        "seconds": seconds,
        "concurrency": CONCURRENCY,
        "page_cache": "warm",
        "quick": arguments.quick,
    }
    recorded = None if arguments.quick else result_path("tiers", "cost")
    write_result("cost", "tiers", config, rows, bars, [SEED], arguments.json or recorded)


if __name__ == "__main__":
    main()
