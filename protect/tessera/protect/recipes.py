"""The recipes that come with Tessera, in one explicit table.

Those for colour pictures put a `PatchStem` in the place of a network's first convolution when inputs are keyed, and a
`ValueStem` before it for FFX; the one called `…-paper` changes nothing, as the published runs did.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from torch import nn

from tessera.keystore.errors import Malformed, NotFound
from tessera.protect import data as sets
from tessera.protect.augment import chain, paired_shift_and_flip, random_flip, random_shift
from tessera.protect.data import ArrayDataset, Split, camvid, cifar10, fashion_mnist, image_folder
from tessera.protect.models import (
    CifarResNet18,
    CifarVgg19,
    CompactVgg,
    ConvMixer,
    DigitsNet,
    FastNet,
    UNet,
    fit_stems,
    keyed,
)
from tessera.protect.task import Recipe, TrainingTask
from tessera.transforms import TransformSpec

FOLDER_SIZE: Final = (64, 64)
"""Height and width that the recipe `image-folder` resizes pictures to."""

CAMVID_SIZE: Final = (176, 240)
"""The middle of CamVid's 180x240 that blocks of 2, 4, 8 and 16 divide."""

_FAST: Final[dict[str, Any]] = {
    "optimiser": "muon",
    "learning_rate": 0.32,
    "momentum": 0.6,
    "weight_decay": 5e-4,
    "decay_vectors": False,
    "schedule": "triangle",
    "warm_up": 0.1,
    "label_smoothing": 0.1,
    "channels_last": True,
}
"""Settings for few epochs on two CPU cores."""

_GPU: Final[dict[str, Any]] = {
    "batch": 512,
    "optimiser": "sgd",
    "learning_rate": 0.4,
    "weight_decay": 5e-4,
    "decay_vectors": False,
    "schedule": "triangle",
    "warm_up": 0.25,
    "label_smoothing": 0.1,
    "precision": "bf16",
    "compile": True,
    "channels_last": True,
}
"""Settings for one GPU and tens of epochs."""


def _keyed_task(
    name: str,
    data: Split,
    make: Callable[[], nn.Module],
    first: str,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    **settings: Any,
) -> TrainingTask:
    """Return a task whose network takes keyed inputs by a stem in the place of its convolution `first`."""

    def network_for(spec: TransformSpec | None) -> nn.Module:
        return keyed(make(), first, spec, mean, std)

    return TrainingTask(
        name=name, data=data, network_for=network_for, prepare=fit_stems, mean=mean, std=std, **settings
    )


def _digits(_data: Path | None) -> TrainingTask:
    return TrainingTask(
        name="digits",
        data=sets.digits(),
        network=DigitsNet,
        mean=(0.5,),
        std=(0.5,),
        epochs=30,
        augment=random_shift(1),
    )


def _cifar(
    name: str, make: Callable[[], nn.Module], first: str, shift: int, **settings: Any
) -> Callable[[Path | None], TrainingTask]:
    def build(path: Path | None) -> TrainingTask:
        return _keyed_task(
            name,
            cifar10(_given(path)),
            make,
            first,
            mean=_CIFAR_MEAN,
            std=_CIFAR_STD,
            augment=chain(random_shift(shift), random_flip()),
            **settings,
        )

    return build


def _cifar_paper(path: Path | None) -> TrainingTask:
    return TrainingTask(
        name="cifar10-resnet18-paper",
        data=cifar10(_given(path)),
        network=CifarResNet18,
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
        epochs=200,
        batch=128,
        optimiser="sgd",
        learning_rate=0.2,
        weight_decay=5e-4,
        schedule="triangle",
        warm_up=0.5,
        precision="fp16-amp",
        channels_last=True,
        augment=chain(random_shift(4), random_flip()),
    )


def _fashion(path: Path | None) -> TrainingTask:
    return _keyed_task(
        "fashion-mnist-fast",
        fashion_mnist(_given(path)),
        lambda: FastNet(in_channels=1),
        "enter",
        mean=(0.28604,),
        std=(0.35302,),
        epochs=5,
        batch=256,
        augment=chain(random_shift(2), random_flip()),
        **_FAST,
    )


def _folder(path: Path | None) -> TrainingTask:
    data = image_folder(_given(path), size=FOLDER_SIZE)
    assert isinstance(data.train, ArrayDataset)
    classes = data.train.classes
    if classes < 2:
        raise Malformed(f"{path} has pictures of one class only", remedy="Give train/<class>/ for each class.")
    return _keyed_task(
        "image-folder",
        data,
        lambda: FastNet(classes),
        "enter",
        mean=(0.48, 0.45, 0.4),
        std=(0.27, 0.26, 0.27),
        epochs=20,
        batch=64,
        augment=chain(random_shift(6), random_flip()),
        **_FAST,
    )


