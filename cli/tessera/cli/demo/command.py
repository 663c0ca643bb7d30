"""`tessera demo`: the whole life of one model in about a minute."""

from pathlib import Path
from typing import Annotated

import typer

from tessera.cli.options import MAX_SEED
from tessera.keystore.errors import Conflict


def demo(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the findings as JSON; replaced if there.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Leave everything in this new folder and print how to go on by hand."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the training; keys are always fresh.")] = 0,
) -> None:
    """Train, seal, license, serve, stream and meter one real model, and show what fails without a licence or a key.

    Everything is real: handwritten digits, a server process with TLS, the client SDK. Exit status 1 when something was
    not as expected.
    """
    from tessera.cli import loading

    if json_file is not None:
        loading.replaceable_file(json_file)
    if keep is not None:
        loading.possible_folder(keep)
        if keep.exists() and any(keep.iterdir()):
            raise Conflict(f"{keep} is not an empty folder", remedy="name a new folder")
    from tessera.cli.demo.play import play  # brings torch: after what is quick to refuse

    raise typer.Exit(0 if play(json_file=json_file, keep=keep, seed=seed) else 1)
