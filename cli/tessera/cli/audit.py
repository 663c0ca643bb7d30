"""`tessera protect audit`: the attack report that a vendor reads before selling."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tessera.cli import console, kinds
from tessera.cli.isnn import legal_key
from tessera.cli.options import MAX_SEED, JsonFlag, PassphraseFile
from tessera.cli.package import secrets_beside
from tessera.cli.protect import DataOption
from tessera.cli.reading import argument, reading
from tessera.keystore.errors import ApiMisuse, Malformed

if TYPE_CHECKING:
    from tessera.keystore.secrets import InputKey
    from tessera.protect import TrainingTask
    from tessera.protect.audit import Report, Subject

CHECKPOINT: Final = "checkpoint.pt"
PROTECTED: Final = kinds.Kind(
    "a protected model",
    "give the folder that `tessera protect train` wrote, a sealed package, or a folder of --checkpoints",
)


def audit(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A bundle, a sealed package, or a checkpoint of a training run.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for report.html and report.json; never replaced.")
    ],
    key: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="The model's input key; a package's secrets hold it. It judges attacks only."),
    ] = None,
    buyers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For a model made for buyers: their copyright records; the first stands for all, --key is the master.",
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=".npz with `images` uint8 (N, C, H, W) and `labels` (N,) or (N, H, W): half is the attackers', half "
            "judges them.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe that the model was trained with: its training data is the attackers', its test data judges."
        ),
    ] = None,
    data: DataOption = None,
    budget: Annotated[str, typer.Option(help="What attackers may spend: quick, standard or full.")] = "quick",
    minutes: Annotated[
        float | None, typer.Option(help="Most minutes for all attacks together; default: the budget's.")
    ] = None,
    attack: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Run this attack only; repeatable. Default: all.")
    ] = None,
    issuer: Annotated[
        list[Path] | None, typer.Option(metavar="PUB", help="Public identity of a package's issuer; repeatable.")
    ] = None,
    secrets: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A package's keys; default PACKAGE.secrets beside it.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of everything that attackers draw.")] = 0,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda or cuda:N.")] = "cpu",
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Attack a protected model with a stated effort and write what it is worth to a thief: report.html, report.json."""
    from tessera.cli import loading

    loading.new_folder(out)
    if recipe is None and samples is None:
        raise typer.BadParameter("give --samples, a labelled sample, or --recipe, whose data is one")
    if buyers is not None and key is None:
        raise typer.BadParameter("needs --key, the master input key", param_hint="--buyers")
    input_key = loading.input_key(key, passphrase_file) if key is not None else None
    if buyers is not None and input_key is not None:
        input_key = legal_key(input_key, buyers)
    from tessera.protect import audit as room  # torch: after what is quick to refuse
    from tessera.protect import recipe as recipe_called

    with argument("--budget"):
        allowed = room.budget(budget)
    if minutes is not None:
        with argument("--minutes", only=(ApiMisuse,)):
            allowed = allowed.within(minutes)
    with argument("--attack"):
        room.chosen_attacks(attack)
    with argument("--recipe"):
        task = recipe_called(recipe).task(data) if recipe is not None else None
    subject = _subject(model, input_key, task, issuer, secrets, passphrase_file)
    if samples is not None:
        with argument("--samples"):
            sample = room.sample_of_npz(samples, subject.classes, seed=seed)
    else:
        assert task is not None
        sample = room.sample_of_task(task)
    report = room.audit(subject, sample, allowed, attacks=attack, seed=seed, device=device, bars=console.progress)
    room.write_report(report, out)
    document = _document(report, out)
    console.emit(document, as_json=as_json, show=lambda: _shown(report, document))


def _subject(
    path: Path,
    key: "InputKey | None",
    task: "TrainingTask | None",
    issuer: list[Path] | None,
    secrets: Path | None,
    passphrase_file: Path | None,
) -> "Subject":
    """Return the model at `path`, whichever of the three kinds it is."""
    from tessera.protect import audit as room
    from tessera.protect import read_bundle

    if kinds.recognised(path) == kinds.PACKAGE.name:
        return _of_package(path, key, task, issuer, secrets, passphrase_file)
    checkpoint = path.name == CHECKPOINT or (path / CHECKPOINT).exists()
    if checkpoint and not (path / "bundle.json").exists():
        return _of_checkpoint(path, key, task)
    if not path.is_dir():
        with reading(path, PROTECTED):
            raise Malformed("it is no bundle, package or checkpoint")
    with reading(path, kinds.BUNDLE):
        return room.subject_of_bundle(read_bundle(path), key, name=path.name, task=task)


def _of_package(
    path: Path,
    key: "InputKey | None",
    task: "TrainingTask | None",
    issuer: list[Path] | None,
    secrets: Path | None,
    passphrase_file: Path | None,
) -> "Subject":
    from tessera.cli import loading
    from tessera.protect import audit as room

    if not issuer:
        raise typer.BadParameter("a package needs --issuer, the public identity of who signed it")
    held = loading.package_secrets(secrets or secrets_beside(path), passphrase_file)
    with reading(path, kinds.PACKAGE):
        return room.subject_of_file(path, loading.issuers(issuer), held, key=key, task=task)


def _of_checkpoint(path: Path, key: "InputKey | None", task: "TrainingTask | None") -> "Subject":
    from tessera.protect import audit as room

    if task is None:
        raise typer.BadParameter("a checkpoint needs --recipe, whose network its weights belong to")
    if key is None:
        raise typer.BadParameter("a checkpoint needs --key, the input key that the run was given")
    return room.subject_of_checkpoint(path, key, task)


def _document(report: "Report", out: Path) -> dict[str, Any]:
    from tessera.protect.audit import measured, tiers_measured

    found, tiers, subject = measured(report.results), tiers_measured(report.results), report.subject
    return {
        "report": str(out / "report.html"),
        "json": str(out / "report.json"),
        "transform": None if subject.lock is None else str(subject.lock.spec),
        "tiers": None if subject.cut is None else subject.cut.tiers,
        "metric": report.sample.metric,
        "right_key": None if found is None else round(found.right, 4),
        "plain": None if found is None or found.plain is None else round(found.plain, 4),
        "full_model": None if tiers is None else round(tiers.full, 4),
        "file_alone": None if tiers is None else round(tiers.alone, 4),
        "cut_short": any(row.cut_short for result in report.results for row in result.rows),
        "seconds": round(report.seconds, 1),
        "verdicts": {verdict.attacker: verdict.level for verdict in report.verdicts},
    }


def _shown(report: "Report", document: dict[str, Any]) -> list[Any]:
    rows = [[verdict.attacker, verdict.who, verdict.level, verdict.says] for verdict in report.verdicts]
    facts = {name: value for name, value in document.items() if name != "verdicts"}
    return [console.table(("attacker", "who", "the lock", "measured"), rows), console.fields(facts)]
