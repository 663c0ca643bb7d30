"""`tessera infer`: the buyer's SDK from a shell, for trying a licence and for scripts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli import console
from tessera.cli.options import JsonFlag, PassphraseFile, parse_address
from tessera.cli.reading import argument
from tessera.keystore.errors import Malformed

if TYPE_CHECKING:
    from tessera.cli.samples import Given
    from tessera.client import Answer, ModelContract, SessionInfo

ServerOption = Annotated[
    str, typer.Option("--server", envvar="TESSERA_SERVER", metavar="HOST:PORT", help="Where the server listens.")
]
CaOption = Annotated[
    Path | None,
    typer.Option("--ca", envvar="TESSERA_CA", metavar="FILE", help="CA certificate, ca.pem; none: system roots."),
]
IdentityOption = Annotated[Path, typer.Option(metavar="KEY", help="Your identity's key file.")]
LicenceOption = Annotated[Path, typer.Option(metavar="FILE", help="Your licence file.")]
InputKeyOption = Annotated[
    Path | None, typer.Option("--input-key", metavar="KEY", help="Input key; default: the one sealed in the licence.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Also write the raw outputs of all inputs, joined, as one .npy array; never replaced.",
    ),
]
ReceiptsOption = Annotated[
    Path | None, typer.Option("--receipts", metavar="DIR", help="Keep each usage receipt as DIR/SEQUENCE.receipt.")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Seconds to wait for each answer.")
]
MessageOption = Annotated[
    int, typer.Option("--max-message", metavar="MIB", min=1, max=2047, help="Largest request or answer, in MiB.")
]
InputFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="INPUT",
        help="A .npy array of uint8 (one sample or a batch, in the model's layout), or an image of exactly the model's "
        "size (PNG or JPEG; needs Pillow).",
    ),
]
ModelOption = Annotated[str, typer.Option(help="Model name.")]
TopOption = Annotated[
    int | None,
    typer.Option(
        "--top", min=1, metavar="N", help="Most classes to show for each sample; default: 1, and 8 for an output image."
    ),
]


def infer(
    inputs: InputFiles,
    model: ModelOption,
    identity: IdentityOption,
    licence: LicenceOption,
    server: ServerOption = "localhost:8001",
    ca: CaOption = None,
    input_key: InputKeyOption = None,
    top: TopOption = None,
    out: OutOption = None,
    receipts: ReceiptsOption = None,
    timeout_s: TimeoutOption = 30.0,
    max_message: MessageOption = 256,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Apply your key to the inputs here, send them, and print what the model says; the key never leaves this process.

    Shows the best classes with their scores; for an output of the image's size, how much of it each class covers.
    """
    from tessera.cli import loading, samples

    parse_address(server, "--server")
    given = [samples.read(path) for path in inputs]
    if out is not None:
        loading.new_file(out)
    if receipts is not None:
        loading.possible_folder(receipts)
    settings: dict[str, Any] = {
        "identity": loading.identity(identity, "buyer", passphrase_file),
        "licence": loading.licence_file(licence),
        "root_certificates": loading.certificates(ca) if ca is not None else None,
        "input_key": loading.input_key(input_key, passphrase_file) if input_key is not None else None,
        "timeout_s": timeout_s,
        "max_message_bytes": max_message * 2**20,
    }
    answers, session = _ask(server, settings, model, given, sole=out is not None)
    _finish(inputs, answers, session, top=top, out=out, receipts=receipts, as_json=as_json)


def _ask(
    server: str, settings: dict[str, Any], model: str, given: "Sequence[Given]", *, sole: bool
) -> "tuple[list[Answer], SessionInfo]":
    """Return the answers to each file's samples and the session that they came in. Raises what the client raises, in
    the words of the command.
    """
    from tessera.client import Client, MessageTooLarge, ServerUnverified, Unreachable

    with argument(f"--server {server}", only=(Unreachable, ServerUnverified)), Client(server, **settings) as client:
        contract = client.contract(model)
        if sole:
            _check_sole_output(contract)
        batches = [entry.samples(contract) for entry in given]
        try:
            return [client.infer_detailed(model, batch) for batch in batches], client.session_info(model)
        except MessageTooLarge as error:
            if error.status is None:  # the client's own limit, which this command has an option for
                error.remedy = "give --max-message MIB a larger number"
            raise


def _finish(
    inputs: Sequence[Path],
    answers: "Sequence[Answer]",
    session: "SessionInfo",
    *,
    top: int | None,
    out: Path | None,
    receipts: Path | None,
    as_json: bool,
) -> None:
    from tessera.cli.predictions import in_words

    if receipts is not None:
        _keep_receipts(answers, receipts)
    if out is not None:
        _save(out, answers)
    found = [entry for path, answer in zip(inputs, answers, strict=True) for entry in _predictions(path, answer, top)]
    document = {
        "predictions": found,
        "session": {name: getattr(session, name) for name in ("model", "version", "tier", "notice")},
        "seconds": [round(answer.seconds, 6) for answer in answers],
        "usage": [record.to_claims() for answer in answers for record in answer.receipts],
    }
    several = any(len(answer.outputs) > 1 for answer in answers)
    columns = ("file", "sample", *(("output",) if several else ()), "class (score, or share of the image)")
    rows = [
        (entry["file"], entry["sample"], *((entry["output"],) if several else ()), in_words(entry)) for entry in found
    ]
    console.emit(document, as_json=as_json, show=lambda: [console.table(columns, rows)])
    if not as_json:
        told = f"{session.model} version {session.version}, tier {session.tier}"
        console.note(f"{told}; {session.notice}" if session.notice else told)


def _predictions(path: Path, answer: "Answer", top: int | None) -> list[dict[str, Any]]:
    from tessera.cli.predictions import described

    samples = len(next(iter(answer.outputs.values())))
    return [
        {"file": str(path), "sample": index, "output": name} | described(output[index], top)
        for index in range(samples)
        for name, output in answer.outputs.items()
    ]


def _save(out: Path, answers: "Sequence[Answer]") -> None:
    import numpy as np

    joined = np.concatenate([next(iter(answer.outputs.values())) for answer in answers])
    with out.open("xb") as stream:  # np.save would append a suffix to a path
        np.save(stream, joined)


def _check_sole_output(contract: "ModelContract") -> None:
    if len(contract.outputs) != 1:
        names = ", ".join(spec.name for spec in contract.outputs)
        raise Malformed(
            f"--out writes one array, and model {contract.name} has several outputs: {names}",
            remedy="leave --out away, or use infer_detailed of the Python client",
        )


def _keep_receipts(answers: "Sequence[Answer]", folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for answer in answers:
        for record, token in zip(answer.receipts, answer.receipt_tokens, strict=True):
            (folder / f"{record.sequence}.receipt").write_text(token + "\n", encoding="ascii")
