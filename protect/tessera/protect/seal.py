"""From a model to a sealed package: weights go through the cipher to the disk, never in plain (rule B-13)."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tessera.keystore.copyright import CopyrightRecord, bound_key, buyer_input_key
from tessera.keystore.errors import ApiMisuse, Malformed, WrongKey
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.identity import Signer
from tessera.keystore.licence import Terms
from tessera.keystore.package import Algorithm, Draft, Manifest, PatchEntry, Tier, decode_patch, write_package
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import ContentKey, InputKey
from tessera.keystore.tiers import TierKey
from tessera.protect.bundle import Bundle, bundle_of, read_bundle
from tessera.protect.export import check_no_nan
from tessera.protect.train import Trained

SAFETENSORS_DTYPES: Final[dict[torch.dtype, str]] = {
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    torch.uint8: "U8", torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
    torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip
"""How safetensors, and so the manifest, names each torch dtype that can be sealed."""


def seal(
    trained: Trained,
    out: Path,
    *,
    issuer: Signer,
    version: int,
    now_s: float,
    model: str | None = None,
    input_key: InputKey | None = None,
    records: Sequence[CopyrightRecord] = (),
    licence_text: str = "",
    algorithm: Algorithm = "AES-256-GCM",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Manifest, PackageSecrets]:
    """Export and seal what `train` gave, in memory; the model is named after its task unless `model` says otherwise.

    Raises what `bundle_of` and `seal_bundle` raise.
    """
    return seal_bundle(
        bundle_of(trained),
        out,
        issuer=issuer,
        model=trained.name if model is None else model,
        version=version,
        now_s=now_s,
        input_key=input_key,
        records=records,
        licence_text=licence_text,
        algorithm=algorithm,
        progress=progress,
    )


def seal_bundle(
    bundle: Bundle | Path,
    out: Path,
    *,
    issuer: Signer,
    model: str,
    version: int,
    now_s: float,
    input_key: InputKey | None = None,
    records: Sequence[CopyrightRecord] = (),
    licence_text: str = "",
    algorithm: Algorithm = "AES-256-GCM",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Manifest, PackageSecrets]:
    """Seal a bundle, or the bundle in a folder, into the package `out` under a fresh content key.

    A bundle with tiers is sealed with a patch for each, under a fresh chain of tier keys. `progress(done, total)`
    counts plaintext bytes. The secrets returned are the only copy of the keys: keep them, since grants are written from
    them. For an input-sensitive network `input_key` is the master, and `records` are copyright records of buyers it was
    trained for, at least one, to check it by. Raises `ApiMisuse` when a keyed model comes without its input key or a
    plain one with a key, `WrongKey` when the key is not the one the model was trained with, `Malformed` for NaN
    weights and a model's name that no licence can hold (rule L-4), and what `read_bundle` and `write_package` raise.
    """
    _check_name(model)
    found = read_bundle(bundle) if isinstance(bundle, Path) else bundle
    _check_key(found, input_key, records)
    check_no_nan(found.tensors)
    for tier in found.tiers:
        check_no_nan({entry.tensor: _values(entry) for entry in decode_patch(tier.patch)})
    content_key, package_id = ContentKey.generate(), secrets.token_hex(16)
    tier_key = TierKey.generate(package_id, len(found.tiers)) if found.tiers else None
    manifest = write_package(
        out,
        _draft(found, model, version, licence_text),
        tensors=_buffers(found.tensors),
        program=found.program,
        issuer=issuer,
        content_key=content_key,
        created_at_s=int(now_s),
        package_id=package_id,
        algorithm=algorithm,
        patches=[tier.patch for tier in found.tiers],
        tier_key=tier_key,
        progress=progress,
    )
    return manifest, PackageSecrets(package_id, content_key, input_key, tier_key, by_record=bool(found.input_key_ids))


def _check_name(model: str) -> None:
    try:
        Terms(model)
    except Malformed as error:
        raise Malformed(
            f"no licence can name a model {model!r:.80}",
            remedy="Write 1 to 64 of a-z, 0-9, '.', '_' and '-', like resnet-20.",
        ) from error


def _check_key(bundle: Bundle, input_key: InputKey | None, records: Sequence[CopyrightRecord]) -> None:
    if bundle.input_key_ids:
        _check_master(bundle, input_key, records)
        return
    if records:
        raise ApiMisuse("the model was not trained for copyright records", remedy="Leave the records out.")
    if bundle.input_key_id is None:
        if input_key is not None:
            raise ApiMisuse("the model takes plain inputs, so it has no input key", remedy="Leave the key out.")
        return
    if input_key is None:
        raise ApiMisuse(
            "the model was trained with an input key, which its licences must carry", remedy="Give that key."
        )
    if input_key_id(input_key) != bundle.input_key_id:
        raise WrongKey(
            "the input key is not the one the model was trained with",
            reason="wrong-input-key",
            remedy=f"Give the key with the id {bundle.input_key_id}.",
        )


def _check_master(bundle: Bundle, master: InputKey | None, records: Sequence[CopyrightRecord]) -> None:
    if master is None or not records:
        raise ApiMisuse(
            "the model was trained for the keys of buyers, which follow from a master key and their copyright records",
            remedy="Give the master input key and the records, as for training.",
        )
    for record in records:
        if input_key_id(bound_key(buyer_input_key(master, record), record)) not in bundle.input_key_ids:
            raise WrongKey(
                f"the model was not trained for {record.label}, or not under this master key",
                reason="wrong-input-key",
                remedy="Give the master key and the records it was trained with; train again for new buyers.",
            )


def _draft(bundle: Bundle, model: str, version: int, licence_text: str) -> Draft:
    return Draft(
        model=model,
        version=version,
        inputs=bundle.inputs,
        outputs=bundle.outputs,
        transform=None if bundle.transform is None else bundle.transform.to_json(),
        input_key_id=bundle.input_key_id,
        input_key_ids=bundle.input_key_ids,
        tiers=tuple(Tier(number, tier.name, tier.quality) for number, tier in enumerate(bundle.tiers, 1))
        or (Tier(1, "full", bundle.quality),),
        max_batch=bundle.max_batch,
        torch_version=bundle.torch_version,
        licence_text=licence_text,
    )


def _values(entry: PatchEntry) -> Tensor:
    """Return the values of a patch in the dtype of their tensor."""
    kind = next(kind for kind, name in SAFETENSORS_DTYPES.items() if name == entry.dtype)
    return torch.frombuffer(bytearray(entry.values.tobytes()), dtype=kind)


def _buffers(tensors: dict[str, Tensor]) -> Iterator[tuple[str, str, tuple[int, ...], memoryview]]:
    for name, value in tensors.items():
        dtype = SAFETENSORS_DTYPES.get(value.dtype)
        if dtype is None:
            raise Malformed(f"tensor {name} has a dtype that no package can hold", remedy="Cast it before sealing.")
        raw = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data
        yield name, dtype, tuple(value.shape), raw
