"""Keys put into trained networks without training: right answers stay, all others go, other networks are refused."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.protect import Bundle, ByteModel, PixelModel, bundle_of_module, fit_stems, keyed, read_bundle, write_bundle
from tessera.protect.audit.programs import ProgramModel
from tessera.protect.bundle import BundleTier
from tessera.protect.locking import Lockable, NotLockable, lock
from tessera.protect.models import BlockStem, ConvMixer, DigitsNet
from tessera.transforms import Transform, TransformError, TransformSpec

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.27)
ONE, OTHER = InputKey(bytes(range(32))), InputKey(bytes(32))
SHAPE = (3, 16, 24)
IMAGES = torch.randint(0, 256, (6, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def spec_of(text: str) -> TransformSpec:
    """Return the spec of a text."""
    return TransformSpec.parse_text(text)


def answers(bundle: Bundle, text: str | None = None, key: InputKey = ONE, images: Tensor = IMAGES) -> Tensor:
    """Return what a bundle's program answers images that went through a transform."""
    seen = images
    if text is not None:
        seen = torch.from_numpy(Transform(spec_of(text), key, *images.shape[1:])(images.numpy()))
    with torch.no_grad():
        found: Tensor = ProgramModel(bundle.program, bundle.tensors)(seen)
    return found


