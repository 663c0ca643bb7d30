"""A classifier that works for licensed buyers only: from training to metered answers.

    python examples/classification.py                        # handwritten digits; a minute, no download
    python examples/classification.py --transform ffx:4      # another lock
    python examples/classification.py --recipe cifar10-fast --data DIR

Prints what the model is worth to the buyer with the right key, to somebody with a wrong key, and to somebody without.
"""

import tempfile
from pathlib import Path

import numpy as np
from shop import make_keys, recipe_options, report_usage, sell, serving, tessera

from tessera.client import Client, WrongInputKey
from tessera.keystore.keyfile import load_input_key
from tessera.keystore.secrets import InputKey
from tessera.transforms import Transform, TransformSpec


def main() -> None:
    """Train, seal, license, serve, stream."""
    options = recipe_options(__doc__)
    with tempfile.TemporaryDirectory(prefix="tessera-example-") as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)

        print("1. The vendor trains on keyed inputs.")
        make_keys(folder)
        data = f" --data {options.data.absolute()}" if options.data else ""
        trained = tessera(
            folder,
            f"protect train --recipe {options.recipe}{data} --transform {options.transform} --key input.key "
            f"--epochs {options.epochs} --out bundle",
        )
        print("measured by the vendor:", trained["accuracy"])

        print("2. It is sealed, published on a node, and licensed to one buyer.")
        sell(folder, "model")
        shown = f"protect samples --recipe {options.recipe}{data} --count {options.count} --out test.npy"
        labels = np.array(tessera(folder, shown)["labels"])

        print("3. The buyer streams pictures; the client applies the key before they leave this process.")
        with serving(folder) as address:
            use(folder, address, options.transform, np.load(folder / "test.npy"), labels)
            report_usage(folder)


def use(folder: Path, address: str, transform: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Call the model as the licensed buyer, with a wrong key, and with plain pictures."""
    identity, licence, roots = folder / "ada.key", folder / "ada.licence", folder / "node" / "ca.pem"
    with Client(address, identity=identity, licence=licence, root_certificates=roots) as client:
        scores = np.stack(list(client.stream("model", images)))
        print(f"right key:   {accuracy(scores, labels):.1%} right")

        # A client always applies its key. What follows undoes that first, so that the server receives what somebody
        # would send who has the sealed model, or a stolen session, and not the key.
        spec = TransformSpec.parse_text(transform)
        key = Transform(spec, load_input_key(folder / "input.key"), *images.shape[1:])
        guess = Transform(spec, InputKey.generate(), *images.shape[1:])
        print(f"wrong key:   {accuracy(client.infer('model', key.inverse(guess(images))), labels):.1%} right")
        print(f"plain input: {accuracy(client.infer('model', key.inverse(images)), labels):.1%} right")

    # An honest client with a wrong key is refused before anything is inferred or charged.
    other = InputKey.generate()
    with Client(address, identity=identity, licence=licence, root_certificates=roots, input_key=other) as client:
        try:
            client.infer("model", images)
        except WrongInputKey as refusal:
            print(f"another key: refused, {refusal.reason}: {refusal}")


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of pictures whose best class is the label."""
    return float((scores.argmax(axis=1) == labels).mean())


if __name__ == "__main__":
    main()
