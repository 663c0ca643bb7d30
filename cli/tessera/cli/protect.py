"""`tessera protect`: the vendor's bench."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli import console
from tessera.cli.isnn import read_records, run_isnn, trace
from tessera.cli.options import MAX_SEED, JsonFlag, PassphraseFile
from tessera.cli.reading import argument
from tessera.cli.training import run_training

if TYPE_CHECKING:
    from tessera.protect import Recipe
    from tessera.transforms import TransformSpec

protect_app = typer.Typer(help="Turn a model into one that works for holders of a key only.", no_args_is_help=True)

DataOption = Annotated[
    Path | None,
    typer.Option(metavar="PATH", envvar="TESSERA_DATA", help="Folder of the recipe's data set, or one that holds it."),
]
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
        typer.Option(
            help="Steps KIND:BLOCK, shf = pixel shuffling, np = negative/positive, ffx = replacing by table; "
            "default: the recipe's; with --isnn isnn:BLOCK:EPSILON or isnn:BLOCK:EPSILON:content."
        ),
    ] = None,
    isnn: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Train an input-sensitive network for the buyers whose copyright records this JSON list holds; "
            "--key is the master that their keys come from.",
        ),
    ] = None,
    illegal: Annotated[
        str, typer.Option(help="With --isnn, the answer to illegal inputs: uniform, wrong-class or random-label.")
    ] = "uniform",
    start: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --isnn, fine-tune this bundle of the recipe, trained without a key."),
    ] = None,
    data: DataOption = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of order, weights and augmentation.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data; default: the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples of one step; default: the recipe's.")] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", help="Highest learning rate of the run; default: the recipe's."),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16-amp (CUDA); default: the recipe's.")] = None,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Whether torch.compile speeds up steps; default: the recipe's."),
    ] = None,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda or cuda:N.")] = "cpu",
    wrong_keys: Annotated[
        int | None, typer.Option(min=0, max=10_000, help="How many wrong keys to try on the test set afterwards.")
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save each epoch here, and go on from there when it was broken.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a recipe on keyed inputs and write a bundle: program, weights (0600: your secret), report, curves."""
    from tessera.cli import loading

    loading.new_folder(out)
    if checkpoints is not None:
        loading.possible_folder(checkpoints)
    if key is None and (transform is not None or isnn is not None):
        hint = "--isnn" if isnn is not None else "--transform"
        raise typer.BadParameter("needs --key, the input key it is derived from", param_hint=hint)
    input_key = loading.input_key(key, passphrase_file) if key is not None else None
    records = read_records(isnn) if isnn is not None else ()
    from tessera.protect import bundle_of, draw_curves, write_bundle  # torch: after what is quick to refuse
    from tessera.protect import recipe as recipe_called

    with argument("--recipe"):
        chosen = recipe_called(recipe)
    options: dict[str, Any] = {
        "seed": seed,
        "changes": {"batch": batch, "learning_rate": lr, "precision": precision, "compile": compiled},
        "data": data,
        "epochs": epochs,
        "device": device,
        "wrong_keys": wrong_keys,
        "checkpoint_dir": checkpoints,
    }
    if records and input_key is not None:
        trained = run_isnn(chosen, transform, input_key, records, illegal=illegal, start=start, **options)
    else:
        with argument("--transform"):
            spec = _spec(chosen, transform) if input_key is not None else None
        trained = run_training(chosen, spec, input_key, **options)
    write_bundle(bundle_of(trained), out, curves=draw_curves(trained.report))
    document = {
        "bundle": str(out),
        "recipe": chosen.name,
        "transform": str(trained.transform) if trained.transform is not None else None,
        "input_key_id": trained.input_key_id,
        **({"input_key_ids": list(trained.input_key_ids)} if trained.input_key_ids else {}),
        trained.accuracy.metric: trained.report[trained.accuracy.metric],
        "seconds": trained.report["seconds"],
    }
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


@protect_app.command("recipes", epilog="Example: tessera protect recipes --json")
def recipes(as_json: JsonFlag = False) -> None:
    """List the recipes that come with Tessera: what data each needs, and how long it takes where that was measured."""
    from tessera.protect import RECIPES

    entries = [
        {
            "name": entry.name,
            "transform": entry.transform,
            "needs": entry.needs,
            "duration": entry.duration,
            "summary": entry.summary,
        }
        for entry in RECIPES.values()
    ]
    columns = ("name", "transform", "needs", "duration", "summary")
    rows = [[entry[column] for column in columns] for entry in entries]
    console.emit({"recipes": entries}, as_json=as_json, show=lambda: [console.table(columns, rows)])


@protect_app.command("samples", epilog="Example: tessera protect samples --recipe digits --count 10 --out scans.npy")
def samples(
    recipe: RecipeOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help=".npy file to write; never replaced.")],
    count: Annotated[int, typer.Option(min=1, help="How many, evenly from the test set.")] = 10,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write plain test images of a recipe as a uint8 .npy array and print their labels: something to infer on."""
    import numpy as np

    from tessera.cli import loading

    loading.new_file(out)
    from tessera.protect import recipe as recipe_called

    with argument("--recipe"):
        chosen = recipe_called(recipe)
    test = chosen.task(data).data.test
    shown = min(count, len(test))
    places = [index * len(test) // shown for index in range(shown)]
    images, labels = test.images[places].numpy(), test.labels[places].numpy()
    with out.open("xb") as stream:
        np.save(stream, images)
    document: dict[str, Any] = {"file": str(out), "shape": list(images.shape)}
    document |= {"labels": labels.tolist()} if labels.ndim == 1 else {}
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


protect_app.command(
    "trace",
    epilog="Example: tessera protect trace leaked-bundle --key master.key --buyers buyers.json --samples test.npz",
)(trace)


def _spec(recipe: "Recipe", text: str | None) -> "TransformSpec":
    from tessera.transforms import TransformSpec

    return TransformSpec.parse_text(text if text is not None else recipe.transform)
