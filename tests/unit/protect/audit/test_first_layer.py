"""Reading the key in the weights: layers that spell it out, layers fitted to keyed pictures, and what is not read."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from support import keys
from support.audits import CPU, SMALL, patient, sample, subject
from tessera.protect.audit import ATTACKS, AttackResult, Meter
from tessera.protect.audit.first_layer import (
    correlations_in,
    correlations_of,
    first_map,
    read_off,
    spelled_out,
    unreadable,
)
from tessera.protect.audit.guesses import Guess, share_right, true_guess
from tessera.protect.audit.matching import climbed, matched, starts_for, turns
from tessera.protect.audit.value_tables import first_tables, tables_read
from tessera.protect.audit.verdict import Measured, measured, verdicts
from tessera.protect.models import ValueStem
from tessera.protect.models.statistics import scale_values, whiten
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform, TransformSpec

SIZE = 16


def pictures(count: int, channels: int, seed: int) -> Tensor:
    """Return pictures uint8 (N, C, 16, 16) whose neighbours are alike; every place has its own strength of noise."""
    draws = torch.Generator().manual_seed(seed)
    rough = torch.randn(count, channels + 1, SIZE + 8, SIZE + 8, generator=draws)
    smooth = nn.functional.avg_pool2d(rough, 5, stride=1, padding=2)[:, :, 4:-4, 4:-4] * 5
    shared = smooth[:, :1] + 0.5 * smooth[:, 1:]
    strength = torch.rand(1, channels, 4, 4, generator=torch.Generator().manual_seed(9)).repeat(1, 1, 4, 4)
    noise = torch.randn(count, channels, SIZE, SIZE, generator=draws) * strength * 0.7
    return ((shared + noise) * 40 + 127.5).clamp(0, 255).round().to(torch.uint8)


def fitted(text: str, channels: int, features: int | None = None) -> tuple[NDArray[np.float64], TransformSpec, Guess]:
    """Return a layer fitted to keyed pictures as a recipe's is, mixed to `features`; the spec; what the key does."""
    spec = TransformSpec.parse_text(text)
    keyed = TorchTransform(Transform(spec, keys.INPUT_KEY, channels, SIZE, SIZE))(pictures(1500, channels, 1))
    weight = whiten((keyed.float() - 127.5) / 64, 4)[0].double().numpy()
    if features is not None:
        weight = np.random.default_rng(3).standard_normal((features, len(weight))) @ weight
    return weight, spec, true_guess(spec, keys.INPUT_KEY, channels)


def right(weight: NDArray[np.float64], spec: TransformSpec, truth: Guess, channels: int) -> float:
    """Return the share of places that are read right, up to a negative of the whole picture."""
    seen, known = correlations_of(weight), correlations_in(pictures(1500, channels, 2), 4)
    (guess, *_), hurried = read_off(spec, (channels, 4, 4), seen, known, np.random.default_rng(0))
    assert not hurried
    other = tuple(replace(part, chosen=~part.chosen) if part.step.kind == "np" else part for part in guess)
    return max(share_right(guess, truth), share_right(other, truth))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("text", ["np:4", "shf:4", "shf:4,np:4", "np:4,shf:4"])
def test_a_layer_fitted_to_keyed_pictures_tells_the_key(text: str, channels: int) -> None:
    """No label, no pair and other pictures: mask and permutation come out whole."""
    assert right(*fitted(text, channels), channels) == 1.0


def test_a_mixed_layer_tells_it_as_well() -> None:
    """Folding the map into a bank of filters hides nothing, as long as there are about as many as places."""
    assert right(*fitted("np:4", 3, features=96), 3) == 1.0


def test_weights_that_were_never_fitted_tell_nothing() -> None:
    """A random layer: half of a mask is right by chance."""
    _, spec, truth = fitted("np:4", 3)
    weight = np.random.default_rng(5).standard_normal((96, 48))
    assert right(weight, spec, truth, 3) < 0.8


@pytest.mark.parametrize("text", ["shf:4", "np:4", "shf:4,np:4", "np:4,shf:4"])
def test_a_stem_that_undoes_the_key_spells_it_out(text: str) -> None:
    """Each of its features is one place: the guess is the key's own, and the model opens without a label."""
    found = run(text)
    assert not found.skipped
    assert found.rows[0].score == pytest.approx(1.0, abs=0.03)
    assert found.rows[0].images == 0
    assert found.rows[0].note.startswith("100%")
    assert found.rows[1].score is not None


def run(text: str, meter: Meter | None = None) -> AttackResult:
    """Return what the attack reaches against the model made by hand."""
    return ATTACKS["first-layer"].run(subject(text), sample(), SMALL, meter or patient(), seed=0, device=CPU)


def test_it_repeats() -> None:
    """The same arguments, the same rows."""
    assert run("shf:4,np:4").to_json() == run("shf:4,np:4").to_json()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shf:4,ffx:4", "the one step"),
        ("ffx:4", ""),
        ("shf:2,np:4", "longer stack"),
        ("np:4,shf:4,np:4", "longer stack"),
        ("np:4", ""),
    ],
)
def test_what_is_not_read_says_why(text: str, words: str) -> None:
    """Tables, two blocks, several masks: words; one inversion: none."""
    why = unreadable(TransformSpec.parse_text(text))
    assert words in why
    assert bool(why) == bool(words)


