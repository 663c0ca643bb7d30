"""FFX read off keyed images alone: masks, tables, and what a model is worth with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from support import keys
from support.audits import CPU, patient
from support.cut_models import QUICK, digits_sample, replaced
from tessera.protect.audit import ATTACKS, AttackResult, Lock, Meter, audit, measured
from tessera.protect.audit.guesses import share_right, true_guess
from tessera.protect.audit.histograms import ReadOff, read_off
from tessera.protect.audit.substitution import ALONE, BESIDE, CORRECTED, guess_of
from tessera.protect.data import digits
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform, TransformSpec

Bytes = NDArray[np.uint8]


def seen(text: str, count: int, images: torch.Tensor | None = None) -> tuple[ReadOff, Bytes, Bytes]:
    """Return what is read off `count` keyed digits, and other digits before and after the transform."""
    spec = TransformSpec.parse_text(text)
    pictures = digits().train.images if images is None else images
    lock = TorchTransform(Transform(spec, keys.INPUT_KEY, *pictures.shape[1:]))
    found = read_off(spec.steps[0], lock(pictures[:count]).numpy())
    rest = pictures[count : count + 200]
    return found, rest.numpy(), lock(rest).numpy()


def legible(found: ReadOff, text: str, plain: Bytes, keyed: Bytes) -> float:
    """Return the correlation of replaced pixels with what is read for them; one block of 4x4 or 2x2 is a whole tile."""
    spec = TransformSpec.parse_text(text)
    block = spec.steps[0].block
    truth = true_guess(spec, keys.INPUT_KEY, 1)[0].chosen.reshape(block, block)
    where = np.tile(truth, (8 // block, 8 // block))
    places = np.tile(np.arange(block * block).reshape(block, block), (8 // block, 8 // block))
    back = found.plain[places[None, None], keyed]
    return float(np.corrcoef(back[:, :, where].reshape(-1), plain[:, :, where].reshape(-1))[0, 1])


@pytest.mark.parametrize("text", ["ffx:2", "ffx:4", "ffx:4:positions", "ffx:2:positions"])
def test_mask_and_table_are_read_off_images_alone(text: str) -> None:
    """From 300 keyed digits every mask bit is right and replaced pixels are legible; no label, no pair."""
    found, plain, keyed = seen(text, 300)
    guess = guess_of(TransformSpec.parse_text(text).steps[0], found)
    assert share_right(guess, true_guess(TransformSpec.parse_text(text), keys.INPUT_KEY, 1)) == 1.0
    assert legible(found, text, plain, keyed) > 0.97


def test_noise_tells_nothing_of_a_table() -> None:
    """Where neighbours have nothing in common and all values are as frequent, what is read is chance."""
    noise = torch.randint(0, 256, (500, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, plain, keyed = seen("ffx:4", 300, noise)
    assert abs(legible(found, "ffx:4", plain, keyed)) < 0.3


def test_more_images_read_more() -> None:
    """The correlation rises with the number of images, and plain images of the same kind can stand in."""
    spec = TransformSpec.parse_text("ffx:4:positions")
    few, many = (seen("ffx:4:positions", count) for count in (10, 400))
    assert legible(few[0], "ffx:4:positions", *few[1:]) < legible(many[0], "ffx:4:positions", *many[1:])
    lock = TorchTransform(Transform(spec, keys.INPUT_KEY, 1, 8, 8))
    images = digits().train.images
    beside = read_off(spec.steps[0], lock(images[:400]).numpy(), images[400:800].numpy())
    assert legible(beside, "ffx:4:positions", *many[1:]) > 0.9


def test_what_was_read_is_turned_into_tables_that_undo_it() -> None:
    """Every plain value goes to the seen value that stands for the nearest one."""
    found, _, _ = seen("ffx:4", 300)
    place = int(np.flatnonzero(found.chosen)[0])
    tables = found.tables()
    values = np.flatnonzero(found.seen[place])
    assert sorted(set(tables[place].tolist())) == sorted(values.tolist())
    back = found.plain[place][tables[place]]
    assert (back[found.plain[place][values]] == found.plain[place][values]).all()
    unreplaced = int(np.flatnonzero(~found.chosen)[0])
    assert (tables[unreplaced] == np.arange(256)).all()


def attack(text: str, meter: Meter | None = None, seed: int = 0) -> AttackResult:
    """Return what the attack reaches against digits behind one ffx step."""
    run = ATTACKS["ffx-statistics"].run
    return run(replaced(text), digits_sample(), QUICK, meter or patient(), seed=seed, device=CPU)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["ffx:4", "ffx:4:positions"])
def test_images_that_pass_open_the_model(text: str) -> None:
    """The model answers plain images nearly as with the key, from images alone; labels are for the last row."""
    base = ATTACKS["no-key"].run(replaced(text), digits_sample(), QUICK, patient(), seed=0, device=CPU)
    scores = {row.label: row.score or 0.0 for row in base.rows}
    found = attack(text)
    assert {row.series for row in found.rows} == {ALONE, BESIDE, ""}
    most = [row for row in found.rows if row.at == 648]
    assert len(most) == 2
    for row in most:
        assert "16 of 16 mask bits right" in row.note
        assert (row.score or 0.0) > scores["right key"] - 0.1 > scores["plain images, no key"]
        assert (row.images, row.work) == (0, 648)
    assert found.rows[-1].label == CORRECTED
    assert found.rows[-1].images == QUICK.search_images


@pytest.mark.slow
def test_it_repeats_and_says_when_time_ran_out() -> None:
    """The same seed gives the same rows; without time the rows that were not run have no score."""
    assert attack("ffx:2") == attack("ffx:2")
    hurried = attack("ffx:2", Meter(0))
    assert hurried.rows[0].score is not None
    assert all(row.score is None and row.cut_short for row in hurried.rows[1:])


@pytest.mark.slow
def test_it_has_a_verdict_of_its_own() -> None:
    """A5 is there when it was run and not when the spec has no ffx; and a stack is skipped with a reason."""
    report = audit(replaced("ffx:4"), digits_sample(), QUICK, attacks=["no-key", "ffx-statistics"])
    verdict = report.verdicts[-1]
    assert (verdict.attacker, verdict.level) == ("A5", "falls")
    alone = audit(replaced("ffx:4"), digits_sample(), QUICK, attacks=["no-key"])
    assert [verdict.attacker for verdict in alone.verdicts] == ["A0", "A1", "A2", "A3", "A4"]
    found = measured(report.results)
    assert found is not None
    assert max(score for _, score in found.passing) > 0.8


@pytest.mark.parametrize(("text", "why"), [("ffx:4,np:4", "reads one ffx step off"), ("np:4", "with ffx")])
def test_stacks_and_other_kinds_are_not_read_off(text: str, why: str) -> None:
    """It says what it would need, and has no rows."""
    other = replace(replaced("ffx:4"), lock=Lock(TransformSpec.parse_text(text), keys.INPUT_KEY))
    result = audit(other, digits_sample(), QUICK, attacks=["ffx-statistics"]).results[0]
    assert why in result.skipped
    assert result.rows == ()
