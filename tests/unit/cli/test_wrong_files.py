"""Every command, given every kind of wrong file in every place: it says which file, what is wrong, and what to do."""

import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from support.cli import run_quickly
from support.zoo import FILES, FOLDERS, Zoo, make_zoo
from tessera.cli.main import app

CALLS = {
    "identity new": "--name Ada --out @new --passphrase-file {passphrase}",
    "identity show": "{issuer.key.pub}",
    "infer": "{scans.npy} --model digits --server localhost:9 --timeout 20 --ca {ca.pem} --identity {buyer.key} "
    "--licence {licence} --input-key {input.key} --out @new --receipts %new",
    "infer with a locked key": "{scans.npy} --model digits --server localhost:9 --timeout 20 --ca {ca.pem} "
    "--identity {locked.key} --licence {licence} --passphrase-file {passphrase}",
    "keys buyer": "--key {input.key} --copyright {record.json} --out @new --passphrase-file ~passphrase",
    "keys new": "--kind input --out @new --passphrase-file {passphrase}",
    "keystore certificate": "{node} --passphrase-file {passphrase}",
    "keystore init": "%new --passphrase-file {passphrase}",
    "keystore passphrase": "{node} --passphrase-file {passphrase} --new-passphrase-file {passphrase}",
    "keystore rotate": "{node} --passphrase-file {passphrase}",
    "keystore seal": "{node}",
    "keystore status": "{node}",
    "keystore trust": "{node} {issuer.key.pub}",
    "keystore unseal": "{node} --passphrase-file ~passphrase",
    "licence inspect": "{licence} --issuer {issuer.key.pub}",
    "licence install": "{licence} --keystore {node}",
    "licence issue": "--issuer {issuer.key} --package {package} --secrets {package.secrets} --buyer {buyer.key.pub} "
    "--node {node.pub} --out @new --copyright {record.json} --passphrase-file ~passphrase",
    "licence list": "--keystore {node}",
    "licence revoke": "{licence} --issuer {issuer.key} --list {revocations} --keystore {node} "
    "--passphrase-file ~passphrase",
    "model list": "--keystore {node}",
    "model load": "digits --keystore {node}",
    "model publish": "{package} --keystore {node}",
    "model unload": "digits --keystore {node}",
    "health": "--ca {ca.pem} --server localhost:9 --timeout 20",
    "package build": "{bundle} --issuer {issuer.key} --input-key {input.key} --buyers {buyers.json} --out @new "
    "--secrets @new2 --model digits --passphrase-file ~passphrase",
    "package inspect": "{package}",
    "package verify": "{package} --issuer {issuer.key.pub} --secrets {package.secrets} --passphrase-file ~passphrase",
    "protect audit": "{package} --issuer {issuer.key.pub} --secrets {package.secrets} --key {input.key} --out %new "
    "--samples ~sample.npz --passphrase-file ~passphrase",
    "protect audit with buyers": "~bundle --key {input.key} --buyers {buyers.json} --samples ~sample.npz --out %new",
    "protect audit with a recipe": "~package --issuer ~issuer.key.pub --out %new --recipe cifar10-fast --data {folder}",
    "protect encrypt": "{bundle} --key {input.key} --out %new --samples ~sample.npz --passphrase-file ~passphrase",
    "protect encrypt with buyers": "{bundle} --key {input.key} --buyers {buyers.json} --out %new --samples ~sample.npz",
    "protect encrypt with a recipe": "~bundle --out %new --recipe cifar10-fast --data ~folder",
    "protect lock": "{bundle} --old-key {input.key} --key ~input.key --out %new --passphrase-file ~passphrase",
    "protect lock with samples": "~bundle --key {input.key} --out %new --samples {sample.npz}",
    "protect lock with a recipe": "~bundle --key {input.key} --out %new --recipe cifar10-fast --data {folder}",
    "protect fingerprint": "{bundle} --key {input.key} --record {record.json} --out %new --passphrase-file ~passphrase",
    "protect identify": "{plain.safetensors} --original {bundle} --key {input.key} --buyers {buyers.json} "
    "--passphrase-file ~passphrase",
    "protect samples": "--recipe cifar10-fast --data {folder} --out @new",
    "protect train": "--recipe digits --key {input.key} --out %new --checkpoints %new2 --passphrase-file ~passphrase",
    "protect train with buyers": "--recipe digits --key {input.key} --isnn {buyers.json} --start {bundle} --out %new",
    "protect trace": "{bundle} --key {input.key} --buyers {buyers.json} --samples {sample.npz} --transform isnn:8:12 "
    "--passphrase-file ~passphrase",
    "protect train with data": "--recipe cifar10-fast --data {folder} --out %new",
    "serve": "{node} --config {settings.toml} --passphrase-file {passphrase}",
    "usage export": "--keystore {node} --out @new --passphrase-file {passphrase}",
    "usage report": "--keystore {node}",
    "usage verify": "{usage} --node {node.pub}",
    "demo": "--keep %new --json @new2",
}
"""A call of each command that has file arguments. `{x}` is read, `@x` is a file and `%x` a folder that is made.

`~x` is not tried with wrong files here: it is read after things that these calls do not have, such as a model that
runs, a locked key file, a running server.
"""

FITS = {
    "identity show": {"buyer.key.pub", "issuer.key.pub", "issuer.key", "buyer.key", "node.pub"},
    "{issuer.key.pub}": {"issuer.key.pub", "issuer.key"},
    "{buyer.key.pub}": {"buyer.key.pub", "buyer.key"},
    "{passphrase}": set(FILES) - set(FOLDERS) - {"empty", "scans.npy"},
    "{scans.npy}": {"scans.npy", "floats.npy", "picture.png"},
    "{buyer.key}": {"buyer.key", "locked.key"},
    "{locked.key}": {"buyer.key", "locked.key"},
    "{usage}": {"usage", "receipt"},
    "{settings.toml}": {"settings.toml", "empty"},
}
"""What may stand in a place besides the file that does: nothing wrong is seen before more of the work is done."""

