"""`tessera infer`: the buyer's SDK from a shell, for trying a licence and for scripts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli import console
from tessera.cli.options import JsonFlag, PassphraseFile
from tessera.keystore.errors import Malformed, NotFound

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tessera.client import Answer, ModelContract

    Image = NDArray[np.uint8]
    Array = NDArray[Any]

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
SaveOption = Annotated[
    Path | None, typer.Option("--save", metavar="FILE", help="Also write the raw outputs as .npy; never replaced.")
]
ReceiptsOption = Annotated[
    Path | None, typer.Option("--receipts", metavar="DIR", help="Keep each usage receipt as DIR/SEQUENCE.receipt.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for each answer.")]
InputFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="INPUT…",
        help="A .npy array of uint8 (one sample or a batch, in the model's layout), or an image of the model's size.",
    ),
]
ModelOption = Annotated[str, typer.Option(help="Model name.")]
TopOption = Annotated[int, typer.Option("--top", min=1, help="How many classes to show for each sample.")]


def infer(
    inputs: InputFiles,
    model: ModelOption,
    identity: IdentityOption,
    licence: LicenceOption,
    server: ServerOption = "localhost:8001",
    ca: CaOption = None,
    input_key: InputKeyOption = None,
    top: TopOption = 1,
    save: SaveOption = None,
    receipts: ReceiptsOption = None,
    timeout_s: TimeoutOption = 30.0,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Apply your key to the inputs here, send them, and print the predictions; the key never leaves this process."""
    from tessera.cli import loading
    from tessera.client import Client

    for path in inputs:
        loading.existing(path, "input file")
    if save is not None:
        loading.refuse_existing(save)
    key = loading.input_key(input_key, passphrase_file) if input_key is not None else None
    buyer = loading.identity(loading.existing(identity, "identity"), "buyer", passphrase_file)
    licence_file = loading.existing(licence, "licence file")
    roots = loading.existing(ca, "CA certificate") if ca is not None else None
    with Client(
        server, identity=buyer, licence=licence_file, root_certificates=roots, input_key=key, timeout_s=timeout_s
    ) as client:
        contract = client.contract(model)
        samples = [load_samples(path, contract) for path in inputs]
        answers = [client.infer_detailed(model, batch) for batch in samples]
    _finish(inputs, answers, top=top, save=save, receipts=receipts, as_json=as_json)


def load_samples(path: Path, contract: "ModelContract") -> "Image":
    """Return the samples of a file as a uint8 batch in the model's layout. Raises `Malformed` for what does not fit."""
    import numpy as np

    shape = tuple(contract.inputs[0].shape[1:])
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError):
            raise Malformed(f"{path} is not a .npy array") from None
    else:
        array = _from_image(path, shape)
    if array.dtype != np.uint8:
        raise Malformed(f"{path} holds {array.dtype}, the model takes uint8", remedy="scale to 0 … 255 and convert")
    if array.shape[-len(shape) :] != shape and array.shape[-2:] == shape[1:] and shape[0] == 1:
        array = array[..., None, :, :]
    if array.shape[-len(shape) :] != shape or array.ndim not in (len(shape), len(shape) + 1):
        raise Malformed(
            f"{path} has shape {list(array.shape)}, the model takes {list(shape)} for each sample",
            remedy="resize it first",
        )
    return np.ascontiguousarray(array.reshape(-1, *shape))


def _from_image(path: Path, shape: Sequence[int]) -> "Image":
    import numpy as np

    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError:
        raise NotFound("image files need Pillow", remedy="pip install pillow, or give a .npy array") from None
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB"), dtype=np.uint8)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        raise Malformed(f"{path} is not an image that can be read") from None
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _finish(
    inputs: Sequence[Path],
    answers: "Sequence[Answer]",
    *,
    top: int,
    save: Path | None,
    receipts: Path | None,
    as_json: bool,
) -> None:
    import numpy as np

    predictions = [
        found
        for path, answer in zip(inputs, answers, strict=True)
        for found in _predictions(path, next(iter(answer.outputs.values())), top)
    ]
    if save is not None:
        np.save(save, np.concatenate([next(iter(answer.outputs.values())) for answer in answers]))
    if receipts is not None:
        _keep_receipts(answers, receipts)
    document = {
        "predictions": predictions,
        "seconds": [round(answer.seconds, 6) for answer in answers],
        "usage": [record.to_claims() for answer in answers for record in answer.receipts],
    }
    rows = [
        (found["file"], found["sample"], "  ".join(f"{one['class']} ({one['score']:.3f})" for one in found["top"]))
        for found in predictions
    ]
    console.emit(document, as_json=as_json, show=lambda: [console.table(("file", "sample", "class (score)"), rows)])


def _predictions(path: Path, scores: "Array", top: int) -> list[dict[str, Any]]:
    import numpy as np

    found = []
    for index, row in enumerate(scores.reshape(len(scores), -1)):
        best = np.argsort(-row, kind="stable")[:top]
        ranked = [{"class": int(one), "score": round(float(row[one]), 6)} for one in best]
        found.append({"file": str(path), "sample": index, "top": ranked})
    return found


def _keep_receipts(answers: "Sequence[Answer]", folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for answer in answers:
        for record, token in zip(answer.receipts, answer.receipt_tokens, strict=True):
            (folder / f"{record.sequence}.receipt").write_text(token + "\n", encoding="ascii")
