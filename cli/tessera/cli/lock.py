"""`tessera protect lock`: a key of its own for each buyer of a trained model, without training."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tessera.cli import console, kinds
from tessera.cli.held import held_by_recipe, held_in_file
from tessera.cli.options import JsonFlag, PassphraseFile
from tessera.cli.protect import DataOption
from tessera.cli.reading import argument, reading


def lock(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a trained model, with a key or without.")],
    key: Annotated[Path, typer.Option(metavar="KEY", help="Input key that the new bundle answers to.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the new bundle; never replaced.")],
    old_key: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Input key that BUNDLE answers to now, if it has one.")
    ] = None,
    transform: Annotated[
        str | None, typer.Option(help="Steps KIND:BLOCK of shf, np and ffx; default: those that BUNDLE has.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Measure the result on this recipe's test data.")] = None,
    samples: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Or on the .npz file with `images` uint8 (N, C, H, W) and `labels` (N,)."),
    ] = None,
    data: DataOption = None,
    wrong_keys: Annotated[int, typer.Option(min=0, max=10_000, help="How many wrong keys to measure.")] = 20,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Put a buyer's own key into a trained model's first layer, without training: the answers stay what they were."""
    from tessera.cli import loading

    loading.new_folder(out)
    if recipe is not None and samples is not None:
        raise typer.BadParameter("give one of --recipe and --samples, or neither")
    new = loading.input_key(key, passphrase_file)
    old = loading.input_key(old_key, passphrase_file) if old_key is not None else None
    from tessera.protect import read_bundle, write_bundle  # torch: after what is quick to refuse
    from tessera.protect.locking import lock as locked
    from tessera.protect.locking import measured, with_quality
    from tessera.transforms import TransformSpec

    with argument("--transform"):
        given = None if transform is None else TransformSpec.parse_text(transform)
    held = (
        held_in_file(samples) if samples is not None else held_by_recipe(recipe, data) if recipe is not None else None
    )
    with reading(bundle, kinds.BUNDLE):
        found = read_bundle(bundle)
    spec = given if given is not None else found.transform
    if spec is None:
        raise typer.BadParameter("the bundle has none yet; give one, such as shf:4,np:4", param_hint="--transform")
    made = locked(found, spec, new, present=old)
    result = made.bundle
    document: dict[str, Any] = {
        "bundle": str(out),
        "transform": str(spec),
        "input_key_id": result.input_key_id,
        "milliseconds": round(1e3 * made.seconds, 2),
        "answers_moved": made.moved,
    }
    if held is not None:
        accuracy = measured(result, new, held.test, wrong_keys=wrong_keys)
        result = with_quality(result, accuracy)
        document |= {accuracy.metric: accuracy.to_json()}
    write_bundle(result, out)
    console.emit(document, as_json=as_json, show=lambda: [console.fields(_shown(document))])


def _shown(document: dict[str, Any]) -> dict[str, Any]:
    moved = document["answers_moved"]
    told = "not at all" if moved == 0 else f"by {moved:.1e} of the largest"
    return {
        name.replace("_moved", " moved"): told if name == "answers_moved" else value for name, value in document.items()
    }
