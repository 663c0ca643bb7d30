"""Each attack against a lock whose answer is known; what it cannot do, and that it repeats."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support import keys
from support.audits import CPU, SHAPE, SMALL, patient, sample, subject
from tessera.keystore.errors import NotFound
from tessera.protect.audit import ATTACKS, AttackResult, Meter, audit, chosen_attacks
from tessera.protect.audit.guesses import GuessTransform, changed, moves_of, random_guess, share_right, true_guess
from tessera.protect.audit.known_pairs import recover
from tessera.protect.audit.subject import some
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform, TransformSpec, mask, permutation

STACKS = ("shf:4", "np:4", "ffx:4", "ffx:4:positions", "shf:4,np:4", "np:2,shf:4", "shf:2,np:4,ffx:4", "ffx:2,shf:4")
PICTURES = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
"""Noise: no two places of a block look alike, so that one pair leaves no ties."""


def lock(text: str, shape: tuple[int, int, int]) -> TorchTransform:
    """Return the keyed transform."""
    return TorchTransform(Transform(TransformSpec.parse_text(text), keys.INPUT_KEY, *shape))


def run(name: str, text: str, seed: int = 0, meter: Meter | None = None) -> AttackResult:
    """Return what an attack reaches against the model made by hand."""
    return ATTACKS[name].run(subject(text), sample(), SMALL, meter or patient(), seed=seed, device=CPU)


@pytest.mark.parametrize("text", STACKS)
def test_the_right_guess_is_the_keyed_transform(text: str) -> None:
    """Permutations, masks and tables of the key, as arrays, do what the key does, bit for bit."""
    spec = TransformSpec.parse_text(text)
    guess = GuessTransform(true_guess(spec, keys.INPUT_KEY, 3), (3, 16, 16), CPU)
    assert torch.equal(guess(PICTURES), lock(text, (3, 16, 16))(PICTURES))


@given(st.sampled_from(["shf:2", "np:2", "shf:2,np:2"]), st.integers(0, 2**32 - 1))
def test_a_guess_stays_a_key_and_moves_are_small(text: str, seed: int) -> None:
    """However it is changed, a permutation stays one; one move changes two places at most, and undoes itself."""
    spec = TransformSpec.parse_text(text)
    draws = np.random.default_rng(seed)
    guess = random_guess(spec, 3, draws)
    moves = moves_of(guess)
    move = moves[int(draws.integers(len(moves)))]
    after = changed(guess, move)
    for part in after:
        assert sorted(part.order.tolist()) == list(range(12))
    places = sum(len(part.order) for part in guess)
    assert round((1 - share_right(after, guess)) * places) in {0, 1, 2}
    assert share_right(changed(after, move), guess) == 1.0


@pytest.mark.parametrize("text", ["shf:4", "shf:2", "np:4", "shf:4,np:4"])
def test_one_pair_gives_the_transform_away(text: str) -> None:
    """Everything is read off one pair without ties: other images come out right to the last byte."""
    keyed = lock(text, (3, 16, 16))
    found = recover(TransformSpec.parse_text(text), PICTURES[:1].numpy(), keyed(PICTURES[:1]).numpy())
    assert torch.equal(found(PICTURES[1:]), keyed(PICTURES[1:]))


def test_what_is_read_off_is_the_keys_own_permutation_and_mask() -> None:
    """Not something that happens to act alike on these images."""
    shf = recover(
        TransformSpec.parse_text("shf:4"), PICTURES[:1].numpy(), lock("shf:4", (3, 16, 16))(PICTURES[:1]).numpy()
    )
    assert shf.source.tolist() == permutation(keys.INPUT_KEY, 0, "shf", 4, 3).tolist()
    inverted = recover(
        TransformSpec.parse_text("np:4"), PICTURES[:1].numpy(), lock("np:4", (3, 16, 16))(PICTURES[:1]).numpy()
    )
    assert (inverted.tables[:, 0]).tolist() == mask(keys.INPUT_KEY, 0, "np", 4, 3).tolist()


@pytest.mark.parametrize(("text", "least"), [("ffx:4", 0.8), ("ffx:4:positions", 0.5)])
def test_tables_are_read_off_as_far_as_the_pairs_show_them(text: str, least: float) -> None:
    """One table for all places is mostly known after a pair; a table for each place is learned entry by entry."""
    keyed = lock(text, (3, 16, 16))
    spec = TransformSpec.parse_text(text)
    right = [
        float((recover(spec, PICTURES[:count].numpy(), keyed(PICTURES[:count]).numpy())(PICTURES) == keyed(PICTURES))
              .double().mean()) for count in (1, 5)
    ]  # fmt: skip
    assert right[0] >= least
    assert right[1] == 1.0


@pytest.mark.slow
def test_known_pairs_open_the_model() -> None:
    """The attack judges what was read off by the model's own held-out score."""
    found = run("known-pairs", "shf:4,np:4")
    right = run("no-key", "shf:4,np:4").rows[0].score
    assert [row.at for row in found.rows] == [1, 2, 5]
    assert [row.score for row in found.rows] == [right] * 3
    assert all(row.images == 0 for row in found.rows)


