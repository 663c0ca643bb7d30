"""Measure the appliance: `python -m benchmarks.appliance [--json PATH] [--quick] [--rounds N] [--seconds S]`.

In each round, one after the other on the same machine: the exported model in process at every batch size, as exported
and with the server's fast arithmetic, the server without licensing, metering and transform, the real server, and the
real server through the product's own client. Ratios are taken within a round and their median is reported, because
machines are shared and noisy.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._harness import bar, print_bars, print_table, result_path, write_result
from benchmarks.appliance.load import Loop, Seen, Target
from benchmarks.appliance.market import MAX_BATCH, MODEL, PASSPHRASE, SHAPE, TRANSFORM, Market, open_market
from tessera.cli import health
from tessera.client import AsyncClient
from tessera.keystore.errors import Unavailable
from tessera.keystore.keyfile import load_public_identity
from tessera.keystore.package import open_package
from tessera.server.engine import load_sealed
from tessera.server.engine.program import Arithmetic
from tessera.transforms import Transform, TransformSpec

CONCURRENCY = (1, 8, 32)
BATCHES = (1, 8, 16, 32, 64)
SEED = 7
IN_PROCESS = "in process"
PACK = 4
"""Samples joined into one request by the client's option `pack`; as many samples are on their way as without it."""
IN_PROCESS_BAR = 0.80
OVERHEAD_BAR = 0.90


class InProcess:
    """The limit: the same sealed program, loaded the same way, run in this process with nothing around it."""

    def __init__(self, market: Market, arithmetic: Arithmetic) -> None:
        with open_package(market.package, {market.issuer.key_id: market.issuer.public.verify_key}) as sealed:
            self._program = load_sealed(sealed.unlock(market.secrets.content_key), arithmetic=arithmetic)
        with torch.inference_mode():
            self._program.warm_up()
        assert self._program.arithmetic == arithmetic
        rng = np.random.default_rng(SEED)
        self._images = rng.integers(0, 256, (MAX_BATCH, *SHAPE), dtype=np.uint8)

    def rate(self, batch: int, seconds: float) -> float:
        """Return samples a second at one batch size."""
        part = [{"image": self._images[:batch]}]
        done = 0
        with torch.inference_mode():
            self._program.run(part)
            started_s = time.perf_counter()
            while (elapsed_s := time.perf_counter() - started_s) < seconds:
                self._program.run(part)
                done += batch
        return done / elapsed_s


