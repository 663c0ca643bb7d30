"""What to train: data, a network and how long; the same description for our recipes and for a vendor's own model.

    task = TrainingTask(
        name="parts", data=split_of(train_set, test_set), network=MyNetwork, mean=(0.5,), std=(0.5,), epochs=20
    )
    trained = train(task, transform=TransformSpec.parse_text("np:4"), key=key)

`MyNetwork` is any `nn.Module` from normalised floats to logits, the sets any map-style torch datasets.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast, get_args

from torch import Tensor, nn
from torch.utils.data import Dataset

from tessera.keystore.errors import ApiMisuse
from tessera.protect.augment import Augmentation, PairAugmentation
from tessera.protect.data import SegmentationDataset, Split, data_path, image_shape, materialise
from tessera.protect.models import ByteModel, PixelModel
from tessera.transforms import TransformSpec

Kind = Literal["classification", "segmentation"]
"""One label for an image, or one for each pixel."""

Optimiser = Literal["adamw", "sgd", "muon"]
"""AdamW; SGD with Nesterov's momentum; or that with Muon for the inner convolutions, which few epochs take far."""

Schedule = Literal["cosine", "triangle"]
"""The learning rate rises linearly over the warm-up, then falls to zero along a cosine or a straight line."""

Precision = Literal["fp32", "bf16", "fp16-amp"]
"""What the forward pass of training computes in; weights, and everything measured and served, are fp32."""

PREPARE_SAMPLES: Final = 10_000
"""Most training images that a task's `prepare` is given."""


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """One task. Construction raises `ApiMisuse` for fields that cannot be trained with.

    The network is fresh and made with torch's generator seeded: `network()`, or `network_for(spec)` where it depends on
    the transform in use (None for plain inputs). It takes normalised float (N, C, H, W); a `ByteModel` takes the pixels
    themselves. It gives logits (N, classes), and for a segmentation (N, classes, H, W). `mean` and `std` are per
    channel, of pixels scaled to 0 … 1.
    """

    name: str
    data: Split
    network: Callable[[], nn.Module] | None = None
    network_for: Callable[[TransformSpec | None], nn.Module] | None = None
    mean: Sequence[float]
    std: Sequence[float]
    epochs: int
    kind: Kind = "classification"
    classes: int | None = None
    """The number of classes; where it is left out, that of the data."""
    batch: int = 64
    optimiser: Optimiser = "adamw"
    learning_rate: float = 3e-3
    """The highest of the run, per optimiser step."""
    momentum: float = 0.9
    """Of SGD and Muon."""
    muon_rate: float = 0.24
    """Muon's highest learning rate; `learning_rate` is that of the weights it leaves to SGD."""
    weight_decay: float = 0.05
    decay_vectors: bool = True
    """Whether biases and normalisation are decayed as the other weights are."""
    schedule: Schedule = "cosine"
    warm_up: float = 0.15
    """Share of the steps over which the learning rate rises from a tenth of its highest value."""
    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None
    """Weight of each class in the loss."""
    clip_norm: float | None = None
    """Longest gradient over all weights; a longer one is shortened to it."""
    ema: float | None = None
    """Decay per step of the moving average of the weights, which then is what is measured and kept."""
    precision: Precision = "fp32"
    compile: bool = False
    """Whether torch.compile speeds up the training steps; it pays on a GPU from minutes of training on."""
    channels_last: bool = False
    """Whether weights lie channels last in memory during training: faster convolutions on most machines."""
    augment: Augmentation | PairAugmentation | None = None
    """Changes images before the transform; for a segmentation it changes their labels with them."""
    prepare: Callable[[nn.Module, Tensor], None] | None = None
    """Called once before training with the network and up to `PREPARE_SAMPLES` training images as it will see them,
    uint8 and transformed: for first layers that start from the statistics of their input. It is given no labels, no key
    and no plain images."""
    max_batch: int = 256
    """Most samples of one run of the exported program."""

    def __post_init__(self) -> None:
        if (self.network is None) == (self.network_for is None):
            raise ApiMisuse("a task has a network or a network_for, and not both")
        self._check_choices()
        self._check_numbers()
        if self.class_weights is not None and len(self.class_weights) != self.class_count:
            raise ApiMisuse(f"class_weights needs {self.class_count} numbers, one per class")

    def _check_choices(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ApiMisuse(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        labelled_pixels = [isinstance(part, SegmentationDataset) for part in self.data]
        if any(found != (self.kind == "segmentation") for found in labelled_pixels):
            raise ApiMisuse(f"the data's labels are not those of a {self.kind}", remedy="Set the task's kind.")
        found = max(part.classes for part in self.data)
        if self.classes is not None and self.classes < found:
            raise ApiMisuse(f"the data has {found} classes and the task {self.classes}")

    def _check_numbers(self) -> None:
        if len(self.mean) != self.shape[0] or len(self.std) != self.shape[0]:
            raise ApiMisuse(f"mean and std need {self.shape[0]} numbers each, one per channel")
        if min(self.epochs, self.batch, self.max_batch) < 1 or not 0 < self.learning_rate < math.inf:
            raise ApiMisuse("epochs, batch, max_batch and learning_rate are above zero")
        if len(self.data.train) < min(2, self.batch):
            raise ApiMisuse(
                "one image is no training set: batches of more are asked for", remedy="Give two or more images."
            )
        for name in ("momentum", "warm_up", "label_smoothing", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ApiMisuse(f"{name} is at least 0 and below 1, not {value}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ApiMisuse(f"clip_norm is above zero, not {self.clip_norm}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The (C, H, W) of its images."""
        return image_shape(self.data)

    @property
    def class_count(self) -> int:
        """The number of classes, given or of the data."""
        return self.classes if self.classes is not None else max(part.classes for part in self.data)

    def model(self, spec: TransformSpec | None) -> nn.Module:
        """Return a fresh model for `spec` that takes uint8 (N, C, H, W)."""
        made = self.network() if self.network is not None else cast(_NetworkFor, self.network_for)(spec)
        return made if isinstance(made, ByteModel) else PixelModel(made, self.mean, self.std)


_NetworkFor = Callable[[TransformSpec | None], nn.Module]

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "kind": get_args(Kind),
    "optimiser": get_args(Optimiser),
    "schedule": get_args(Schedule),
    "precision": get_args(Precision),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named task that anyone can run; `build` makes it from the folder of its data, None where it brings its own."""

    name: str
    summary: str
    transform: str
    """The spec in text form that protects it best, by measurement."""
    build: Callable[[Path | None], TrainingTask]
    needs: str | None = None
    """The data set that it needs, in words; None when it brings its own."""
    duration: str = "not measured"
    """How long a run takes and on what, where it was measured."""

    @property
    def needs_data(self) -> bool:
        """Whether a folder with data must be given."""
        return self.needs is not None

    def task(self, data: Path | None = None) -> TrainingTask:
        """Return its task with the data of the folder `data`, else of the one that TESSERA_DATA names.

        Raises `NotFound` when it needs data and neither is given, and what its loader raises.
        """
        return self.build(data_path(data) if self.needs_data else None)


def split_of(train: Dataset[tuple[Tensor, int]], test: Dataset[tuple[Tensor, int]]) -> Split:
    """Return two map-style torch datasets as a `Split` in memory. Raises `ApiMisuse`, see `materialise`."""
    return Split(materialise(train), materialise(test))
