"""The models under study: real weights where there are some, a bundle of the vendor's own otherwise."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.protection._study import Study
from tessera.protect.augment import chain, random_flip, random_shift
from tessera.protect.data import ArrayDataset, SegmentationDataset, cifar10, denoise_set
from tessera.protect.models import DnCNN, PixelModel, ResNet20
from tessera.protect.models.resnet import IMAGENET_MEAN, IMAGENET_STD
from tessera.protect.models.weights import load_npz
from tessera.protect.selective import (
    Objective,
    Schedule,
    choose,
    cross_entropy,
    labelled,
    layers_of,
    noisy_patches,
    psnr_db,
    share_right,
    squared_error,
)
from tessera.protect.selective.measure import Apply, as_module
from tessera.protect.selective.objective import Batch

SIGMA: Final = 25.0
PATCH: Final = 32
CROP: Final = 128
TIER_CROP: Final = 160
ATTACKER_SEED: Final = 3

DNCNN_LAYERS: Final = ("model.4", "model.6", "model.8")
"""The third to fifth convolution, as in the paper's demonstration."""
VGG19_LAYERS: Final = (0, 1, 4, 8)
"""The paper's: convolutions 3 to 64, 64 to 64, 128 to 256 and 256 to 512."""
RESNET20_LAYERS: Final = (0, 1, 7, 13)
"""The first convolution of the network and of each stage, after the paper's choice for VGG19."""
COMPACT_LAYERS: Final = (0, 1, 3, 5)
"""The same for the compact VGG."""


def dncnn(data: Path, *, quick: bool, whole: bool = True) -> Study:
    """Return the pretrained denoiser for sigma 25; scores from Train400 without the picture that Set12 shares.

    Tiers are judged on whole images, or on the middle `TIER_CROP` pixels of each.
    """
    model = DnCNN()
    load_npz(model, data / "weights" / "dncnn_sigma25_kair.npz")
    train = [_unit(image) for image in denoise_set(data, "Train400")]
    tests = {name: [_unit(image) for image in denoise_set(data, name)] for name in ("BSD68", "Set12")}
    batch = noisy_patches(train, SIGMA, PATCH, 8)
    crops = torch.stack([_centre(image) for image in tests["BSD68"][:: 12 if quick else 6]])
    if quick:
        tests = {name: [_centre(image) for image in images[:2]] for name, images in tests.items()}
    judged = (
        tests if whole else {name: [_centre(image, TIER_CROP) for image in images] for name, images in tests.items()}
    )
    network = layers_of(model)

    def subset(run: Apply) -> float:
        return _mean_psnr(run, list(crops))

    def full(run: Apply) -> dict[str, float]:
        return {name: round(_mean_psnr(run, images), 4) for name, images in judged.items()}

    def samples(count: int) -> Batch:
        draws = torch.Generator().manual_seed(ATTACKER_SEED)
        picked = torch.randperm(len(train), generator=draws)[:count]
        return noisy_patches([train[int(index)] for index in picked], SIGMA, PATCH, 8)

    return Study(
        name="dncnn",
        metric="psnr_db",
        model=model,
        objective=Objective(model, batch, squared_error),
        chosen=choose(network, DNCNN_LAYERS),
        subset=subset,
        full=full,
        batches=4 if quick else 32,
        schedule=Schedule(steps=5 if quick else 200),
        network_schedule=Schedule(steps=5 if quick else 200),
        settings={
            "model": "dncnn_sigma25_kair", "layers": list(DNCNN_LAYERS), "sigma": SIGMA,
            "loss": "half summed squared error", "quick": quick, "patch": PATCH, "batch": 8,
            "subset": f"{len(crops)} centre crops of {CROP}x{CROP} from BSD68",
            "full": {name: len(images) for name, images in tests.items()},
        },
        full_images="whole images" if whole else f"the middle {TIER_CROP}x{TIER_CROP} pixels of every image",
        samples=samples,
    )  # fmt: skip


def noisy_psnr(study: Study) -> dict[str, float]:
    """Return what the noisy input itself scores on the full sets."""
    return study.full(lambda noisy: noisy)


