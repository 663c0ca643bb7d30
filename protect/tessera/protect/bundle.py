"""The bundle: an unsealed model on the vendor's own disk (docs/spec.md, rules B-8 to B-12).

    OUT/bundle.json            what the model takes and gives, its transform, digests of the other files
    OUT/program.pt2            the torch.export program without weights
    OUT/weights.safetensors    the plaintext weights, mode 0600: this file is the vendor's secret
    OUT/tier-<n>.patch         the true weights that tier n adds to the tier below it, mode 0600; tiered bundles only
    OUT/report.json            what training measured, when the model was trained here
    OUT/curves.png             the same as a picture

Nothing in it is pickled by us. Buyers never see a bundle; they get the package that `tessera.protect.seal` makes of it.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tessera.keystore import canonical
from tessera.keystore._files import PRIVATE_MODE, PUBLIC_MODE, read_limited, write_atomically
from tessera.keystore.errors import ApiMisuse, Malformed, Unavailable
from tessera.keystore.package import TensorSpec, fields
from tessera.keystore.package.manifest import MAX_KEYS, check_key_ids
from tessera.keystore.package.patches import decode_patch
from tessera.keystore.tiers import MAX_TIERS
from tessera.protect.export import check_no_nan, export_with_contract
from tessera.protect.train import Trained
from tessera.transforms import TransformSpec

FORMAT: Final = "tessera-bundle/1"
INPUT_NAME: Final = "image"
OUTPUT_NAME: Final = "logits"
WEIGHTS_FILE: Final = "weights.safetensors"
MAX_DOCUMENT_BYTES: Final = 2**20
MAX_REPORT_BYTES: Final = 2**24
MAX_PROGRAM_BYTES: Final = 2**28
MAX_WEIGHTS_BYTES: Final = 2**36

_FIELDS = frozenset(
    {"format", "inputs", "outputs", "transform", "input_key_id", "quality", "max_batch", "torch_version"}
    | {"program_sha256", "weights_sha256"}
)
_OPTIONAL = frozenset({"tiers", "input_key_ids"})
_TIER_FIELDS = frozenset({"name", "quality", "patch_sha256"})
_DATATYPES: Final = {
    torch.float32: "FP32", torch.float16: "FP16", torch.bfloat16: "BF16", torch.float64: "FP64", torch.int64: "INT64",
    torch.int32: "INT32", torch.int16: "INT16", torch.int8: "INT8", torch.uint8: "UINT8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class BundleTier:
    """One quality of a model that was encrypted selectively. Construction raises `Malformed`, as `Bundle` does."""

    name: str
    quality: dict[str, float]
    """What was measured for this tier, by name of the measure; finite."""
    patch: bytes = field(repr=False)
    """What it adds to the tier below, as `tessera.keystore.package.patches` writes it; secret."""

    def __post_init__(self) -> None:
        fields.text(self.name, fields.LABEL, "a tier's name")
        _check_measures(self.quality)
        decode_patch(self.patch)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model ready to be sealed. Construction raises `Malformed` for values that no bundle can hold."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    transform: TransformSpec | None
    input_key_id: str | None
    quality: dict[str, float]
    """What was measured for the full model, by name of the measure; finite."""
    max_batch: int
    torch_version: str
    program: bytes = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    """Weights by name, contiguous on the CPU; with tiers they are the public ones, decoys in place."""
    tiers: tuple[BundleTier, ...] = ()
    """Lowest first; all their patches together make the vendor's model. None: one quality, `tensors` as they are."""
    report: dict[str, Any] | None = field(default=None, repr=False)
    input_key_ids: tuple[str, ...] = ()
    """Of the bound keys of an input-sensitive network, sorted, in the place of `input_key_id`."""

    def __post_init__(self) -> None:
        if (self.transform is None) != (self.input_key_id is None and not self.input_key_ids):
            raise Malformed("a bundle has a transform and the id of its key, or neither")
        check_key_ids(self.input_key_ids, self.input_key_id)
        if self.input_key_id is not None:
            fields.text(self.input_key_id, fields.HEX_32, "a bundle's input key id")
        fields.integer(self.max_batch, 1, 65_536, "a bundle's largest batch")
        fields.text(self.torch_version, fields.LABEL, "a bundle's torch version")
        _check_measures(self.quality)
        if len(self.tiers) > MAX_TIERS or len({tier.name for tier in self.tiers}) != len(self.tiers):
            raise Malformed(f"a bundle has at most {MAX_TIERS} tiers, each with its own name")


