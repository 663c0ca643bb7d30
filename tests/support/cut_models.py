"""Small models of digits that are attacked in tests: cut into tiers, or behind an FFX table that is undone by hand."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from support import keys
from tessera.keystore.package import Draft, TensorSpec, Tier, open_package, write_package
from tessera.keystore.secrets import ContentKey
from tessera.keystore.tiers import TierKey
from tessera.protect import Bundle, TrainingTask, bundle_of, train
from tessera.protect.audit import Budget, Cut, Lock, Sample, Subject, sample_of_task
from tessera.protect.audit.cut import Vault
from tessera.protect.audit.guesses import true_guess
from tessera.protect.data import digits
from tessera.protect.models import PixelModel
from tessera.protect.selective import Layer, Plan, Settings, encrypt_bundle, make_plan, split
from tessera.protect.selective.decoys import DecoyKind, DecoySeed
from tessera.transforms import TransformSpec, block_positions

QUICK = Budget(
    name="tiny", minutes=5, held_out=200, wrong_keys=4, random_keys=6, search_images=20, evaluations=60, steps=40
)
"""A second or so of work for the models of this file."""
SETTINGS = Settings(budget=0.4, fractions=(0.0, 0.5, 1.0), batches=4)
TIERS = 3


def network() -> nn.Module:
    """Return a small network of two 3x3 convolutions for digits."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


@functools.cache
def task() -> TrainingTask:
    """Return a task that trains that network for a second."""
    return TrainingTask(
        name="digits", data=digits(), network=network, mean=(0.3,), std=(0.35,), epochs=6, batch=64, max_batch=256
    )


def digits_sample() -> Sample:
    """Return digits: the training set is the attackers', the test set judges."""
    return sample_of_task(task())


@functools.cache
def tiered(keyed: str = "", decoys: DecoyKind = "kernel") -> Bundle:
    """Return a trained bundle in three tiers, of which the lowest adds nothing; `keyed` is the text of a spec."""
    spec = TransformSpec.parse_text(keyed) if keyed else None
    key = keys.INPUT_KEY if keyed else None
    trained = train(task(), transform=spec, key=key, wrong_keys=0)
    return encrypt_bundle(bundle_of(trained), task().data, replace(SETTINGS, decoys=decoys), key=key).bundle


class Undone(nn.Module):
    """Takes keyed digits, undoes one ffx step by its tables, and compares plain ones; a model with a perfect lock."""

    places: Tensor
    tables: Tensor

    def __init__(self, spec: TransformSpec, plain: nn.Module) -> None:
        super().__init__()
        (step,) = true_guess(spec, keys.INPUT_KEY, 1)
        back = np.stack([
            np.argsort(table) if chosen else np.arange(256)
            for table, chosen in zip(step.tables, step.chosen, strict=True)
        ])  # fmt: skip
        blocks = block_positions(1, 8, 8, step.step.block)
        place = np.empty(64, dtype=np.int64)
        place[blocks] = np.arange(blocks.shape[1])
        self.register_buffer("places", torch.from_numpy(place * 256))
        self.register_buffer("tables", torch.from_numpy(back.reshape(-1).astype(np.uint8)))
        self.plain = plain

    def forward(self, image: Tensor) -> Tensor:
        """Return ten logits."""
        flat = image.flatten(1).long() + self.places
        answers: Tensor = self.plain(self.tables[flat].reshape(image.shape))
        return answers


@functools.cache
def comparing() -> nn.Module:
    """Return a linear model of plain digits, trained in a fraction of a second."""
    data = digits().train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (0.3,), (0.35,))
    learner = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        learner.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(data.images), data.labels))
        learner.step()
    return model.eval()


def replaced(text: str) -> Subject:
    """Return that model behind one ffx step."""
    spec = TransformSpec.parse_text(text)
    return Subject(
        name=f"digits, {text}",
        victim=lambda: Undone(spec, comparing()).eval(),
        fresh=lambda _seed: Undone(spec, network()),
        shape=(1, 8, 8),
        lock=Lock(spec, keys.INPUT_KEY),
    )


def smooth(decoys: DecoyKind) -> Cut:
    """Return one layer of smooth, heavy-tailed kernels as long training makes them, 10 % of it behind decoys."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(3), np.arange(3)), -1).reshape(9, 2)
    alike = np.exp(-((grid[:, None] - grid[None]) ** 2).sum(-1) / 4) + 0.02 * np.eye(9)
    rows = random.multivariate_normal(np.zeros(9), alike, 4096) * np.exp(random.normal(0, 0.8, (4096, 1)))
    state = {"conv.weight": torch.from_numpy(rows.astype(np.float32)).reshape(64, 64, 3, 3)}
    layer = Layer("conv.weight", "conv", (64, 64, 3, 3))
    scores = {"conv.weight": torch.from_numpy(random.random(4096))}
    plan: Plan = make_plan([layer], [layer], scores, budget=0.1, fractions=(0.0, 0.5, 1.0))
    parts = split(state, plan, decoys, seed=DecoySeed(bytes(32)))
    return Cut(
        names=("none", "half", "full"), public=parts.public, increments=parts.increments, model=no_model,
        sealed=no_vault,
    )  # fmt: skip


def no_model(_state: Mapping[str, Tensor]) -> nn.Module:
    """Stand where nothing runs the weights."""
    raise AssertionError("nobody asked for a model")


def no_vault() -> AbstractContextManager[Vault]:
    """Stand where no key is tried."""
    raise AssertionError("nobody asked for a package")


@contextmanager
def sealed_under(folder: Path, chain: TierKey, shown: TierKey, patches: Sequence[bytes]) -> Iterator[Vault]:
    """Yield a package of `patches` sealed under the keys that `chain.at` gives, and `shown` as its vendor's key."""
    count = len(patches)
    draft = Draft(
        model="weak", version=1, inputs=(TensorSpec("image", "UINT8", (-1, 1, 8, 8), "NCHW"),),
        outputs=(TensorSpec("logits", "FP32", (-1, 10)),), transform=None, input_key_id=None,
        tiers=tuple(Tier(number, f"t{number}", {}) for number in range(1, count + 1)), max_batch=4,
        torch_version=torch.__version__,
    )  # fmt: skip
    content = ContentKey.generate()
    public = tiered().tensors
    write_package(
        folder / "weak.tessera", draft, program=b"program", issuer=keys.ISSUER, content_key=content,
        tensors=[(name, "F32", tuple(value.shape), value.numpy().data) for name, value in public.items()
                 if value.dtype == torch.float32],
        created_at_s=keys.NOW_S, package_id=chain.package_id, patches=patches, tier_key=chain,
    )  # fmt: skip
    with open_package(folder / "weak.tessera", keys.ISSUERS) as package:
        yield Vault(folder / "weak.tessera", package.unlock(content), shown)


class Careless(TierKey):
    """A chain whose top tier is sealed under the key of the tier below it."""

    __slots__ = ()

    def at(self, tier: int) -> TierKey:
        """Return the key that a tier of this chain is sealed with."""
        return TierKey(self.package_id, tier, super().at(min(tier, self.tier - 1)).secret)
