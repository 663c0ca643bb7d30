"""A segmentation network of your own, protected, sold and served: every answer is a map of class scores.

    python examples/segmentation.py                              # coloured shapes, drawn here; two minutes, no download
    python examples/segmentation.py --transform ffx:4            # another lock
    TESSERA_DATA=DIR python examples/segmentation.py --camvid    # street scenes, with the ready recipe

Prints the mean intersection over union (mIoU) with the right key, with a wrong key and without any.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from shop import make_keys, report_usage, sell, serving, tessera

from tessera.client import Client, WrongInputKey
from tessera.keystore.keyfile import load_input_key
from tessera.keystore.secrets import InputKey
from tessera.protect import SegmentationDataset, Split, TrainingTask, bundle_of, recipe, train, write_bundle
from tessera.protect.models import UNet, fit_stems, keyed
from tessera.transforms import Transform, TransformSpec

SIZE, CLASSES = 48, 4
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def main() -> None:
    """Train, seal, license, serve, stream."""
    options = _options()
    spec = TransformSpec.parse_text(options.transform)
    with tempfile.TemporaryDirectory(prefix="tessera-example-") as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)

        print("1. The vendor trains on keyed inputs: any data, any network, through the Python API.")
        make_keys(folder)
        key = load_input_key(folder / "input.key")
        if not options.camvid:
            torch.set_num_threads(1)  # a network this small is faster on one core than on several
        task = recipe("camvid-unet").task() if options.camvid else shapes_task(options)
        trained = train(
            task, transform=spec, key=key, epochs=options.epochs, wrong_keys=3,
            progress=lambda at: print(f"  epoch {at.epoch}/{at.epochs}: loss {at.loss:.3f}", flush=True),
        )  # fmt: skip
        write_bundle(bundle_of(trained), folder / "bundle")
        print("measured by the vendor:", trained.accuracy.to_json())

        print("2. It is sealed, published on a node, and licensed to one buyer.")
        sell(folder, "model")

        print("3. The buyer streams pictures; the client applies the key before they leave this process.")
        test = task.data.test
        images, labels = test.images[: options.count].numpy(), test.labels[: options.count].numpy()
        with serving(folder) as address:
            use(folder, address, Transform(spec, key, *images.shape[1:]), images, labels, test.classes)
            np.save(folder / "one.npy", images[0])
            shown = tessera(
                folder,
                f"infer one.npy --model model --server {address} --ca node/ca.pem --identity ada.key "
                "--licence ada.licence --out map.npy",
            )
            print("one picture:", shown["predictions"][0])
            report_usage(folder)


def use(folder: Path, address: str, key: Transform, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Call the model as the licensed buyer, with a wrong key, and with plain pictures."""
    identity, licence, roots = folder / "ada.key", folder / "ada.licence", folder / "node" / "ca.pem"
    with Client(address, identity=identity, licence=licence, root_certificates=roots) as client:
        maps = np.stack([scores.argmax(axis=0) for scores in client.stream("model", images, window=4)])
        print(f"right key:   mIoU {mean_iou(maps, labels, classes):.3f}")

        # A client always applies its key. What follows undoes that first, so that the server receives what somebody
        # would send who has the sealed model, or a stolen session, and not the key.
        guess = Transform(key.spec, InputKey.generate(), *images.shape[1:])
        for name, sent in (("wrong key:  ", guess(images)), ("plain input:", images)):
            maps = client.infer("model", key.inverse(sent)).argmax(axis=1)
            print(f"{name} mIoU {mean_iou(maps, labels, classes):.3f}")

    # An honest client with a wrong key is refused before anything is inferred or charged.
    other = InputKey.generate()
    with Client(address, identity=identity, licence=licence, root_certificates=roots, input_key=other) as client:
        try:
            client.infer("model", images)
        except WrongInputKey as refusal:
            print(f"another key: refused, {refusal.reason}: {refusal}")


def mean_iou(found: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Return the mean intersection over union of the classes in `labels`; labels beyond them do not count."""
    counted = labels < classes
    found, labels = found[counted], labels[counted]
    ious = [
        ((found == one) & (labels == one)).sum() / ((found == one) | (labels == one)).sum() for one in np.unique(labels)
    ]
    return float(np.mean(ious))


def shapes_task(options: argparse.Namespace) -> TrainingTask:
    """Describe the training: shapes to find, a small U-Net whose first layer can absorb the keyed transform."""
    return TrainingTask(
        name="shapes",
        kind="segmentation",
        data=Split(draw_shapes(options.pictures, seed=1), draw_shapes(max(16, options.count), seed=2)),
        network_for=lambda spec: keyed(UNet(CLASSES, width=8), "enter.0", spec, MEAN, STD),
        prepare=fit_stems,
        mean=MEAN,
        std=STD,
        epochs=options.epochs,
        batch=16,
        learning_rate=5e-3,
        max_batch=32,
    )


def draw_shapes(count: int, *, seed: int) -> SegmentationDataset:
    """Draw pictures with discs (1), squares (2) and stripes (3) of any colour on a noisy background (0)."""
    draws = np.random.default_rng(seed)
    images = draws.integers(60, 120, (count, 3, SIZE, SIZE)).astype(np.uint8)
    labels = np.zeros((count, SIZE, SIZE), dtype=np.uint8)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for image, label in zip(images, labels, strict=True):
        image += draws.integers(0, 60, (3, 1, 1), dtype=np.uint8)
        for kind in draws.integers(1, CLASSES, size=3):
            y, x, radius = *draws.integers(8, SIZE - 8, size=2), draws.integers(7, 15)
            inside = {
                1: (rows - y) ** 2 + (columns - x) ** 2 < radius**2,
                2: np.maximum(abs(rows - y), abs(columns - x)) < radius,
                3: (np.maximum(abs(rows - y), abs(columns - x)) < radius) & ((rows + columns) // 3 % 2 == 0),
            }[int(kind)]
            colour = draws.integers(0, 256, (3, 1), dtype=np.uint8)
            image[:, inside] = colour
            label[inside] = kind
    return SegmentationDataset(torch.from_numpy(images), torch.from_numpy(labels), CLASSES)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", action="store_true", help="street scenes from $TESSERA_DATA instead of shapes")
    parser.add_argument("--transform", default="shf:4", help="steps KIND:BLOCK of shf, np and ffx")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--pictures", type=int, default=800, help="shapes to train on")
    parser.add_argument("--count", type=int, default=64, help="test pictures to stream")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave all files in this new folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
