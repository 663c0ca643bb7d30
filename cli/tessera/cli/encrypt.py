"""`tessera protect encrypt`: lock the few weights that matter, and make licence tiers that are qualities."""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from tessera.cli import console, kinds
from tessera.cli.held import held_by_recipe, held_in_file
from tessera.cli.isnn import legal_key
from tessera.cli.options import MAX_SEED, JsonFlag, PassphraseFile
from tessera.cli.protect import DataOption
from tessera.cli.reading import argument, reading
from tessera.keystore.errors import ApiMisuse

NARROW: Final = 0.2
"""Layers with less of the network's weights than this are worth a word: a transformer's one convolution, say."""


def encrypt(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `tessera protect train` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the new bundle; never replaced.")],
    recipe: Annotated[str | None, typer.Option(help="Recipe whose data the tiers are measured on.")] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=".npz with `images` uint8 (N, C, H, W) and `labels` (N,) in place of a recipe: even samples are used "
            "to choose, odd ones to measure.",
        ),
    ] = None,
    data: DataOption = None,
    budget: Annotated[
        float, typer.Option(help="Share of the units to encrypt, of each layer or (--scope global) of all, up to 1.")
    ] = 0.08,
    tiers: Annotated[
        str, typer.Option(metavar="FRACTIONS", help="Share of the encrypted units that each tier gets back, rising.")
    ] = "0,0.68,0.76,0.84,0.92,1.0",
    names: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="What the tiers are called, lowest first: basic,good,full; default: tier-1, …, full."
        ),
    ] = None,
    layers: Annotated[str, typer.Option(help="Names of layers, or auto: every convolution larger than 1x1.")] = "auto",
    scope: Annotated[
        str, typer.Option(help="layer: the budget holds in each layer; global: one ranking over all.")
    ] = "layer",
    scores: Annotated[
        str, typer.Option(help="How units are ranked: pss, opening, gradient, fisher; random, descend, ascend, mean.")
    ] = "opening",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of pss for each layer (the paper: 26,000).")] = None,
    decoys: Annotated[
        str, typer.Option(help="What stands in their place: kernel (like its layer), or normal (the paper's).")
    ] = "kernel",
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the ranking; decoys are always fresh.")] = 0,
    key: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Input key, when the model was trained with one.")
    ] = None,
    buyers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For a model made for buyers: their copyright records; --key is the master."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Encrypt the weights that matter most and measure what each licence tier is worth; the bundle stays secret."""
    from tessera.cli import loading

    loading.new_folder(out)
    if (recipe is None) == (samples is None):
        raise typer.BadParameter("give one of --recipe and --samples, to measure the tiers on")
    input_key = loading.input_key(key, passphrase_file) if key is not None else None
    if buyers is not None and input_key is not None:
        input_key = legal_key(input_key, buyers)
    from tessera.protect import read_bundle, write_bundle  # torch: after what is quick to refuse
    from tessera.protect.selective import SHORT, Schedule, Settings, encrypt_bundle, parse_fractions

    with argument("--tiers", only=(ApiMisuse,)):
        fractions = parse_fractions(tiers)
    settings = Settings(
        budget=budget,
        fractions=fractions,
        layers=None if layers == "auto" else _words(layers),
        names=None if names is None else _words(names),
        scope=scope,  # type: ignore[arg-type]  # checked by make_plan
        scores=scores,  # type: ignore[arg-type]  # checked by score_by
        decoys=decoys,  # type: ignore[arg-type]  # checked by make_decoys
        schedule=SHORT if steps is None else Schedule(steps=steps),
        seed=seed,
    )
    with reading(bundle, kinds.BUNDLE):
        found = read_bundle(bundle)
    held = held_by_recipe(recipe, data) if recipe is not None else held_in_file(samples)
    with console.progress("ranking units") as advance:
        made = encrypt_bundle(found, held, settings, key=input_key, progress=advance)
    write_bundle(made.bundle, out)
    document = {"bundle": str(out), **made.report}
    console.emit(document, as_json=as_json, show=lambda: _shown(str(out), made.report))
    if layers == "auto" and (share := _chosen_share(made.report)) < NARROW:
        console.note(
            f"auto took the convolutions larger than 1x1, which hold {share:.0%} of the network's weights; "
            "name others with --layers to encrypt there too."
        )
    if made.report["lowest_is_useless"] is False:
        console.note("The lowest tier is still better than guessing: raise --budget, or try --scope global.")
    if not made.report["rising"]:
        console.note("Two tiers measure the same or fall: use fewer tiers, or fractions further apart.")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _chosen_share(report: dict[str, Any]) -> float:
    """Return the share of the network's weights that lie in the chosen layers."""
    encrypted = report["encrypted"]
    share: float = encrypted["share_of_network"] / encrypted["share_of_chosen_layers"]
    return share


def _shown(out: str, report: dict[str, Any]) -> list[Any]:
    encrypted, metric = report["encrypted"], report["metric"]
    rows = [[entry["tier"], entry["name"], entry["fraction"], round(entry[metric], 4)] for entry in report["tiers"]]
    lines = {
        "bundle": out,
        "units encrypted": encrypted["units"],
        "share of the chosen layers": f"{encrypted['share_of_chosen_layers']:.2%}",
        "share of the network": f"{encrypted['share_of_network']:.2%}",
        "ranked in": f"{report['score_seconds']:.1f} s",
        "measured on": f"{report['test_samples']} samples",
    }
    return [console.fields(lines), console.table(("tier", "name", "decrypted", metric), rows)]