def test_a_layer_that_does_not_take_blocks_is_not_read() -> None:
    """A kernel of 3x3 sees parts of blocks; a network without a convolution has no such layer."""
    assert first_map(nn.Conv2d(3, 8, 3), 3, 4) is None
    assert first_map(nn.Linear(4, 4), 3, 4) is None
    assert first_map(nn.Conv2d(3, 8, 4, stride=4), 3, 4) is not None
    plain = replace(subject("np:4"), victim=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    found = ATTACKS["first-layer"].run(plain, sample(), SMALL, patient(), seed=0, device=CPU)
    assert "no whole blocks" in found.skipped


def test_a_mixing_layer_spells_nothing_out() -> None:
    """Neither a whitening nor a layer of another width is read place by place."""
    weight, spec, _ = fitted("np:4", 1)
    assert spelled_out(spec, (1, 4, 4), weight) is None
    assert spelled_out(spec, (1, 4, 4), weight[:8]) is None


def correlations(draws: np.random.Generator, places: int) -> NDArray[np.float64]:
    """Return correlations of random values, without the diagonal."""
    values = draws.standard_normal((places, 9))
    values -= values.mean(axis=1, keepdims=True)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    found: NDArray[np.float64] = values @ values.T * (1 - np.eye(places))
    return found


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_matrices_of_one_shape_are_laid_over_each_other(seed: int, channels: int) -> None:
    """What comes out is a permutation that fits no worse than where it began, and that no exchange makes better."""
    draws = np.random.default_rng(seed)
    places = channels * 4
    known, seen = (correlations(draws, places) for _ in range(2))
    start = draws.permutation(places)
    order, fit = climbed(known, seen, start)
    assert sorted(order.tolist()) == list(range(places))
    assert fit >= (known[np.ix_(start, start)] * seen).sum() - 1e-9
    laid = known[np.ix_(order, order)]
    assert fit == pytest.approx((laid * seen).sum())
    for first in range(places):
        for second in range(first):
            other = order.copy()
            other[[first, second]] = order[[second, first]]
            assert (known[np.ix_(other, other)] * seen).sum() <= fit + 1e-6


def test_a_hurried_matching_says_so() -> None:
    """Without time it still gives a permutation."""
    matrix = correlations(np.random.default_rng(0), 12)
    orders, hurried = matched(matrix, matrix, (3, 2, 2), np.random.default_rng(1), lambda: True)
    assert hurried
    assert all(sorted(order.tolist()) == list(range(12)) for order in orders)


def test_turns_are_those_of_a_square_and_its_colours() -> None:
    """8 turns of a square, 6 orders of 3 colours, all different, the first leaves everything."""
    found = [tuple(turn.tolist()) for turn in turns((3, 2, 2))]
    assert len(found) == len(set(found)) == 48
    assert tuple(range(12)) in found
    assert starts_for(192) < starts_for(48) == starts_for(12)


def test_a_key_that_was_read_is_held_against_the_lock() -> None:
    """The verdict on who has the file and nothing else falls, and says what to do."""
    base = Measured(right=0.9, floor=0.1, plain=0.1, wrong_mean=0.12)
    assert verdicts(base)[0].level == "holds"
    told = verdicts(replace(base, read=0.9))[0]
    assert told.level == "falls"
    assert "90% with the key as it can be read in the first layer's weights" in told.says
    assert "Ship it sealed" in told.advice
    assert verdicts(replace(base, read=0.12))[0].level == "holds"


def test_the_reading_without_labels_is_told_from_the_corrected_one() -> None:
    """What labelled images improved needs labelled images: it counts for the next attacker."""
    nokey = ATTACKS["no-key"].run(subject("shf:4"), sample(), SMALL, patient(), seed=0, device=CPU)
    found = measured([nokey, run("shf:4")])
    assert found is not None
    assert found.read == pytest.approx(1.0, abs=0.03)
    assert found.corrected == pytest.approx(1.0, abs=0.03)
    assert found.searched is None
    assert "reading the key in the weights" in verdicts(found)[1].says


@pytest.mark.parametrize("text", ["ffx:4", "ffx:4:positions"])
def test_tables_fitted_to_keyed_pictures_tell_the_key(text: str) -> None:
    """The mask comes out whole, and the tables give nearly the true values, without a picture."""
    spec = TransformSpec.parse_text(text)
    keyed = TorchTransform(Transform(spec, keys.INPUT_KEY, 3, SIZE, SIZE))(pictures(3000, 3, 1))
    stem = ValueStem(4, (0.5,) * 3, (0.25,) * 3)
    scale_values(stem, keyed)
    tables = first_tables(nn.Sequential(stem), 48)
    assert tables is not None
    (read,) = tables_read(spec.steps[0], (3, 4, 4), tables)
    (truth,) = true_guess(spec, keys.INPUT_KEY, 3)
    assert (read.chosen == truth.chosen).all()
    middle = slice(64, 192)  # the pictures have few values at the ends
    back = [
        np.corrcoef(np.argsort(truth.tables[place])[read.tables[place][middle]], np.arange(64, 192))[0, 1]
        for place in np.flatnonzero(truth.chosen)
    ]
    assert min(back) > 0.9


def test_tables_that_follow_no_place_are_not_read() -> None:
    """A layer without a table for each place of a block has nothing to read."""
    assert first_tables(nn.Conv2d(3, 8, 4), 48) is None
    assert first_tables(nn.Flatten(), 48) is None
    assert first_tables(ValueStem(None, (0.5,) * 3, (0.25,) * 3), 48) is None