def bundled(model: nn.Module, shape: tuple[int, int, int] = SHAPE) -> Bundle:
    """Return a bundle of a model whose weights and statistics are no longer those that it began with."""
    torch.manual_seed(3)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)  # type: ignore[arg-type]  # a buffer
            nn.init.uniform_(part.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    quality = {"accuracy_right_key": 0.9, "accuracy_plain": 0.9, "accuracy": 0.9}
    return bundle_of_module(model.eval(), shape, max_batch=16, quality=quality)


class Small(nn.Module):
    """A first convolution of small kernels, which `keyed` can replace, and little behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        result: Tensor = self.head(self.norm(self.enter(x)).relu().mean((2, 3)))
        return result


@functools.cache
def with_stem(text: str) -> Bundle:
    """Return a network with the stems of a transform, without a key."""
    torch.manual_seed(2)
    made = keyed(Small(), "enter", spec_of(text), MEAN, STD)
    model = made if isinstance(made, ByteModel) else PixelModel(made, MEAN, STD)
    fit_stems(model, IMAGES)
    if isinstance(model, ByteModel):
        with torch.no_grad():
            next(model.stem.parameters()).add_(torch.randn(48, 256) * 0.1)
    return bundled(model)


@functools.cache
def embedding_patches() -> Bundle:
    """Return a network whose own first layer embeds patches, with a bias."""
    torch.manual_seed(2)
    return bundled(PixelModel(ConvMixer(width=16, depth=2, kernel=3, patch=4), MEAN, STD))


class Normed(nn.Module):
    """Patches without a bias, a batch norm after them."""

    def __init__(self, features: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, features, 4, stride=4, bias=False)
        self.norm = nn.BatchNorm2d(features)
        self.head = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        result: Tensor = self.head(self.norm(self.patches(x)).relu().mean((2, 3)))
        return result


@functools.cache
def with_norm() -> Bundle:
    """Return such a network."""
    torch.manual_seed(2)
    return bundled(PixelModel(Normed(), MEAN, STD))


@functools.cache
def with_block_stem() -> Bundle:
    """Return a network behind a `BlockStem`: blocks whole, though it gives a picture again."""
    torch.manual_seed(2)
    stem = BlockStem(3, 4)
    nn.init.normal_(stem.map.weight)
    nn.init.normal_(stem.bias)
    return bundled(PixelModel(nn.Sequential(stem, Small()), MEAN, STD))


MAKERS: dict[str, Callable[[], Bundle]] = {
    "patches": lambda: with_stem("shf:4"),
    "tables": lambda: with_stem("ffx:4"),
    "convmixer": embedding_patches,
    "batch norm": with_norm,
    "block stem": with_block_stem,
}
CASES = [
    *((name, text) for name in MAKERS for text in ("shf:4", "np:4", "shf:4,np:2", "np:4,shf:2,np:4")),
    *(("tables", text) for text in ("ffx:4", "ffx:4:positions", "shf:4,ffx:4,np:2", "ffx:2,shf:4,ffx:4")),
]


@pytest.mark.parametrize(("name", "text"), CASES)
def test_the_right_key_gets_the_answers_of_before(name: str, text: str, tmp_path: Path) -> None:
    """And nobody else does; another key can take the first one's place, with another transform too."""
    plain = MAKERS[name]()
    before = answers(plain)
    found = lock(plain, spec_of(text), ONE)
    assert found.moved < 1e-5
    assert (found.bundle.transform, found.bundle.input_key_id) == (spec_of(text), input_key_id(ONE))
    assert found.bundle.quality == {"accuracy_right_key": 0.9, "accuracy": 0.9}  # what holds under any key
    torch.testing.assert_close(answers(found.bundle, text), before, rtol=1e-4, atol=1e-5)
    spread = (before - before.mean(0)).abs().mean()
    for wrong in (answers(found.bundle), answers(found.bundle, text, OTHER)):
        assert (wrong - before).abs().mean() > 0.2 * spread
    write_bundle(found.bundle, tmp_path / "bundle")
    again = lock(read_bundle(tmp_path / "bundle"), spec_of("np:4,shf:4"), OTHER, present=ONE)
    torch.testing.assert_close(answers(again.bundle, "np:4,shf:4", OTHER), before, rtol=1e-4, atol=1e-5)
    assert (answers(again.bundle, text) - before).abs().mean() > 0.2 * spread


def test_only_the_first_layer_changes() -> None:
    """Names, shapes and dtypes stay, so that program and copies of the rest fit."""
    plain = with_stem("ffx:4")
    made = lock(plain, spec_of("shf:4,ffx:4"), ONE).bundle
    assert made.program == plain.program
    changed = {name for name, value in plain.tensors.items() if not torch.equal(value, made.tensors[name])}
    assert changed == {"stem.table", "network.enter.whiten.weight"}
    assert all(made.tensors[name].dtype == value.dtype for name, value in plain.tensors.items())
    assert plain.transform is None  # the bundle that was given is as it was
    assert torch.equal(plain.tensors["stem.table"], with_stem("ffx:4").tensors["stem.table"])


def test_tables_alone_give_the_very_bits() -> None:
    """Only their order changes."""
    plain = with_stem("ffx:4")
    found = lock(plain, spec_of("ffx:4,np:4"), ONE)
    assert found.moved == 0.0
    assert torch.equal(answers(found.bundle, "ffx:4,np:4"), answers(plain))


def test_tables_before_any_convolution_take_what_stays_in_place() -> None:
    """A denoiser's small kernels see tables' values; it cannot take shf."""
    from tessera.protect.models import ValueStem

    plain = bundled(ByteModel(ValueStem(4, MEAN, STD), nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())))
    made = lock(plain, spec_of("np:4,ffx:2"), ONE).bundle
    assert torch.equal(answers(made, "np:4,ffx:2"), answers(plain))
    with pytest.raises(NotLockable, match="cannot undo shf"):
        lock(plain, spec_of("shf:4"), ONE)


def test_one_network_for_many_buyers() -> None:
    """Opened once; every copy answers its own key alone."""
    plain = MAKERS["patches"]()
    before, lockable = answers(plain), Lockable(plain)
    keys = [InputKey(bytes([number]) * 32) for number in range(4)]
    copies = [lockable.lock(spec_of("shf:4,np:4"), key).bundle for key in keys]
    for mine, copy in enumerate(copies):
        for number, key in enumerate(keys):
            near = bool((answers(copy, "shf:4,np:4", key) - before).abs().max() < 1e-3)
            assert near == (number == mine)


def test_half_precision_weights_stay_in_half_precision() -> None:
    """A permutation costs no bit of them."""
    plain = bundled(Half())
    made = lock(plain, spec_of("shf:4"), ONE).bundle
    assert made.tensors["network.patches.weight"].dtype == torch.bfloat16
    assert torch.equal(answers(made, "shf:4"), answers(plain))


class Half(nn.Module):
    """Weights and arithmetic in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Normed().to(torch.bfloat16)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits of pixels."""
        result: Tensor = self.network(image.to(torch.bfloat16) / 128 - 1).float()
        return result


