"""`tessera protect fingerprint` and `tessera protect identify`: a copy for each buyer, and whose copy leaked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tessera.cli import console, kinds
from tessera.cli.isnn import read_record, read_records
from tessera.cli.options import JsonFlag, PassphraseFile
from tessera.cli.reading import argument, reading
from tessera.keystore.errors import ApiMisuse, Malformed

if TYPE_CHECKING:
    from tessera.protect.fingerprint import Identification

SHOWN: Final = 20
"""Buyers and tensors of a table; --json has them all."""


def fingerprint(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The unmarked model, which stays with you.")],
    key: Annotated[
        Path, typer.Option(metavar="KEY", help="Your secret: an input key, the master of the model or one of its own.")
    ],
    record: Annotated[Path, typer.Option(metavar="FILE", help="JSON file with the buyer's copyright record.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the copy; never replaced.")],
    strength: Annotated[
        float, typer.Option(help="Size of the mark, as a share of the weights' own: from 0.001 to 0.1.")
    ] = 0.005,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Make one buyer's copy of a bundle: the same model, with an invisible mark by which a leak tells whose it was."""
    from tessera.cli import loading

    loading.new_folder(out)
    secret = loading.input_key(key, passphrase_file)
    buyer = read_record(record)
    from tessera.protect import read_bundle, write_bundle  # torch: after what is quick to refuse
    from tessera.protect.fingerprint import check_strength, output_change
    from tessera.protect.fingerprint import fingerprint as marked

    with argument("--strength", only=(ApiMisuse,)):
        check_strength(strength)
    with reading(bundle, kinds.BUNDLE):
        found = read_bundle(bundle)
    with argument("--strength", only=(ApiMisuse,)), reading(bundle, kinds.BUNDLE):
        made = marked(found, secret, buyer, strength=strength)
        change = output_change(found, made)
    write_bundle(made, out)
    document: dict[str, Any] = {
        "bundle": str(out),
        **buyer.to_json(),
        "strength": strength,
        "output_change": change,
    }
    shown = {
        "bundle": str(out),
        "copy of": buyer.label,
        "strength": strength,
        "outputs move by": f"{change:.2%} on random images",
    }
    console.emit(document, as_json=as_json, show=lambda: [console.fields(shown)])
    console.note("Quality was not measured again: the figures in the copy are those of the original.")


def identify(
    leaked: Annotated[
        Path, typer.Argument(metavar="FILE", help="The weights that leaked: a .safetensors file, or a bundle's folder.")
    ],
    original: Annotated[
        Path, typer.Option(metavar="DIR", help="The bundle that buyers' copies were made from, itself unmarked.")
    ],
    key: Annotated[Path, typer.Option(metavar="KEY", help="The secret that the copies were made with.")],
    buyers: Annotated[Path, typer.Option(metavar="FILE", help="JSON list of the buyers' copyright records.")],
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Say whose copy a leaked file of weights is: buyers ranked by how well their marks fit, with a significance."""
    from tessera.cli import loading

    secret = loading.input_key(key, passphrase_file)
    records = read_records(buyers)
    from tessera.protect import read_bundle
    from tessera.protect.fingerprint import identify as identified
    from tessera.protect.fingerprint import read_leaked

    with reading(leaked, kinds.LEAKED_FOLDER if leaked.is_dir() else kinds.LEAKED):
        weights = read_leaked(leaked)
    with reading(original, kinds.BUNDLE):
        bundle = read_bundle(original)
    with argument("--original", only=(Malformed,)), console.progress("comparing weights") as advance:
        found = identified(bundle, weights, secret, records, progress=advance)
    document = {"leaked": str(leaked), **found.to_json()}
    console.emit(document, as_json=as_json, show=lambda: _shown(found))


def _shown(found: "Identification") -> list[Any]:
    shown = found.suspects[: max(SHOWN, len(found.named))]
    rows = [
        [
            *(one.record.buyer, one.record.licence, f"{one.z:.1f}", f"{one.strongest:.1f}", chance(one.log10_p)),
            "yes" if one.named else "no",
        ]
        for one in shown
    ]
    best = found.suspects[0]
    tensors = [
        [one.name, one.how, one.values, f"{one.distance:.4f}", f"{z:.1f}"]
        for one, z in zip(found.tensors, best.by_tensor, strict=True)
    ]
    return [
        console.table(("buyer", "licence", "z", "strongest", "p-value", "named"), rows),
        *_left_out(len(found.suspects) - len(shown), "buyers, none of them named"),
        console.table(("tensor", "compared", "values", "distance", f"z of {best.record.label}"), tensors[:SHOWN]),
        *_left_out(len(tensors) - SHOWN, "tensors; --json has them"),
        f"in common: {len(found.tensors)} of {len(found.tensors) + len(found.missing)} marked tensors; "
        f"{best.carried_by} carry the mark of {best.record.label}",
        _verdict(found),
    ]


def chance(log10_p: float) -> str:
    """Return a chance for people, however small: `0.31`, `2e-09`, `1e-1432`."""
    return f"{10.0**log10_p:.2g}" if log10_p > -300 else f"1e{log10_p:.0f}"


def _verdict(found: "Identification") -> str:
    if not found.values:
        return "whose copy: nobody's; these are the original's own weights, without a mark"
    named = ", ".join(one.record.label for one in found.named)
    return f"whose copy: {named or 'none of these buyers can be named'}"


def _left_out(count: int, what: str) -> list[str]:
    return [f"… and {count} more {what}"] if count > 0 else []
