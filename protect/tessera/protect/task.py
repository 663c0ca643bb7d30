"""What to train: data, a network and how long; the same description for our recipes and for a vendor's own model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.data import Dataset

from tessera.keystore.errors import ApiMisuse
from tessera.protect.augment import Augmentation
from tessera.protect.data import Split, image_shape, materialise


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """One classification task. Construction raises `ApiMisuse` for numbers that cannot be trained with.

    `network` makes a fresh network from normalised float (N, C, H, W) to logits (N, classes); it is called with torch's
    generator seeded. `mean` and `std` are per channel, of pixels scaled to 0 … 1.
    """

    name: str
    data: Split
    network: Callable[[], nn.Module]
    mean: Sequence[float]
    std: Sequence[float]
    epochs: int
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    augment: Augmentation | None = None
    max_batch: int = 256
    """Most samples of one run of the exported program."""

    def __post_init__(self) -> None:
        if len(self.mean) != self.shape[0] or len(self.std) != self.shape[0]:
            raise ApiMisuse(f"mean and std need {self.shape[0]} numbers each, one per channel")
        if min(self.epochs, self.batch, self.max_batch) < 1 or self.learning_rate <= 0:
            raise ApiMisuse("epochs, batch, max_batch and learning_rate are above zero")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The (C, H, W) of its images."""
        return image_shape(self.data)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named task that anyone can run; `task` loads its data when called."""

    name: str
    summary: str
    transform: str
    """The spec in text form that protects it best, by measurement."""
    task: Callable[[], TrainingTask]


def split_of(train: Dataset[tuple[Tensor, int]], test: Dataset[tuple[Tensor, int]]) -> Split:
    """Return two map-style torch datasets as a `Split` in memory. Raises `ApiMisuse`, see `materialise`."""
    return Split(materialise(train), materialise(test))