def bundle_of(trained: Trained) -> Bundle:
    """Return what `train` gave, exported, in memory. Raises what `bundle_of_module` raises."""
    metric = trained.accuracy.metric
    measured = {name: value for name, value in trained.report[metric].items() if isinstance(value, float)}
    return bundle_of_module(
        trained.model,
        trained.shape,
        transform=trained.transform,
        input_key_id=trained.input_key_id,
        input_key_ids=trained.input_key_ids,
        quality={f"{metric}_{name}": value for name, value in measured.items()},
        max_batch=trained.max_batch,
        report=trained.report,
    )


def bundle_of_module(
    model: nn.Module,
    shape: tuple[int, int, int],
    *,
    transform: TransformSpec | None = None,
    input_key_id: str | None = None,
    input_key_ids: tuple[str, ...] = (),
    quality: dict[str, float] | None = None,
    max_batch: int = 256,
    report: dict[str, Any] | None = None,
) -> Bundle:
    """Return the bundle of any module that takes uint8 (N, *shape) and gives one tensor with the batch first.

    Wrap a network that takes normalised floats in `PixelModel`. Raises what `export_program` raises, and `Malformed`
    when the weights hold NaN.
    """
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    found = export_with_contract(model, example, max_batch=max_batch)
    check_no_nan(found.tensors)
    datatype = _DATATYPES.get(found.output_dtype)
    if datatype is None:
        raise ApiMisuse(f"a model that gives {found.output_dtype} cannot be served", remedy="Let it give float32.")
    return Bundle(
        inputs=(TensorSpec(INPUT_NAME, "UINT8", (-1, *shape), "NCHW"),),
        outputs=(TensorSpec(OUTPUT_NAME, datatype, (-1, *found.output_shape)),),
        transform=transform,
        input_key_id=input_key_id,
        input_key_ids=input_key_ids,
        quality=quality or {},
        max_batch=max_batch,
        torch_version=torch.__version__,
        program=found.program,
        tensors=found.tensors,
        report=report,
    )


def write_bundle(bundle: Bundle, folder: Path, *, curves: bytes | None = None) -> None:
    """Write `bundle` into `folder`, made with mode 0700 when missing; `bundle.json` comes last and names the others.

    `curves` is a PNG, see `draw_curves`. Raises `Denied`, `NotFound` or `Unavailable` when the disk refuses.
    """
    weights = safetensors.torch.save(bundle.tensors)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Unavailable(f"{folder} cannot be made a folder", remedy="Choose another path.") from error
    _write(folder / WEIGHTS_FILE, weights, PRIVATE_MODE)
    _write(folder / "program.pt2", bundle.program, PUBLIC_MODE)
    for number, tier in enumerate(bundle.tiers, start=1):
        _write(_patch_path(folder, number), tier.patch, PRIVATE_MODE)
    if bundle.report is not None:
        _write(folder / "report.json", json.dumps(bundle.report, indent=1).encode() + b"\n", PUBLIC_MODE)
    if curves is not None:
        _write(folder / "curves.png", curves, PUBLIC_MODE)
    _write(folder / "bundle.json", canonical.dumps(_document(bundle, weights)), PUBLIC_MODE)


