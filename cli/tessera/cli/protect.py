"""`tessera protect`: the vendor's bench."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli import console
from tessera.cli.options import JsonFlag, PassphraseFile

if TYPE_CHECKING:
    from tessera.keystore.secrets import InputKey
    from tessera.protect import Recipe, Trained
    from tessera.transforms import TransformSpec

protect_app = typer.Typer(help="Turn a model into one that works for holders of a key only.", no_args_is_help=True)

RecipeOption = Annotated[str, typer.Option("--recipe", help="What to train; `tessera protect recipes` lists them.")]


@protect_app.command(
    "train",
    epilog="Example: tessera protect train --recipe digits --transform shf:4,np:4 --key digits.key --out digits-bundle",
)
def train(
    recipe: RecipeOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the bundle; never replaced.")],
    key: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Input key; without one the model takes plain inputs.")
    ] = None,
    transform: Annotated[
        str | None,
        typer.Option(help="Steps KIND:BLOCK, shf = pixel shuffling, np = negative/positive; default: the recipe's."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of order, weights and augmentation.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data; default: the recipe's.")] = None,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda or cuda:N.")] = "cpu",
    checkpoints: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save each epoch here, and go on from there when it was broken.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a recipe on keyed inputs and write a bundle: program, weights (0600: your secret), report, curves."""
    from tessera.cli import loading
    from tessera.protect import bundle_of, draw_curves, write_bundle
    from tessera.protect import recipe as recipe_called

    loading.refuse_existing(out)
    if transform is not None and key is None:
        raise typer.BadParameter("--transform needs --key, the input key it is derived from")
    chosen = recipe_called(recipe)
    input_key = loading.input_key(key, passphrase_file) if key is not None else None
    spec = _spec(chosen, transform) if input_key is not None else None
    trained = run_training(chosen, spec, input_key, seed=seed, epochs=epochs, device=device, checkpoint_dir=checkpoints)
    write_bundle(bundle_of(trained), out, curves=draw_curves(trained.report))
    document = {
        "bundle": str(out),
        "recipe": chosen.name,
        "transform": str(spec) if spec is not None else None,
        "input_key_id": trained.input_key_id,
        "accuracy": trained.report["accuracy"],
        "seconds": trained.report["seconds"],
    }
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


@protect_app.command("recipes", epilog="Example: tessera protect recipes --json")
def recipes(as_json: JsonFlag = False) -> None:
    """List the recipes that come with Tessera."""
    from tessera.protect import RECIPES

    entries = [
        {"name": entry.name, "transform": entry.transform, "summary": entry.summary} for entry in RECIPES.values()
    ]
    columns = ("name", "transform", "summary")
    rows = [[entry[column] for column in columns] for entry in entries]
    console.emit({"recipes": entries}, as_json=as_json, show=lambda: [console.table(columns, rows)])


@protect_app.command("samples", epilog="Example: tessera protect samples --recipe digits --count 10 --out scans.npy")
def samples(
    recipe: RecipeOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help=".npy file to write; never replaced.")],
    count: Annotated[int, typer.Option(min=1, help="How many, from the beginning of the test set.")] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Write plain test images of a recipe as a uint8 .npy array and print their labels: something to infer on."""
    import numpy as np

    from tessera.cli import loading
    from tessera.protect import recipe as recipe_called

    loading.refuse_existing(out)
    test = recipe_called(recipe).task().data.test
    images, labels = test.images[:count].numpy(), [int(label) for label in test.labels[:count]]
    with out.open("xb") as stream:
        np.save(stream, images)
    document: dict[str, Any] = {"file": str(out), "shape": list(images.shape), "labels": labels}
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


def run_training(
    recipe: "Recipe",
    spec: "TransformSpec | None",
    key: "InputKey | None",
    *,
    seed: int,
    epochs: int | None = None,
    device: str = "cpu",
    checkpoint_dir: Path | None = None,
) -> "Trained":
    """Train with a progress bar on standard error; raises what `tessera.protect.train` raises."""
    from tessera.protect import train as run

    with console.progress(f"training {recipe.name}") as advance:
        return run(
            recipe,
            transform=spec,
            key=key,
            seed=seed,
            device=device,
            epochs=epochs,
            checkpoint_dir=checkpoint_dir,
            progress=lambda state: advance(state.epoch, state.epochs),
        )


def _spec(recipe: "Recipe", text: str | None) -> "TransformSpec":
    from tessera.transforms import TransformSpec

    return TransformSpec.parse_text(text if text is not None else recipe.transform)
