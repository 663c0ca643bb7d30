"""One network, a copy for each buyer: a key of its own, put in without training, and a mark that tells whose leaked.

    python examples/copies.py                                # handwritten digits; a minute, no download
    python examples/copies.py --recipe cifar10-fast --data DIR

Prints what each buyer's key is worth on each buyer's copy, and whom a leaked file is traced to.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from shop import make_node, recipe_options, serving, tessera

from tessera.client import Client
from tessera.keystore.keyfile import load_input_key
from tessera.transforms import Transform, TransformSpec

BUYERS = ("ada", "bob")


def main() -> None:
    """Train once, make copies, sell them, use them, trace one."""
    options = recipe_options(__doc__)
    with tempfile.TemporaryDirectory(prefix="tessera-example-") as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        data = f" --data {options.data.absolute()}" if options.data else ""

        print("1. The vendor trains once, under a key that no buyer gets.")
        tessera(folder, "keys new --kind issuer --name 'Acme Vision' --out acme.key")
        tessera(folder, "keys new --kind input --out master.key")
        trained = tessera(
            folder,
            f"protect train --recipe {options.recipe}{data} --transform {options.transform} --key master.key "
            f"--epochs {options.epochs} --out trained",
        )
        print("measured by the vendor:", trained["accuracy"])

        print("2. Each buyer's copy: marked, then locked with a key of its own. No training.")
        make_node(folder)
        records = [{"owner": "Acme Vision", "buyer": buyer, "licence": f"L-{buyer}"} for buyer in BUYERS]
        for buyer, record in zip(BUYERS, records, strict=True):
            make_copy(folder, buyer, record)

        print("3. Both copies run on one node; each buyer streams to their own.")
        shown = f"protect samples --recipe {options.recipe}{data} --count {options.count} --out test.npy"
        labels = np.array(tessera(folder, shown)["labels"])
        with serving(folder) as address:
            use(folder, address, options.transform, np.load(folder / "test.npy"), labels)

        print("4. The weights of one copy turn up where they should not be.")
        (folder / "buyers.json").write_text(json.dumps(records))
        (folder / "leaked.safetensors").write_bytes((folder / "bob-copy" / "weights.safetensors").read_bytes())
        found = tessera(
            folder, "protect identify leaked.safetensors --original trained --key master.key --buyers buyers.json"
        )
        for suspect in found["suspects"]:
            named = "is named" if suspect["named"] else "is not named"
            print(f"{suspect['buyer']}: z = {suspect['z']:.1f}, {named}")


def make_copy(folder: Path, buyer: str, record: dict[str, str]) -> None:
    """Mark, lock, seal, publish and license the copy of one buyer."""
    (folder / f"{buyer}.json").write_text(json.dumps(record))
    tessera(folder, f"keys new --kind input --out {buyer}-input.key")
    tessera(folder, f"identity new --name {buyer} --out {buyer}.key")
    tessera(folder, f"protect fingerprint trained --key master.key --record {buyer}.json --out {buyer}-marked")
    tessera(folder, f"protect lock {buyer}-marked --old-key master.key --key {buyer}-input.key --out {buyer}-copy")
    tessera(
        folder,
        f"package build {buyer}-copy --issuer acme.key --input-key {buyer}-input.key --model model-{buyer} "
        f"--out {buyer}.tessera",
    )
    tessera(folder, f"model publish {buyer}.tessera --keystore node")
    tessera(
        folder,
        f"licence issue --issuer acme.key --package {buyer}.tessera --buyer {buyer}.key.pub --node node/node.pub "
        f"--valid 30d --out {buyer}.licence",
    )
    tessera(folder, f"licence install {buyer}.licence --keystore node")


def use(folder: Path, address: str, transform: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Stream to every copy with its own buyer's key, and with the other's."""
    keys = {
        buyer: Transform(
            TransformSpec.parse_text(transform), load_input_key(folder / f"{buyer}-input.key"), *images.shape[1:]
        )
        for buyer in BUYERS
    }
    for owner in BUYERS:
        identity, licence, roots = folder / f"{owner}.key", folder / f"{owner}.licence", folder / "node" / "ca.pem"
        with Client(address, identity=identity, licence=licence, root_certificates=roots) as client:
            for buyer in BUYERS:
                # The client applies its own key; undone first, the server receives what the other buyer would send.
                pictures = images if buyer == owner else keys[owner].inverse(keys[buyer](images))
                scores = np.stack(list(client.stream(f"model-{owner}", pictures)))
                right = float((scores.argmax(axis=1) == labels).mean())
                print(f"{owner}'s copy under {buyer}'s key: {right:.1%} right")


if __name__ == "__main__":
    main()