FILE_METAVARS = re.compile(r"(FILE|DIR|KEY|PATH|PUB|PACKAGE|BUNDLE|LICENCE|INPUT|MODEL)…?")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """One of every kind."""
    return make_zoo(tmp_path_factory.mktemp("zoo"))


def commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Yield every command with its options and arguments that take files."""
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from commands(child, (*path, name))
        else:
            files = [one.opts[0] for one in child.params if FILE_METAVARS.fullmatch(one.metavar or "")]
            yield " ".join((*path, name)), files


def places() -> Iterator[tuple[str, int, str]]:
    """Yield (command, position of the word, option or `argument`) of every file in `CALLS`."""
    for command, call in CALLS.items():
        words = shlex.split(call)
        for at, word in enumerate(words):
            option = words[at - 1] if at and words[at - 1].startswith("--") else "argument"
            if word[0] in "{@%":
                yield command, at, option


def call(zoo: Zoo, folder: Path, command: str, at: int, wrong: Path) -> list[str]:
    """Return the command line of `CALLS[command]` with `wrong` in the place `at`; what is made goes to `folder`."""
    words = []
    for index, word in enumerate(shlex.split(CALLS[command])):
        good = str(zoo[word.strip("~{}")]) if word[0] in "~{" else word
        words.append(str(wrong) if index == at else str(folder / word[1:]) if word[0] in "@%" else good)
    return [*command.partition(" with ")[0].split(), *words]


def check(arguments: list[str], wrong: Path) -> str:
    """Hold that a call is refused in two lines that name the wrong file and a remedy; return them."""
    status, told = run_quickly(*arguments)
    assert status == 1, f"{arguments}: {told}"
    last = told[told.find("error: ") :]  # a progress bar may stand before it
    assert re.fullmatch(r"error: [^\n]+\nremedy: [^\n]+\n", last), told
    assert str(wrong) in last.splitlines()[0], told
    assert "unexpected" not in last
    return last


READ = [place for place in places() if shlex.split(CALLS[place[0]])[place[1]].startswith("{")]
MADE = [place for place in places() if not shlex.split(CALLS[place[0]])[place[1]].startswith("{")]


def test_every_file_argument_of_every_command_is_in_the_table() -> None:
    """A command that is new, or takes a new file, is tried with wrong ones as well."""
    for command, options in commands(get_command(app)):
        given = " ".join(text for name, text in CALLS.items() if name.partition(" with ")[0] == command)
        for option in options:
            assert option in given if option.startswith("--") else not given.startswith("--"), (command, option)


@pytest.mark.parametrize(("command", "at", "option"), READ, ids=[f"{c} {o} {a}" for c, a, o in READ])
def test_a_file_of_another_kind_is_named_with_a_remedy(
    zoo: Zoo, tmp_path: Path, command: str, at: int, option: str
) -> None:
    """Whatever else lies in the zoo, given in the place of the right file."""
    word = shlex.split(CALLS[command])[at]
    fits = FITS.get(command, set()) | FITS.get(word, {word.strip("{}")})
    wrong = [zoo[name] for name in FILES if name not in fits]
    if word != "{revocations}":  # an absent list is started
        wrong.append(tmp_path / "absent")
    for path in [*wrong, tmp_path / "absent" / "deeper"]:
        check(call(zoo, tmp_path, command, at, path), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("command", "at", "option"), READ, ids=[f"{c} {o} {a}" for c, a, o in READ])
def test_a_secret_file_that_others_may_read_is_refused_with_the_cure(
    zoo: Zoo, tmp_path: Path, command: str, at: int, option: str
) -> None:
    """Key files, package secrets and passphrases; the cure can be pasted."""
    word = shlex.split(CALLS[command])[at].strip("{}")
    if not (word.endswith((".key", ".secrets")) or word == "passphrase"):
        return
    exposed = tmp_path / word
    exposed.write_bytes(zoo[word].read_bytes())
    exposed.chmod(0o644)
    told = check(call(zoo, tmp_path, command, at, exposed), exposed)
    assert f"remedy: chmod 600 {exposed}" in told
    assert stat.S_IMODE(exposed.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [exposed]


@pytest.mark.parametrize(("command", "at", "option"), MADE, ids=[f"{c} {o} {a}" for c, a, o in MADE])
def test_what_cannot_be_made_is_told_before_the_work(
    zoo: Zoo, tmp_path: Path, command: str, at: int, option: str
) -> None:
    """A file or folder that exists, or that would lie inside a file or a folder that is not there."""
    folder = shlex.split(CALLS[command])[at].startswith("%")
    kept = tmp_path / "kept"
    kept.write_text("kept")
    replaced = (command, option) == ("demo", "--json")
    for path in (*(() if replaced else (kept,)), kept / "below", *(() if folder else (tmp_path / "absent" / "below",))):
        check(call(zoo, tmp_path, command, at, path), path)
    assert kept.read_text() == "kept"


@pytest.mark.parametrize(
    "command", ["identity show", "licence inspect", "package inspect", "package verify", "usage verify", "infer"]
)
def test_the_right_files_get_past_reading(zoo: Zoo, tmp_path: Path, command: str) -> None:
    """The table's own calls are sound: what is refused above is refused for the wrong file and nothing else."""
    status, told = run_quickly(*call(zoo, tmp_path, command, -1, tmp_path))
    assert status == 0 or "nothing answers at the server's address" in told, told
