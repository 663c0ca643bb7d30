"""How fast a sealed package is loaded, beside what people do with plain safetensors; page cache warm.

    python -m benchmarks.package_load [--quick] [--mib 400] [--rounds 7] [--json PATH]

Every loading variant ends with the weights in memory that the process owns. `sealed` decrypts into buffers that exist
already, to be held against `copied into buffers`. With fresh buffers it also allocates them, as `load_file + clone`
does: in large pages, as the server does.
"""

import argparse
import ctypes
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from benchmarks._harness import (
    bar,
    interleaved_seconds,
    print_bars,
    print_table,
    result_path,
    spread,
    write_result,
)
from tessera.keystore.identity import Identity
from tessera.keystore.package import Draft, TensorSpec, open_package, write_package
from tessera.keystore.package.buffers import fresh_bytes
from tessera.keystore.package.manifest import Algorithm
from tessera.keystore.secrets import AgreementKey, ContentKey, SigningSeed

SEED = 7
LARGE_BYTES = 16 << 20
"""Bytes of a large matrix; every fourth tensor is one, the others are small, as in a real network."""


def make_weights(total_bytes: int) -> dict[str, torch.Tensor]:
    """Return random float32 weights of about `total_bytes`: large matrices with small vectors between them."""
    random, made = np.random.default_rng(SEED), 0
    weights: dict[str, torch.Tensor] = {}
    while made < total_bytes:
        number = len(weights)
        size = min(LARGE_BYTES, total_bytes - made) // 4 if number % 4 == 0 else 512
        tensor = torch.from_numpy(random.standard_normal(max(size, 1), dtype=np.float32))
        weights[f"layer{number // 4}.{number % 4}"] = tensor
        made += tensor.nbytes
    return weights


class Bench:
    """The same weights on disk, plain and sealed with both algorithms, and every way to load them."""

    def __init__(self, folder: Path, total_bytes: int) -> None:
        self.weights = make_weights(total_bytes)
        self.bytes = sum(tensor.nbytes for tensor in self.weights.values())
        self.plain = folder / "plain.safetensors"
        safetensors.torch.save_file(self.weights, self.plain)
        self.key = ContentKey.generate()
        issuer = Identity("issuer", "bench", SigningSeed(bytes(32)), AgreementKey(bytes(range(32))))
        self.issuers = {issuer.key_id: issuer.public.verify_key}
        self.sealed: dict[str, Path] = {}
        algorithms: tuple[Algorithm, ...] = ("AES-256-GCM", "ChaCha20Poly1305")
        for algorithm in algorithms:
            self.sealed[algorithm] = folder / f"{algorithm}.tessera"
            self._seal(algorithm, issuer)
        self.buffers = {name: np.empty(tensor.nbytes, np.uint8) for name, tensor in self.weights.items()}
        for buffer in self.buffers.values():
            buffer.fill(0)

    def _seal(self, algorithm: Algorithm, issuer: Identity) -> None:
        port = (TensorSpec("x", "FP32", (-1, 1)),)
        write_package(
            self.sealed[algorithm],
            Draft(model="bench", version=1, inputs=port, outputs=port, torch_version=torch.__version__),
            tensors=((name, "F32", tensor.shape, tensor.numpy().data) for name, tensor in self.weights.items()),
            program=b"none",
            issuer=issuer,
            content_key=self.key,
            created_at_s=0,
            algorithm=algorithm,
        )

    def load_sealed(
        self, algorithm: str = "AES-256-GCM", *, check_digests: bool = False, workers: int = 1, fresh: bool = False
    ) -> None:
        """Open, verify the signature, unlock and decrypt everything."""
        with open_package(self.sealed[algorithm], self.issuers) as package:
            unlocked = package.unlock(self.key, check_digests=check_digests)
            buffers = self.buffers
            if fresh:
                buffers = {part.name: np.frombuffer(fresh_bytes(part.size), np.uint8) for part in unlocked.tensors}
            targets = {name: buffer.data for name, buffer in buffers.items()}
            unlocked.read_tensors_into(targets, workers=workers)

    def verify(self) -> None:
        """Open and hold every sealed byte against the signed digests."""
        with open_package(self.sealed["AES-256-GCM"], self.issuers) as package:
            package.verify_digests()

    def load_plain_clone(self) -> None:
        """`safetensors.torch.load_file` maps the file; the clones are the process's own."""
        kept = {name: tensor.clone() for name, tensor in safetensors.torch.load_file(self.plain).items()}
        assert len(kept) == len(self.weights)

    def load_plain_copy(self) -> None:
        """`safetensors.torch.load_file`, copied into buffers that exist already."""
        for name, tensor in safetensors.torch.load_file(self.plain).items():
            np.copyto(self.buffers[name], tensor.numpy().view(np.uint8))

    def load_plain_bytes(self) -> None:
        """`safetensors.torch.load` of the file's bytes."""
        safetensors.torch.load(self.plain.read_bytes())

    def read_plain(self) -> None:
        """The physical limit: the plain file read into buffers that exist already."""
        with open(self.plain, "rb", buffering=0) as file:
            for buffer in self.buffers.values():
                view = buffer.data
                done = 0
                while done < len(view):
                    done += file.readinto(view[done:]) or 0

    def hash_plain(self) -> None:
        """SHA-256 of the plain file, which is what a careful user of plain weights does before loading."""
        with open(self.plain, "rb", buffering=0) as file:
            hashlib.file_digest(file, "sha256")

    def variants(self) -> dict[str, Callable[[], object]]:
        """Every way to load, by its name in the table."""
        return {
            "plain read into buffers": self.read_plain,
            "safetensors load_file + clone": self.load_plain_clone,
            "safetensors load(bytes)": self.load_plain_bytes,
            "safetensors load_file, copied into buffers": self.load_plain_copy,
            "sha256 of the plain file": self.hash_plain,
            "sealed": self.load_sealed,
            "sealed, fresh buffers": lambda: self.load_sealed(fresh=True),
            "sealed, fresh buffers, 2 threads": lambda: self.load_sealed(fresh=True, workers=2),
            "sealed, 2 threads": lambda: self.load_sealed(workers=2),
            "sealed, digests in the same pass": lambda: self.load_sealed(check_digests=True),
            "sealed, digests, 2 threads": lambda: self.load_sealed(check_digests=True, workers=2),
            "sealed, ChaCha20Poly1305": lambda: self.load_sealed("ChaCha20Poly1305"),
            "verify_digests": self.verify,
        }

    def check(self) -> None:
        """Fail unless the buffers hold the weights after a sealed load."""
        for buffer in self.buffers.values():
            buffer.fill(0)
        self.load_sealed()
        for name, tensor in self.weights.items():
            if self.buffers[name].tobytes() != tensor.numpy().tobytes():
                raise SystemExit(f"{name} was not loaded as it was saved")