@pytest.mark.slow
def test_without_the_key_the_model_is_worth_little() -> None:
    """What the attacks below start from: the right key reaches nearly all, none and random ones far less."""
    found = {row.label: row.score or 0.0 for row in run("no-key", "shf:4,np:4").rows}
    assert found["right key"] > 0.95
    assert found["random wrong keys, mean"] < 0.5
    assert found["random wrong keys, mean"] <= found["the luckiest of them"]


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "text", "label"), [
    ("mask-search", "np:2", "mask bits, by loss"),
    ("mask-search", "np:4", "mask bits, by loss"),
    ("greedy-search", "np:4", "pairwise, by loss"),
    ("greedy-search", "shf:2", "pairwise, by loss"),
])  # fmt: skip
def test_climbing_by_loss_finds_small_keys(attack: str, text: str, label: str) -> None:
    """Every place of the mask or permutation is right, found with a few hundred tries and 40 labelled images."""
    row = next(row for row in run(attack, text).rows if row.label == label)
    assert "100% of the places" in row.note
    assert row.score == run("no-key", text).rows[0].score
    assert row.work <= SMALL.evaluations
    assert row.images == SMALL.search_images


@pytest.mark.slow
def test_a_search_reports_what_it_reached_along_the_way() -> None:
    """The curve has held-out scores at rising work and ends with the row's own."""
    for row in run("greedy-search", "shf:4").rows:
        works = [work for work, _ in row.curve]
        assert works == sorted(works)
        assert row.curve[-1] == (row.work, row.score)


@pytest.mark.slow
def test_an_adapter_learns_the_lock_from_labelled_images() -> None:
    """A linear map in front of the frozen model does what the key does, the better the more images there are."""
    found = run("adapter", "shf:4,np:4")
    right = run("no-key", "shf:4,np:4").rows[0].score or 0.0
    assert [row.images for row in found.rows] == [10, 100, 1000]
    assert (found.rows[2].score or 0.0) > right - 0.1
    assert found.details["adapter"].startswith("one linear map")


def test_an_adapter_of_more_images_than_there_are_is_not_run() -> None:
    """Never estimated: the row says why it has no score."""
    few = replace(sample(), attacker=some(sample().attacker, 50, 0))
    found = ATTACKS["adapter"].run(subject("np:4"), few, replace(SMALL, steps=2), patient(), seed=0, device=CPU)
    assert [row.score is None for row in found.rows] == [False, True, True]
    assert "not run" in found.rows[1].note


@pytest.mark.slow
def test_fine_tuning_stands_beside_training_from_scratch() -> None:
    """Both were trained on as many images and steps; the row holds both scores."""
    found = run("fine-tuning", "np:4")
    assert [row.images for row in found.rows] == [10, 50, 100]
    assert all(row.score is not None and row.beside is not None for row in found.rows)
    assert all(row.work == SMALL.steps and not row.cut_short for row in found.rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if not attack.unfit(subject("np:4"))])
def test_an_attack_repeats_and_says_when_time_ran_out(name: str) -> None:
    """The same seed gives the same result; without time every attack ends with rows that say so."""
    small = replace(SMALL, evaluations=60, random_keys=20, steps=10, wrong_keys=5)

    def once(meter: Meter, keys_tried: int = 20) -> AttackResult:
        budget = replace(small, random_keys=keys_tried)
        return ATTACKS[name].run(subject("np:4"), sample(), budget, meter, seed=1, device=CPU)

    assert once(patient()) == once(patient())
    hurried = once(Meter(0), keys_tried=10_000)
    assert hurried.rows
    assert name == "known-pairs" or any(row.cut_short for row in hurried.rows)


def test_attacks_that_do_not_apply_say_why() -> None:
    """Nothing is inverted, so no mask is searched; and the attack has no rows."""
    report = audit(subject("shf:2"), sample(), SMALL, attacks=["mask-search"])
    assert report.results[0].rows == ()
    assert "np" in report.results[0].skipped
    assert report.verdicts == []


def test_attacks_are_chosen_by_name_in_the_order_of_the_table() -> None:
    """All without a choice; an unknown name is refused with those there are."""
    assert [attack.name for attack in chosen_attacks(None)] == list(ATTACKS)
    assert [attack.name for attack in chosen_attacks(["adapter", "no-key"])] == ["no-key", "adapter"]
    with pytest.raises(NotFound, match="there is no attack 'magic'") as caught:
        chosen_attacks(["magic"])
    assert "adapter" in caught.value.remedy


def test_the_model_made_by_hand_has_the_shape_that_is_said() -> None:
    """A guard of the tests' own model."""
    assert subject("np:4").victim()(torch.zeros((2, *SHAPE), dtype=torch.uint8)).shape == (2, 4)