def _camvid(path: Path | None) -> TrainingTask:
    data = camvid(_given(path), crop=CAMVID_SIZE)
    return _keyed_task(
        "camvid-unet",
        data,
        lambda: UNet(classes=11),
        "enter.0",
        mean=(0.4121, 0.4251, 0.4328),
        std=(0.3019, 0.3059, 0.3016),
        kind="segmentation",
        classes=11,
        epochs=10,
        batch=8,
        optimiser="adamw",
        learning_rate=3e-3,
        weight_decay=0.02,
        channels_last=True,
        augment=paired_shift_and_flip(16, fill_label=11),
        max_batch=32,
    )


def _given(path: Path | None) -> Path:
    assert path is not None, "a recipe that needs data is given its path"
    return path


_CIFAR_MEAN: Final = (0.4914, 0.4822, 0.4465)
_CIFAR_STD: Final = (0.2470, 0.2435, 0.2616)
_CIFAR: Final = "CIFAR-10: mosaics, python batches or folders of pictures"

_TABLE: Final = (
    Recipe(
        name="digits",
        summary="1,797 scans of handwritten digits, 8x8 pixels, bundled with scikit-learn",
        transform="shf:4,np:4",
        build=_digits,
        duration="seconds on one core",
    ),
    Recipe(
        name="cifar10-fast",
        summary="CIFAR-10 on a CPU: a network of 0.7 million parameters, Muon, few epochs",
        transform="shf:4",
        build=_cifar("cifar10-fast", FastNet, "enter", 3, epochs=8, batch=256, **_FAST),
        needs=_CIFAR,
        duration="16 minutes of processor time on an AMD EPYC (AVX2), one thread",
    ),
    Recipe(
        name="cifar10-vgg-compact",
        summary="CIFAR-10 on a CPU: a VGG of 1.2 million parameters with batch normalisation, Muon, few epochs",
        transform="shf:4",
        build=_cifar("cifar10-vgg-compact", CompactVgg, "features.0", 3, epochs=4, batch=256, **_FAST),
        needs=_CIFAR,
        duration="42 minutes on a busy AMD EPYC (AVX2), one thread",
    ),
    Recipe(
        name="cifar10-resnet18",
        summary="CIFAR-10 on a GPU: ResNet-18, 20 epochs of one cycle in bf16; aims at 94 % in two minutes of an H200",
        transform="shf:4,np:4",
        build=_cifar("cifar10-resnet18", CifarResNet18, "conv1", 4, epochs=20, **_GPU),
        needs=_CIFAR,
    ),
    Recipe(
        name="cifar10-resnet18-paper",
        summary="CIFAR-10 as published: ResNet-18 without a stem, 200 epochs, SGD, triangular rate, mixed precision",
        transform="np:4",
        build=_cifar_paper,
        needs=_CIFAR,
    ),
    Recipe(
        name="cifar10-vgg19",
        summary="CIFAR-10 on a GPU: VGG-19 with batch normalisation, 40 epochs of one cycle in bf16",
        transform="shf:4,np:4",
        build=_cifar("cifar10-vgg19", CifarVgg19, "features.0", 4, epochs=40, **{**_GPU, "learning_rate": 0.1}),
        needs=_CIFAR,
    ),
    Recipe(
        name="cifar10-convmixer",
        summary="CIFAR-10 on a GPU: ConvMixer-256/8 with 2x2 patches, 60 epochs of AdamW in bf16",
        transform="shf:4,np:4",
        build=_cifar(
            "cifar10-convmixer",
            ConvMixer,
            "embed.0",
            4,
            epochs=60,
            **{**_GPU, "optimiser": "adamw", "learning_rate": 0.01, "weight_decay": 0.02, "clip_norm": 1.0},
        ),
        needs=_CIFAR,
    ),
    Recipe(
        name="fashion-mnist-fast",
        summary="Fashion-MNIST on a CPU: the network of cifar10-fast for 28x28 grey pictures",
        transform="shf:4,np:4",
        build=_fashion,
        needs="Fashion-MNIST: IDX files, or pictures as xz",
    ),
    Recipe(
        name="image-folder",
        summary="Your own pictures, resized to 64x64 RGB: the network of cifar10-fast",
        transform="shf:4,np:4",
        build=_folder,
        needs="train/<class>/*.png and test/<class>/*.png",
    ),
    Recipe(
        name="camvid-unet",
        summary="CamVid street scenes, 11 classes for every pixel: a small U-Net, 176x240",
        transform="np:4",
        build=_camvid,
        needs="CamVid: SegNet's folders, or packed images and labels",
    ),
)

RECIPES: Final[dict[str, Recipe]] = {entry.name: entry for entry in _TABLE}
"""Every recipe by the name that `tessera protect train` takes."""


def recipe(name: str) -> Recipe:
    """Return the recipe called `name`. Raises `NotFound`."""
    found = RECIPES.get(name)
    if found is None:
        raise NotFound("there is no such recipe", remedy=f"Choose one of: {', '.join(sorted(RECIPES))}.")
    return found
