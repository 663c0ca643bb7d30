"""Legal and illegal inputs of an input-sensitive network: the torch twin, many buyers, and every illegal kind."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.protect import TorchTransform
from tessera.protect.evaluate import evaluation_keys
from tessera.protect.isnn import IllegalInputs, IllegalMixture, LegalInputs
from tessera.protect.isnn.measure import by_chance, near_key
from tessera.protect.near_keys import NearKeyTransform
from tessera.transforms import Step, Transform, TransformError, TransformSpec

CONTENT = TransformSpec.parse_text("isnn:4:12:content")
FIXED = TransformSpec.parse_text("isnn:4:12")
SHAPE = (3, 16, 16)
KEYS = evaluation_keys(3, 1)


def draws(seed: int = 0) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Return pictures that no addition of 12 clips."""
    return torch.randint(20, 236, (count, *SHAPE), generator=draws(seed)).to(torch.uint8)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    content=st.booleans(),
    block=st.sampled_from([4, 8]),
    epsilon=st.integers(1, 64),
    key=st.binary(min_size=32, max_size=32).map(InputKey),
    shape=st.tuples(st.integers(0, 4), st.integers(1, 3), st.sampled_from([8, 16]), st.sampled_from([8, 24])),
    seed=st.integers(0, 2**32 - 1),
)
def test_equal_to_numpy(
    content: bool, block: int, epsilon: int, key: InputKey, shape: tuple[int, int, int, int], seed: int
) -> None:
    """The torch twin of an isnn gives the bits of the NumPy form (rules T-12, T-24)."""
    lock = Transform(TransformSpec((Step("isnn", block, epsilon=epsilon, content=content),)), key, *shape[1:])
    batch = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    assert TorchTransform(lock)(torch.tensor(batch)).numpy().tobytes() == lock(batch).tobytes()


def test_the_twin_cannot_undo_it_either() -> None:
    """Asking for the way back is a misuse, not a wrong answer."""
    twin = TorchTransform(Transform(FIXED, KEYS[0], *SHAPE))
    with pytest.raises(ApiMisuse, match="isnn"):
        twin.inverse(pictures(1))
    with pytest.raises(TransformError):
        twin(pictures(1)[:, :, :8])


@pytest.mark.parametrize("spec", [FIXED, CONTENT], ids=str)
def test_each_image_gets_its_own_buyers_pattern(spec: TransformSpec) -> None:
    """A batch for several buyers is what each buyer's own transform gives."""
    legal, x = LegalInputs(spec, KEYS, SHAPE), pictures(9)
    buyers = torch.arange(9) % 3
    y = legal(x, buyers)
    for number, key in enumerate(KEYS):
        own = torch.tensor(Transform(spec, key, *SHAPE)(x.numpy()))
        assert torch.equal(y[buyers == number], own[buyers == number])


def test_bad_sets_of_keys() -> None:
    """No key, a key twice, and a spec of another kind are refused."""
    with pytest.raises(ApiMisuse):
        LegalInputs(FIXED, [], SHAPE)
    with pytest.raises(ApiMisuse):
        LegalInputs(FIXED, [KEYS[0], KEYS[0]], SHAPE)
    with pytest.raises(TransformError):
        LegalInputs(TransformSpec.parse_text("shf:4"), KEYS, SHAPE)
    with pytest.raises(TransformError, match="divide"):
        LegalInputs(FIXED, KEYS, (3, 15, 16))


@pytest.mark.parametrize("spec", [FIXED, CONTENT], ids=str)
def test_illegal_inputs_are_illegal_and_repeatable(spec: TransformSpec) -> None:
    """No illegal input is what any buyer would send, every change is of the legal strength, and seeds decide all."""
    legal = LegalInputs(spec, KEYS, SHAPE)
    illegal, x = IllegalInputs(legal), pictures(200)
    y = illegal(x, draws(4))
    assert torch.equal(y, illegal(x, draws(4)))
    assert not torch.equal(y, illegal(x, draws(5)))
    change = (y.int() - x.int()).abs()
    assert set(change.reshape(-1).tolist()) <= {0, 12}
    clean = (change.flatten(1).sum(1) == 0).double().mean()
    assert 0.15 < clean < 0.4
    for number in range(3):
        sent = legal(x, torch.full((200,), number))
        assert not (sent == y).flatten(1).all(1).any()


def test_kinds() -> None:
    """Near keys turn between 5 and 50 % of the signs, other keys about half, misplaced turns keep the pattern."""
    legal = LegalInputs(CONTENT, KEYS[:1], SHAPE)
    illegal, x = IllegalInputs(legal), pictures(300)
    sent = legal(x, torch.zeros(300, dtype=torch.int64)).int() - x.int()

    def wrong(y: torch.Tensor) -> torch.Tensor:
        return ((y.int() - x.int()) != sent).double().flatten(1).mean(1)

    near = wrong(illegal.near_keys(x, draws()))
    assert near.min() >= 0.04
    assert near.max() <= 0.52
    assert near.max() - near.min() > 0.3
    assert 0.4 < wrong(illegal.other_keys(x, draws())).mean() < 0.6
    assert 0.4 < wrong(illegal.noise(x, draws())).mean() < 0.6
    misplaced = illegal.misplaced(x, draws()).int() - x.int()
    tile = legal.signs[0].repeat(1, 4, 4) * 12
    for change in misplaced[:50]:
        agree = (change == tile).reshape(3, 4, 4, 4, 4).permute(1, 3, 0, 2, 4).flatten(2)
        assert bool((agree.all(2) | (~agree).all(2)).all())  # in each block the pattern or its opposite
    assert 0.3 < wrong(illegal.misplaced(x, draws())).mean() < 0.7


def test_mixtures() -> None:
    """Shares must be known, not negative, and leave clean inputs in; the fixed form has nothing to misplace."""
    for shares in ({"clean": 0.0}, {"clean": 1.0, "other": 1.0}, {"clean": 1.0, "noise": -1.0}, {}):
        with pytest.raises(ApiMisuse):
            IllegalMixture(shares)  # type: ignore[arg-type]
    mixture = IllegalMixture()
    assert mixture.of("misplaced", content=False) == 0
    assert mixture.of("clean", content=False) > mixture.of("clean", content=True)


@pytest.mark.parametrize("spec", [FIXED, CONTENT], ids=str)
def test_near_keys_of_the_measurements(spec: TransformSpec) -> None:
    """Both makers of near keys turn the share that they are asked for and leave all else right."""
    legal, x = LegalInputs(spec, KEYS[:1], SHAPE), pictures(4)
    sent = legal(x, torch.zeros(4, dtype=torch.int64))
    for share in (0.01, 0.25, 0.5):
        for y in (
            near_key(legal, share)(x, draws()),
            NearKeyTransform(spec, KEYS[0], SHAPE, share, seed=1)(x),
        ):
            assert (y != sent).double().mean() == pytest.approx(max(1, round(share * 48)) / 48)


def test_turns_by_chance_are_right_half_of_the_time() -> None:
    """The maker of misplaced inputs agrees with the legal ones in about half of the blocks."""
    legal, x = LegalInputs(CONTENT, KEYS[:1], SHAPE), pictures(64)
    sent = legal(x, torch.zeros(64, dtype=torch.int64))
    assert 0.4 < (by_chance(legal)(x, draws()) == sent).double().mean() < 0.6