@contextmanager
def open_server(market: Market) -> Iterator[str]:
    """Run the server without licensing; yields its address."""
    command = [sys.executable, "-m", "benchmarks.appliance.open_server", str(market.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"localhost:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()
            process.wait(60)


@contextmanager
def real_server(market: Market, port: int) -> Iterator[str]:
    """Run `tessera serve` as its users do; yields its address."""
    command = [
        sys.executable, "-m", "tessera.cli", "serve", str(market.keystore), "--listen", f"127.0.0.1:{port}",
        "--metrics-listen", "127.0.0.1:0", "--log-level", "warning",
    ]  # fmt: skip
    environment = os.environ | {"TESSERA_PASSPHRASE": PASSPHRASE.reveal().decode()}
    address = f"localhost:{port}"
    with subprocess.Popen(command, env=environment) as process:
        try:
            _await_serving(address, market, process)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def _await_serving(address: str, market: Market, process: "subprocess.Popen[bytes]") -> None:
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s and process.poll() is None:
        try:
            if health.ask(address, ca=market.keystore / "ca.pem", timeout_s=2.0) == "SERVING":
                return
        except Unavailable:
            time.sleep(0.1)
    raise SystemExit("the server did not come up")


def client_of(market: Market, address: str) -> AsyncClient:
    """Return the product's client for the benchmark's buyer."""
    return AsyncClient(
        address, identity=market.buyer, licence=market.licence, root_certificates=market.keystore / "ca.pem"
    )


async def measure(market: Market, addresses: Mapping[str, str], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Return one row a measurement and round."""
    certificates = (market.keystore / "ca.pem").read_bytes()
    rng = np.random.default_rng(SEED)
    images = rng.integers(0, 256, (256, *SHAPE), dtype=np.uint8)
    loop = Loop(images, MODEL, seconds)
    limits: dict[Arithmetic, InProcess] = {"exact": InProcess(market, "exact"), "fast": InProcess(market, "fast")}
    rows: list[dict[str, Any]] = []
    async with client_of(market, addresses["licensed"]) as client:
        targets = {
            "unlicensed": Target(addresses["open"], certificates, (), lambda x: x, None),
            "licensed": await _licensed(client, addresses["licensed"], certificates, market),
        }
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for way, limit in limits.items():
                rows += [
                    _row(number, IN_PROCESS, way, batch, Seen(limit.rate(batch, seconds), [])) for batch in BATCHES
                ]
            for concurrency in CONCURRENCY:
                for name, target in targets.items():
                    rows.append(_row(number, name, "unary", concurrency, await loop.unary(target, concurrency)))
                for name, target in targets.items():
                    rows.append(_row(number, name, "stream", concurrency, await loop.streaming(target, concurrency)))
                rows.append(_row(number, "licensed", "sdk stream", concurrency, await loop.sdk(client, concurrency)))
                if concurrency > PACK:
                    packed = await loop.sdk(client, concurrency, pack=PACK)
                    rows.append(_row(number, "licensed", f"sdk stream, pack {PACK}", concurrency, packed))
    return rows


async def _licensed(client: AsyncClient, address: str, certificates: bytes, market: Market) -> Target:
    headers = await client.session_metadata(MODEL)
    node = load_public_identity(market.keystore / "node.pub")
    input_key = market.secrets.input_key
    assert input_key is not None
    transform = Transform(TransformSpec.parse_text(TRANSFORM), input_key, *SHAPE)
    metadata = (*headers, ("tessera-receipt", "1"))
    return Target(address, certificates, metadata, transform, {node.key_id: node.verify_key})


def _row(number: int, server: str, way: str, concurrency: int, seen: Seen) -> dict[str, Any]:
    print(f"  {server} {way} {concurrency}: {seen.rate:.0f} samples/s", file=sys.stderr)
    return {
        "round": number,
        "server": server,
        "way": way,
        "concurrency or batch": concurrency,
        "samples/s": seen.rate,
        "p50 ms": seen.percentile_ms(0.50),
        "p99 ms": seen.percentile_ms(0.99),
    }


def summarise(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the table (medians over rounds, ratios within rounds) and the bars."""
    best = {way: _best(rows, way) for way in ("exact", "fast")}
    table = []
    for key in dict.fromkeys((row["server"], row["way"], row["concurrency or batch"]) for row in rows):
        mine = [row for row in rows if (row["server"], row["way"], row["concurrency or batch"]) == key]
        ratios = {way: statistics.median(r["samples/s"] / best[way][r["round"]] for r in mine) for way in best}
        overhead = None
        if key[0] == "licensed":
            way = "stream" if key[1].startswith("sdk stream") else key[1]
            plain = {r["round"]: r["samples/s"] for r in rows if (r["server"], r["way"]) == ("unlicensed", way)
                     and r["concurrency or batch"] == key[2]}  # fmt: skip
            overhead = statistics.median(row["samples/s"] / plain[row["round"]] for row in mine)
        table.append(
            {
                "server": key[0],
                "way": key[1],
                "c or batch": key[2],
                "samples/s": statistics.median(row["samples/s"] for row in mine),
                "of in-process best": ratios["exact"],
                "of in-process fast": ratios["fast"],
                "of unlicensed": overhead,
                "p50 ms": _median(row["p50 ms"] for row in mine),
                "p99 ms": _median(row["p99 ms"] for row in mine),
            }
        )
    found = {(row["server"], row["way"], row["c or batch"]): row for row in table}
    top = found["licensed", "sdk stream", 32]
    plain = found["licensed", "stream", 32]
    packed = found["licensed", f"sdk stream, pack {PACK}", 32]
    bars = [
        bar("SDK streaming at 32, share of the in-process rate", f">= {IN_PROCESS_BAR}",
            top["of in-process best"], top["of in-process best"] >= IN_PROCESS_BAR),
        bar(f"SDK streaming at 32, {PACK} samples to a request, share of the in-process rate", f">= {IN_PROCESS_BAR}",
            packed["of in-process best"], packed["of in-process best"] >= IN_PROCESS_BAR),
        bar("licensing + metering + transform at 32 streams, share kept", f">= {OVERHEAD_BAR}",
            plain["of unlicensed"], plain["of unlicensed"] >= OVERHEAD_BAR),
    ]  # fmt: skip
    return table, bars


def _best(rows: list[dict[str, Any]], way: str) -> dict[int, float]:
    """Return the best in-process rate of each round."""
    best: dict[int, float] = {}
    for row in rows:
        if (row["server"], row["way"]) == (IN_PROCESS, way):
            best[row["round"]] = max(best.get(row["round"], 0.0), row["samples/s"])
    return best


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def main() -> None:
    """Run the benchmark; `--quick` is a smoke run that records nothing unless `--json` names a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.appliance", description=__doc__)
    parser.add_argument(
        "--json", metavar="PATH", nargs="?", const="", help="where to write; default: benchmarks/results/"
    )
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement")
    arguments = parser.parse_args()
    rounds, seconds = (1, 0.3) if arguments.quick else (arguments.rounds, arguments.seconds)
    with tempfile.TemporaryDirectory(prefix="tessera-bench-") as folder:
        market = open_market(Path(folder), seed=SEED)
        with open_server(market) as opened, real_server(market, _free_port()) as licensed:
            rows = asyncio.run(measure(market, {"open": opened, "licensed": licensed}, rounds, seconds))
    table, bars = summarise(rows)
    print_table(table)
    print_bars(bars)
    path = arguments.json or (None if arguments.quick else result_path("appliance", MODEL))
    config = {"model": MODEL, "shape": SHAPE, "transform": TRANSFORM, "rounds": rounds, "seconds": seconds}
    config |= {"torch_threads": torch.get_num_threads(), "tls": True, "receipts": "verified"}
    write_result(MODEL, "appliance", config, [*table, *rows], bars, [SEED], path)
    if path is not None:
        print(f"written to {path}")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