def forget_freed_memory() -> None:
    """Give freed memory back to the system, so that every variant that allocates pays for fresh pages, and always."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def settle_memory(size: int) -> None:
    """Give freed memory back, then touch and free `size` bytes in large pages, so that what comes next finds some.

    A virtual machine may hand free large pages to its host ("free page reporting"), and whoever touches them again
    waits for the host. Small pages are not handed over, so that only variants that ask for large ones would pay.
    """
    forget_freed_memory()
    np.frombuffer(fresh_bytes(size, lasting=False), np.uint8)[:: 1 << 12] = 0


def measure(mebibytes: int, rounds: int, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows and bars of one run."""
    bench = Bench(folder, mebibytes << 20)
    bench.check()
    seconds = interleaved_seconds(bench.variants(), rounds, prepare=lambda: settle_memory(2 * bench.bytes))
    clone = spread(seconds["safetensors load_file + clone"])["median"]
    rows: list[dict[str, Any]] = []
    for name, values in seconds.items():
        found = spread(values)
        rows.append(
            {
                "variant": name,
                "seconds": found["median"],
                "lowest": found["lowest"],
                "highest": found["highest"],
                "GB/s": bench.bytes / found["median"] / 1e9,
                "times load_file + clone": clone / found["median"],
            }
        )
    by_name = {row["variant"]: row["times load_file + clone"] for row in rows}
    into_buffers, fresh = by_name["sealed"], by_name["sealed, fresh buffers"]
    bars = [
        bar(
            "sealed into buffers against load_file + clone",
            "at least 1.0 times as fast",
            into_buffers,
            into_buffers >= 1,
        ),
        bar("the same with fresh buffers", "at least 0.8 times as fast", fresh, fresh >= 0.8),
    ]
    return rows, bars


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few MiB and few rounds: does it still run?")
    parser.add_argument("--mib", type=int, default=400, help="MiB of weights")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, in which the variants take turns")
    parser.add_argument("--json", type=Path, help="where to write the result instead of the recorded place")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    mebibytes, rounds = (16, 3) if arguments.quick else (arguments.mib, max(arguments.rounds, 5))
    with tempfile.TemporaryDirectory() as folder:
        rows, bars = measure(mebibytes, rounds, Path(folder))
    print_table(rows)
    print_bars(bars)
    recorded = None if arguments.quick else result_path("package", "load")
    config = {
        "mebibytes": mebibytes,
        "rounds": rounds,
        "torch_threads": 1,
        "page_cache": "warm",
        "quick": arguments.quick,
    }
    write_result("load", "package", config, rows, bars, [SEED], arguments.json or recorded)


if __name__ == "__main__":
    main()
