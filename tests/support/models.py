"""Small real models: exported with torch, sealed with our writer, served by the real engine."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from support.keys import CONTENT_KEY, ISSUER, NOW_S
from tessera.keystore.canonical import Json
from tessera.keystore.package import Draft, Manifest, Part, TensorSpec, Tier, write_package
from tessera.keystore.tiers import TierKey

IMAGE = TensorSpec("image", "UINT8", (-1, 1, 8, 8), "NCHW")
LOGITS = TensorSpec("logits", "FP32", (-1, 10), "", finite=True)
_STORED = {torch.float32: "F32", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}


class Digits(nn.Module):
    """uint8 (N, 1, 8, 8) to ten float32 logits; convolution, batch norm with its integer buffer, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        x = torch.relu(self.norm(self.conv(image.float() / 255)))
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


class Pair(nn.Module):
    """Two inputs of different datatypes and two outputs, one of them bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, points: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scaled points with the dropped ones zeroed, and their sum."""
        scaled = points * self.scale * keep.unsqueeze(1)
        return scaled, scaled.sum(1).to(torch.bfloat16)


PAIR_INPUTS = (TensorSpec("points", "FP32", (-1, 2), "", finite=True), TensorSpec("keep", "BOOL", (-1,)))
PAIR_OUTPUTS = (TensorSpec("scaled", "FP32", (-1, 2)), TensorSpec("sum", "BF16", (-1,)))


def seeded(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """Return a module in eval mode whose weights follow from `seed`, without moving torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind().eval()


def exported(
    module: nn.Module, example: tuple[torch.Tensor, ...], max_batch: int
) -> tuple[bytes, dict[str, torch.Tensor]]:
    """Return a weight-less program for batches of 1 to `max_batch`, and the weights."""
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    program = torch.export.export(module, example, dynamic_shapes=tuple({0: batch} for _ in example))
    state: dict[str, Any] = program.state_dict
    weights = {name: value.detach().clone() for name, value in state.items()}
    for name, value in state.items():
        empty = value.detach().to("meta")
        state[name] = nn.Parameter(empty, requires_grad=False) if isinstance(value, nn.Parameter) else empty
    archive = io.BytesIO()
    torch.export.save(program, archive)
    return archive.getvalue(), weights


@dataclass(frozen=True)
class Sealed:
    """A published package as the model directory sees it, and the module it was made of."""

    path: Path
    manifest: Manifest
    module: nn.Module

    @property
    def size_bytes(self) -> int:
        """Size of the sealed file."""
        return self.path.stat().st_size

    @property
    def published_at_s(self) -> float:
        """A fixed time."""
        return NOW_S


def seal(
    folder: Path,
    module: nn.Module | None = None,
    *,
    model: str = "digits",
    version: int = 1,
    inputs: Sequence[TensorSpec] = (IMAGE,),
    outputs: Sequence[TensorSpec] = (LOGITS,),
    max_batch: int = 16,
    input_key_id: str | None = None,
    input_key_ids: tuple[str, ...] = (),
    transform: list[Json] | None = None,
    tiers: tuple[Tier, ...] = (Tier(1, "full", {}),),
    package_id: str | None = None,
    patches: Sequence[bytes] = (),
    tier_key: TierKey | None = None,
) -> Sealed:
    """Export `module` (a seeded `Digits` when None) and seal it in `folder` by `ISSUER` under `CONTENT_KEY`."""
    from tessera.server.engine.datatypes import DATATYPES

    module = module or seeded(Digits)
    example = tuple(torch.zeros((2, *s.shape[1:]), dtype=DATATYPES[s.datatype].torch_dtype) for s in inputs)
    program, weights = exported(module, example, max_batch)
    path = folder / f"{model}-{version}.tessera"
    manifest = write_package(
        path,
        Draft(
            model=model,
            version=version,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            transform=transform,
            input_key_id=input_key_id,
            input_key_ids=input_key_ids,
            tiers=tiers,
            max_batch=max_batch,
            torch_version=torch.__version__.partition("+")[0],
        ),
        tensors=[
            (name, _STORED[value.dtype], tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy().data)
            for name, value in weights.items()
        ],
        program=program,
        issuer=ISSUER,
        content_key=CONTENT_KEY,
        created_at_s=NOW_S,
        package_id=package_id,
        patches=patches,
        tier_key=tier_key,
    )
    return Sealed(path, manifest, module)


def a_manifest(
    inputs: Sequence[TensorSpec] = (IMAGE,), outputs: Sequence[TensorSpec] = (LOGITS,), *, max_batch: int = 8
) -> Manifest:
    """Return a manifest that belongs to no file, for what only reads contracts."""
    return Manifest(
        model="digits",
        version=1,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        max_batch=max_batch,
        torch_version="2.13.0",
        package_id="0" * 32,
        issuer_id=ISSUER.key_id,
        created_at_s=0,
        salt="0" * 64,
        commitment="0" * 64,
        algorithm="AES-256-GCM",
        chunk_bytes=2**20,
        parts=(Part("program", "program", "U8", (1,), 1, 1, "0" * 64),),
    )