def read_bundle(folder: Path) -> Bundle:
    """Return the bundle of `folder`.

    Raises `NotFound` (no bundle there), `Denied` (the weights are readable for others) or `Malformed` (a file is
    damaged, has unknown fields, or belongs to another bundle).
    """
    claims = canonical.parse(
        read_limited(folder / "bundle.json", max_bytes=MAX_DOCUMENT_BYTES), max_bytes=MAX_DOCUMENT_BYTES
    )
    if not isinstance(claims, dict) or claims.keys() - _OPTIONAL != _FIELDS or claims["format"] != FORMAT:
        raise Malformed("bundle.json is not a bundle description of this version", remedy=_REMAKE)
    program = read_limited(folder / "program.pt2", max_bytes=MAX_PROGRAM_BYTES)
    weights = read_limited(folder / WEIGHTS_FILE, max_bytes=MAX_WEIGHTS_BYTES, private=True)
    if [_digest(program), _digest(weights)] != [claims["program_sha256"], claims["weights_sha256"]]:
        raise Malformed("program.pt2 or weights.safetensors is not the file that bundle.json names", remedy=_REMAKE)
    transform = claims["transform"]
    return Bundle(
        inputs=_ports(claims["inputs"]),
        outputs=_ports(claims["outputs"]),
        transform=None if transform is None else TransformSpec.from_json(transform),
        input_key_id=claims["input_key_id"],
        input_key_ids=_key_ids(claims["input_key_ids"]) if "input_key_ids" in claims else (),
        quality=_measures(claims["quality"]),
        max_batch=claims["max_batch"],
        torch_version=claims["torch_version"],
        program=program,
        tensors=parse_weights(weights),
        tiers=_tiers(folder, claims["tiers"]) if "tiers" in claims else (),
        report=_report(folder / "report.json"),
    )


_REMAKE = "Run `tessera protect train` again, or bundle the model again."


def _document(bundle: Bundle, weights: bytes) -> dict[str, Any]:
    tiers = [{"name": tier.name, "quality": tier.quality, "patch_sha256": _digest(tier.patch)} for tier in bundle.tiers]
    return {
        **({"tiers": tiers} if tiers else {}),
        **({"input_key_ids": list(bundle.input_key_ids)} if bundle.input_key_ids else {}),
        "format": FORMAT,
        "inputs": [spec.to_claims() for spec in bundle.inputs],
        "outputs": [spec.to_claims() for spec in bundle.outputs],
        "transform": None if bundle.transform is None else bundle.transform.to_json(),
        "input_key_id": bundle.input_key_id,
        "quality": bundle.quality,
        "max_batch": bundle.max_batch,
        "torch_version": bundle.torch_version,
        "program_sha256": _digest(bundle.program),
        "weights_sha256": _digest(weights),
    }


def _write(path: Path, raw: bytes, mode: int) -> None:
    write_atomically(path, raw, mode=mode, overwrite=True)


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _ports(value: Any) -> tuple[TensorSpec, ...]:
    if not isinstance(value, list) or len(value) != 1:
        raise Malformed("a bundle describes one input and one output", remedy=_REMAKE)
    return tuple(TensorSpec.from_claims(entry) for entry in value)


def _key_ids(value: Any) -> tuple[str, ...]:
    return tuple(fields.sequence(value, 1, MAX_KEYS, "a bundle's input key ids"))


def _measures(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise Malformed("a bundle's measures are not an object", remedy=_REMAKE)
    return value


def _check_measures(quality: dict[str, float]) -> None:
    for measure, value in quality.items():
        fields.text(measure, fields.LABEL, "a measure's name")
        fields.number(value, "a measure")


def _patch_path(folder: Path, number: int) -> Path:
    return folder / f"tier-{number}.patch"


def _tiers(folder: Path, value: Any) -> tuple[BundleTier, ...]:
    entries = fields.sequence(value, 1, MAX_TIERS, "a bundle's tiers")
    return tuple(_tier(_patch_path(folder, number), entry) for number, entry in enumerate(entries, start=1))


def _tier(path: Path, value: Any) -> BundleTier:
    claims = fields.record(value, _TIER_FIELDS, "a bundle's tier")
    patch = read_limited(path, max_bytes=MAX_WEIGHTS_BYTES, private=True)
    if _digest(patch) != claims["patch_sha256"]:
        raise Malformed(f"{path.name} is not the file that bundle.json names", remedy=_REMAKE)
    return BundleTier(claims["name"], _measures(claims["quality"]), patch)


def parse_weights(raw: bytes, name: str = WEIGHTS_FILE, *, remedy: str = _REMAKE) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; `name` is what errors call it. Raises `Malformed`."""
    try:
        return safetensors.torch.load(raw)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise Malformed(f"{name} is not a safetensors file", remedy=remedy) from error


def _report(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    found = canonical.parse(read_limited(path, max_bytes=MAX_REPORT_BYTES), max_bytes=MAX_REPORT_BYTES)
    if not isinstance(found, dict):
        raise Malformed("report.json is not an object", remedy="Delete it or train again.")
    return found