def resnet20(data: Path, *, quick: bool) -> Study:
    """Return the third-party ResNet-20 for CIFAR-10 (91.73 %)."""
    network = ResNet20()
    load_npz(network, data / "weights" / "cifar10_resnet20_akamaster.npz")
    return cifar_bundle(
        "resnet20", PixelModel(network, IMAGENET_MEAN, IMAGENET_STD), RESNET20_LAYERS, data, most=None, quick=quick
    )


def cifar_bundle(
    name: str, model: nn.Module, chosen: tuple[int, ...], data: Path, *, most: int | None, quick: bool
) -> Study:
    """Return any CIFAR-10 model, the module itself or an exported one, taking at most `most` uint8 images at once.

    `chosen` are the layers of the per-layer budget, by their number among the convolutions larger than 1x1.
    """
    found = cifar10(data)
    train, test = found.train, found.test
    step = 100 if quick else 20
    some, labels = test.images[::step].contiguous(), test.labels[::step].contiguous()
    augment = chain(random_shift(4), random_flip())
    convolutions = choose(layers_of(model))
    layers = tuple(convolutions[number] for number in chosen)
    judged = slice(None, None, step if quick else 1)

    def samples(count: int) -> Batch:
        draws = torch.Generator().manual_seed(ATTACKER_SEED)
        picked = torch.randperm(len(train), generator=draws)[:count]
        return labelled(train.images[picked], train.labels[picked], 32, augment)

    return Study(
        name=name,
        metric="accuracy",
        model=model,
        objective=Objective(model, labelled(train.images, train.labels, 32, augment), cross_entropy),
        chosen=layers,
        subset=lambda run: share_right(run, some, labels),
        full=lambda run: {"accuracy": share_right(run, test.images[judged], test.labels[judged])},
        batches=4 if quick else 32,
        schedule=Schedule(steps=5 if quick else 200),
        network_schedule=Schedule(steps=5 if quick else 300),
        settings={
            "model": name, "layers": [layer.weight for layer in layers], "quick": quick, "batch": 32,
            "subset": f"every {step}th of the 10,000 test images: {len(some)}", "full": len(test.images[judged]),
        },
        most=most,
        samples=samples,
    )  # fmt: skip


def segmentation(
    name: str, model: nn.Module, train: SegmentationDataset, test: SegmentationDataset, *, most: int, quick: bool
) -> Study:
    """Return a segmentation model taking uint8 pixels, judged by mean IoU."""
    from tessera.protect.evaluate import mean_iou

    some = SegmentationDataset(test.images[:20], test.labels[:20], test.classes, test.ignore)

    def quality(data: SegmentationDataset) -> Callable[[Apply], float]:
        return lambda run: mean_iou(as_module(run), data, torch.device("cpu"), None)

    def samples(count: int) -> Batch:
        return labelled(train.images[:count], train.labels[:count], 4)

    return Study(
        name=name,
        metric="mean_iou",
        model=model,
        objective=Objective(model, labelled(train.images, train.labels, 4), cross_entropy),
        chosen=choose(layers_of(model)),
        subset=quality(some),
        full=lambda run: {"mean_iou": quality(some if quick else test)(run)},
        batches=4 if quick else 32,
        schedule=Schedule(steps=5 if quick else 100),
        network_schedule=Schedule(steps=5 if quick else 200),
        settings={"model": name, "quick": quick, "batch": 4, "subset": "20 test images", "full": len(test)},
        most=most,
        samples=samples,
    )


def _mean_psnr(run: Apply, images: list[Tensor]) -> float:
    """Return the mean PSNR over images; the noise of image i is the same for every model and machine."""
    values = []
    for index, clean in enumerate(images):
        draws = torch.Generator().manual_seed(1000 + index)
        noisy = clean + torch.randn(clean.shape, generator=draws) * (SIGMA / 255)
        values.append(psnr_db(run(noisy[None])[0], clean))
    return statistics.fmean(values)


def _unit(image: Any) -> Tensor:
    return torch.from_numpy(image).to(torch.float32) / 255


def _centre(image: Tensor, side: int = CROP) -> Tensor:
    height, width = image.shape[-2:]
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]


__all__ = ["ArrayDataset", "cifar_bundle", "dncnn", "noisy_psnr", "resnet20", "segmentation"]