class Around(nn.Module):
    """The image goes around the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Normed()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits with some of the image in them."""
        result: Tensor = self.network(x) + x.mean((1, 2, 3))[:, None] + x[:, 0, 0, :5]
        return result


class Bare(nn.Module):
    """No bias, no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        result: Tensor = self.patches(x).relu()
        return result


class Squared(Bare):
    """The way to the first layer is no line."""

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        return super().forward(x * x)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "small kernels": (lambda: PixelModel(Small(), MEAN, STD), "np:4", "neither takes whole blocks"),
    "padding": (
        lambda: PixelModel(nn.Sequential(nn.Conv2d(3, 4, 4, stride=4, padding=4)), MEAN, STD), "np:4", "neither takes",
    ),
    "groups": (
        lambda: PixelModel(nn.Sequential(nn.Conv2d(3, 6, 4, stride=4, groups=3)), MEAN, STD), "np:4", "neither takes",
    ),
    "no layer": (lambda: PixelModel(nn.AdaptiveAvgPool2d(1), MEAN, STD), "np:4", "neither takes whole blocks"),
    "no line": (lambda: PixelModel(Squared(), MEAN, STD), "np:4", "neither takes whole blocks"),
    "no tables": (lambda: PixelModel(Normed(), MEAN, STD), "ffx:4", "no tables of values"),
    "larger blocks": (lambda: PixelModel(Normed(), MEAN, STD), "shf:8", "blocks of 4, which steps of 8"),
    "no place for a shift": (lambda: PixelModel(Bare(), MEAN, STD), "np:4", "neither adds a bias"),
    "around": (lambda: PixelModel(Around(), MEAN, STD), "shf:4", "answers differ"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_networks_are_refused_with_the_reason(name: str) -> None:
    """Before anything is written, and nothing is changed by halves."""
    make, text, words = REFUSED[name]
    torch.manual_seed(5)
    with pytest.raises(NotLockable, match=words) as refused:
        lock(bundled(make()), spec_of(text), ONE)
    assert refused.value.remedy
    assert refused.value.reason == "not-lockable"


def test_no_shift_needs_no_place() -> None:
    """Mean and deviation of one half make inversion a change of sign."""
    torch.manual_seed(5)
    plain = bundled(PixelModel(Bare(), (0.5,) * 3, (0.5,) * 3))
    made = lock(plain, spec_of("np:4"), ONE).bundle
    torch.testing.assert_close(answers(made, "np:4"), answers(plain), rtol=1e-4, atol=1e-5)


def test_keys_that_are_wrong_missing_or_needless_are_told() -> None:
    """A second lock over the first would leave two keys to be undone and one to be had."""
    plain = bundled(PixelModel(DigitsNet(), (0.5,), (0.5,)), (1, 8, 8))
    locked = lock(plain, spec_of("shf:4"), ONE).bundle
    for bundle, present, words in (
        (plain, ONE, "has no key yet"),
        (locked, None, "has a key already"),
        (locked, OTHER, "not the model's"),
    ):
        with pytest.raises(ApiMisuse, match=words) as refused:
            lock(bundle, spec_of("shf:4"), OTHER, present=present)
        assert refused.value.remedy
    with pytest.raises(TransformError):
        lock(plain, spec_of("shf:16"), ONE)
    tiered = dataclasses.replace(locked, tiers=(BundleTier("full", {}, _patch()),))
    with pytest.raises(ApiMisuse, match="tiers"):
        lock(tiered, spec_of("shf:4"), OTHER, present=ONE)
    named = dataclasses.replace(plain, transform=spec_of("isnn:4:12"), input_key_ids=("0" * 32,))
    with pytest.raises(ApiMisuse, match="buyers' records"):
        lock(named, spec_of("shf:4"), OTHER, present=ONE)


def _patch() -> bytes:
    import numpy as np

    from tessera.keystore.package import PatchEntry, encode_patch

    entry = PatchEntry("network.blocks.0.weight", "F32", 4, np.array([0], np.uint32), np.zeros((1, 16), np.uint8))
    return encode_patch([entry])
