"""Input-sensitive networks on the command line: buyers' records, the training run, and `tessera protect trace`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tessera.cli import console, kinds
from tessera.cli.options import JsonFlag, PassphraseFile
from tessera.cli.reading import argument, reading
from tessera.cli.training import prepared_training
from tessera.keystore.errors import Malformed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from tessera.keystore.copyright import CopyrightRecord
    from tessera.keystore.secrets import InputKey
    from tessera.protect import Recipe, Trained
    from tessera.protect.isnn import Trace
    from tessera.transforms import TransformSpec

MAX_BUYERS: Final = 1024
MAX_RECORDS_BYTES: Final = 1 << 20
RECORDS: Final = kinds.Kind(
    "a list of copyright records",
    'write it like [{"owner": "Acme", "buyer": "Globex", "licence": "L-17"}]: one object for each buyer',
)
RECORD: Final = kinds.Kind(
    "a copyright record", 'write it like {"owner": "Acme", "buyer": "Globex", "licence": "L-17"}'
)
_PROBES: Final = 20
"""Other records that the first buyer's key is tried under."""


def read_records(path: Path) -> "tuple[CopyrightRecord, ...]":
    """Return the copyright records of a JSON file, one for each buyer. Raises `Malformed`."""
    from tessera.keystore.copyright import CopyrightRecord

    with reading(path, RECORDS):
        found = _json(path)
        if not isinstance(found, list) or not 1 <= len(found) <= MAX_BUYERS:
            raise Malformed(f"it is no list of 1 to {MAX_BUYERS} records")
        records = tuple(CopyrightRecord.from_json(item) for item in found)
        if len(set(records)) != len(records):
            raise Malformed("it names a record twice")
        return records


def legal_key(master: "InputKey", buyers: Path) -> "InputKey":
    """Return the bound key of the first record in a list of buyers."""
    from tessera.keystore.copyright import bound_key, buyer_input_key

    first = read_records(buyers)[0]
    return bound_key(buyer_input_key(master, first), first)


def read_record(path: Path) -> "CopyrightRecord":
    """Return the one copyright record of a JSON file. Raises `Malformed`."""
    from tessera.keystore.copyright import CopyrightRecord

    with reading(path, RECORD):
        return CopyrightRecord.from_json(_json(path))


def _json(path: Path) -> Any:
    """Return the strict JSON of a file, in any spacing: no member twice, no NaN. Raises `Malformed`."""
    from tessera.keystore import canonical
    from tessera.keystore._files import read_limited

    return canonical.parse(read_limited(path, max_bytes=MAX_RECORDS_BYTES), max_bytes=MAX_RECORDS_BYTES)


def run_isnn(
    recipe: "Recipe",
    transform: str | None,
    master: "InputKey",
    records: "Sequence[CopyrightRecord]",
    *,
    illegal: str,
    start: Path | None,
    **options: Any,
) -> "Trained":
    """Train with a progress bar; raises what `tessera.protect.isnn.train_isnn` raises."""
    from tessera.keystore.copyright import CopyrightRecord, bound_key, buyer_input_key
    from tessera.protect.isnn import IsnnSettings, train_isnn
    from tessera.transforms import TransformSpec

    with argument("--transform"):
        spec = None if transform is None else TransformSpec.parse_text(transform)
    with argument("--illegal"):
        IsnnSettings(target=illegal)  # type: ignore[arg-type]  # refused here when it is none
    first = records[0]
    others = [CopyrightRecord(first.owner, first.buyer, f"not-{number}-licensed") for number in range(_PROBES)]
    buyer = buyer_input_key(master, first)
    with prepared_training(recipe, **options) as (task, rest):
        form = spec if spec is not None else _default_spec(task.shape)
        return train_isnn(
            task,
            transform=form,
            keys=[bound_key(buyer_input_key(master, record), record) for record in records],
            settings=IsnnSettings.advised(form, task.shape, target=illegal),
            start=None if start is None else start_weights(start),
            wrong_records=[bound_key(buyer, other) for other in others],
            **rest,
        )


def start_weights(folder: Path) -> "Mapping[str, Tensor]":
    """Return the weights of a bundle, by name. Raises `Malformed` for one whose tiers hide some."""
    from tessera.protect import read_bundle

    bundle = read_bundle(folder)
    if bundle.tiers or bundle.transform is not None:
        raise Malformed(
            "the bundle to start from is protected already", remedy="Give the bundle of the recipe without a key."
        )
    return bundle.tensors


def _default_spec(shape: tuple[int, int, int]) -> "TransformSpec":
    from tessera.protect.isnn import default_spec

    found = default_spec(shape)
    if found is None:
        raise typer.BadParameter(
            f"no default fits images of {shape[1]}x{shape[2]}; give one such as isnn:7:12", param_hint="--transform"
        )
    return found


def trace(
    model: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The leaked model, as a bundle.")],
    key: Annotated[Path, typer.Option(metavar="KEY", help="The master input key that buyers' keys come from.")],
    buyers: Annotated[Path, typer.Option(metavar="FILE", help="JSON list of the buyers' copyright records.")],
    samples: Annotated[
        Path, typer.Option(metavar="FILE", help=".npz with plain `images` uint8 (N, C, H, W) and `labels` (N,).")
    ],
    transform: Annotated[
        str | None, typer.Option(help="The isnn it was trained for; default: the one that the bundle names.")
    ] = None,
    null_keys: Annotated[int, typer.Option(min=2, max=10_000, help="How many strangers' keys to compare with.")] = 100,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda or cuda:N.")] = "cpu",
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Say whose key unlocks a leaked input-sensitive network: buyers ranked by how well their keys work."""
    from tessera.cli import loading

    master = loading.input_key(key, passphrase_file)
    records = read_records(buyers)
    from tessera.keystore.copyright import bound_key, buyer_input_key
    from tessera.protect import read_bundle
    from tessera.protect.isnn import trace as traced
    from tessera.protect.isnn.leaked import labelled_npz, module_of
    from tessera.transforms import TransformSpec

    with argument("--transform"):
        spec = TransformSpec.parse_text(transform) if transform is not None else None
    with argument("--samples"):
        labelled = labelled_npz(samples)
    with reading(model, kinds.BUNDLE):
        bundle = read_bundle(model)
    spec = spec if spec is not None else bundle.transform
    if spec is None:
        raise typer.BadParameter("the bundle names no transform; give --transform", param_hint="--transform")
    keys = {record.label: bound_key(buyer_input_key(master, record), record) for record in records}
    found = traced(module_of(bundle), labelled, spec, keys, null_keys=null_keys, device=device)
    document = {"bundle": str(model), "transform": str(spec), **found.to_json()}
    console.emit(document, as_json=as_json, show=lambda: _shown(found))


def _shown(found: "Trace") -> list[Any]:
    rows = [
        [one.name, f"{one.accuracy:.1%}", f"{one.p_value:.2g}", "yes" if one.named else "no"] for one in found.suspects
    ]
    named = ", ".join(one.name for one in found.named) or "no buyer of this list"
    return [
        console.table(("buyer", "accuracy", "p-value", "unlocks"), rows),
        f"{found.images} images; keys that nobody has: {found.null_mean:.1%} on average, {found.null_max:.1%} at best; "
        f"without a key {found.clean:.1%}",
        f"unlocked by: {named}",
    ]
