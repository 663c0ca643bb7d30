"""Protected models that are attacked in tests: made by hand, so that the right answers are known without training."""

import torch
from torch import Tensor, nn

from support import keys
from tessera.protect.audit import Budget, Lock, Meter, Sample, Subject
from tessera.protect.data import ArrayDataset
from tessera.protect.locking import block_map
from tessera.protect.models import BlockStem, PixelModel
from tessera.transforms import TransformSpec

CLASSES = 4
SHAPE = (1, 8, 8)
SMALL = Budget(
    name="small", minutes=5, held_out=200, wrong_keys=20, random_keys=40, search_images=40, evaluations=600, steps=120
)
"""Seconds of work for the models of this file."""
CPU = torch.device("cpu")


def patterns() -> Tensor:
    """Return one picture for each class, values 0 … 255 as float (CLASSES, 64)."""
    return torch.randint(0, 256, (CLASSES, 64), generator=torch.Generator().manual_seed(5)).float()


def images(count: int, seed: int) -> ArrayDataset:
    """Return labelled plain pictures: their class's pattern with noise."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=draws)
    noisy = patterns()[labels] + 60 * torch.randn(count, 64, generator=draws)
    return ArrayDataset(noisy.clamp(0, 255).round().to(torch.uint8).reshape(-1, *SHAPE), labels)


def sample() -> Sample:
    """Return 1,000 images for attackers and 200 to judge them by."""
    return Sample(images(1000, 1), images(200, 2), "made by hand")


def unlocked() -> nn.Module:
    """Return the model without a lock: it compares plain pictures, normalised, with the patterns of the classes."""
    compare = nn.Linear(64, CLASSES)
    found = (patterns() - 127.5) / 127.5
    with torch.no_grad():
        compare.weight.copy_(found / 4)
        compare.bias.copy_(-(found**2).sum(1) / 8)
    return nn.Sequential(nn.Flatten(), compare)


def undoing(spec: TransformSpec) -> BlockStem:
    """Return a stem that undoes `spec` under `keys.INPUT_KEY`; of pixels from -1 to 1 an inversion turns the sign."""
    block = max(step.block for step in spec.steps)
    stem, keyed = BlockStem(SHAPE[0], block), block_map(spec, keys.INPUT_KEY, SHAPE[0], block)
    assert keyed.inverted is not None
    weight = torch.zeros(len(keyed.source), len(keyed.source))
    weight[keyed.source, range(len(keyed.source))] = torch.where(torch.from_numpy(keyed.inverted), -1.0, 1.0)
    with torch.no_grad():
        stem.map.weight.copy_(weight.reshape(stem.map.weight.shape))
    return stem


def subject(text: str) -> Subject:
    """Return a model that undoes the spec `text` under `keys.INPUT_KEY` before it compares; shf and np only."""
    spec = TransformSpec.parse_text(text)

    def victim() -> nn.Module:
        return PixelModel(nn.Sequential(undoing(spec), unlocked()), (0.5,), (0.5,)).eval()

    def fresh(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)), (0.5,), (0.5,))

    return Subject(
        name=f"by hand, {text}", victim=victim, fresh=fresh, shape=SHAPE,
        lock=Lock(spec, keys.INPUT_KEY),
        classes=CLASSES, training="made by hand",
    )  # fmt: skip


def patient() -> Meter:
    """Return a meter whose time does not run out."""
    return Meter(3600)
