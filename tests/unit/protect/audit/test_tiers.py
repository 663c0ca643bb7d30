"""Attacks on tiers against models whose answers are known: what each finds, and what would make it find more."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from support import keys
from support.audits import CPU, patient
from support.cut_models import QUICK, TIERS, Careless, digits_sample, sealed_under, smooth, task, tiered
from tessera.keystore.copyright import CopyrightRecord, bound_key, buyer_input_key
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey, TierSecret
from tessera.keystore.tiers import TierKey
from tessera.protect import PixelModel, SegmentationDataset, Split, bundle_of_module
from tessera.protect.audit import (
    ATTACKS,
    AttackResult,
    Cut,
    Meter,
    Sample,
    Subject,
    audit,
    subject_of_bundle,
    write_report,
)
from tessera.protect.audit.cut import weights_called
from tessera.protect.audit.result import Row
from tessera.protect.audit.tier_keys import CONTROLS
from tessera.protect.audit.tier_localisation import BAR, BARRED, TESTED, auc_interval
from tessera.protect.audit.tier_retraining import ALL, LOCKED
from tessera.protect.audit.tier_verdict import tier_verdicts, tiers_measured
from tessera.protect.audit.verdict import Verdict
from tessera.protect.curves import METRIC_WORDS
from tessera.protect.selective import Settings, encrypt_bundle, same_bits
from tessera.transforms import TransformSpec

FAMILY = ["tier-quality", "tier-localisation", "tier-retraining", "tier-keys"]


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A trained model of digits in three tiers, plain inputs."""
    return subject_of_bundle(tiered(), None, name="digits", task=task())


def run(name: str, subject: Subject, meter: Meter | None = None, steps: int = QUICK.steps) -> AttackResult:
    """Return what an attack reaches."""
    budget = replace(QUICK, steps=steps)
    return ATTACKS[name].run(subject, digits_sample(), budget, meter or patient(), seed=0, device=CPU)


def cut_of(subject: Subject) -> Cut:
    """Return how it is cut."""
    assert subject.cut is not None
    return subject.cut


@pytest.mark.slow
def test_each_tier_answers_as_when_it_was_encrypted(subject: Subject) -> None:
    """The file alone and tier 1, which adds nothing, are alike; the last is the vendor's model to the bit."""
    found = audit(subject, digits_sample(), replace(QUICK, held_out=10_000), attacks=["tier-quality"])
    measured = [row.score for row in found.results[0].rows]
    encrypted = [tier.quality["accuracy"] for tier in tiered().tiers]
    assert measured[0] == measured[1]
    assert measured[1:] == pytest.approx(encrypted)
    assert cut_of(subject).starts() == (0, 2)
    parts = [cut_of(subject).state(tier) for tier in range(TIERS + 1)]
    assert same_bits(parts[0], tiered().tensors)
    assert not same_bits(parts[2], parts[3])
    images = digits_sample().held_out.images[:8]
    assert torch.equal(cut_of(subject).model(parts[3])(images), subject.victim()(images))


@pytest.mark.slow
def test_naive_decoys_are_found_and_ours_are_not() -> None:
    """In smooth kernels the paper's decoys stand out by both tests with a bar, ours by neither; and it is said."""
    base = subject_of_bundle(tiered(), None, name="smooth")
    levels = {}
    for decoys in ("normal", "kernel"):
        found = run("tier-localisation", replace(base, cut=smooth(decoys)))
        scores = {(row.series, row.label.split(": ")[1].split(",")[0]): row.score or 0.0 for row in found.rows}
        alone = [scores["the file alone", test] for test in BARRED]
        assert (min(alone) > 0.7) if decoys == "normal" else (max(alone) <= BAR)
        assert found.scale == "auc"
        told = tiers_measured([_base(), found])
        assert told is not None
        levels[decoys] = tier_verdicts(told)[1]
    assert levels["normal"].level == "falls"
    assert "smoothness" in levels["normal"].says or "residual" in levels["normal"].says
    assert levels["kernel"].level in {"holds", "weak"}


def test_a_lower_tier_compares_what_it_does_not_know() -> None:
    """Units that the tier gave back are no candidates any more, and are true in what is looked at."""
    found = run("tier-localisation", replace(subject_of_bundle(tiered(), None, name="x"), cut=smooth("normal")))
    work = {row.series: row.work for row in found.rows}
    assert work == {"the file alone": 4096, "tier 2, half": 4096 - 205}
    assert len(found.details[TESTED]) == len(found.rows)
    units = smooth("normal").units(0)["conv.weight"].tolist()
    assert str(units[0]) + ", " + str(units[1]) not in json.dumps(found.to_json())


def test_intervals_shrink_with_the_number_of_units() -> None:
    """Around the AUC, within 0 … 1; a handful of units leaves it open whether a test tells anything."""
    low, high = auc_interval(0.65, 5, 60)
    assert low < BAR < 0.65 < high
    assert auc_interval(0.65, 500, 6000)[0] > BAR
    assert auc_interval(1.0, 5, 60) == (1.0, 1.0)


@pytest.mark.slow
def test_retraining_restores_what_was_withheld(subject: Subject) -> None:
    """From before the first step upwards, beside training from scratch; more images restore more."""
    found = run("tier-retraining", subject, steps=60)
    assert {row.series for row in found.rows} == {
        f"{title}, {target}" for title in ("the file alone", "tier 2, tier-2") for target in (ALL, LOCKED)
    }
    base = run("tier-quality", subject)
    tiers = [row.score for row in base.rows]
    for row in found.rows:
        assert row.before == tiers[0 if row.series.startswith("the file") else 2]
        assert row.best == max(score for _, score in row.curve)
        assert row.score == row.curve[-1][1]
        assert row.curve[-1][0] == row.work == 60
        assert row.beside is not None
    few, many = (next(row for row in found.rows if row.images == count) for count in (2, 130))
    assert (many.best or 0.0) > max(few.best or 0.0, (many.before or 0.0) + 0.3)
    assert [row.images for row in found.rows[:5]] == [2, 10, 13, 100, 130]
    assert "13 images (1% of the data)" in found.rows[2].label


def test_only_the_locked_layers_are_trained_when_so_said(subject: Subject) -> None:
    """The names in a patch are those of the program's weights."""
    cut = cut_of(subject)
    model = cut.model(cut.state(0))
    chosen = weights_called(model, cut.units(0))
    assert len(chosen) == len(cut.units(0)) > 0
    assert {tuple(weight.shape) for weight in chosen} == {tuple(cut.public[name].shape) for name in cut.units(0)}


@pytest.mark.slow
def test_attacks_without_steps_are_not_scored(subject: Subject) -> None:
    """Time ran out: no score, no verdict; what was cut short says so."""
    hurried = run("tier-retraining", subject, Meter(0))
    assert all(row.score is None and row.best is None and row.cut_short for row in hurried.rows)
    found = tiers_measured([_base(), hurried])
    assert found is not None
    assert found.retrained == ()
    assert tier_verdicts(found)[2].level == "not measured"
    located = run("tier-localisation", subject, Meter(0))
    assert located.rows[0].score is not None
    assert located.rows[-1].score is None


@pytest.mark.slow
def test_the_same_seed_retrains_alike(subject: Subject) -> None:
    """Every number repeats; with no lower tier only the file alone is trained."""
    budget = replace(QUICK, steps=3, lower_tiers=0)
    attack = ATTACKS["tier-retraining"].run
    first, second = (attack(subject, digits_sample(), budget, patient(), seed=1, device=CPU) for _ in range(2))
    assert first == second
    assert {row.label[:14] for row in first.rows} == {"the file alone"}


@pytest.mark.slow
def test_lower_keys_open_nothing_above(subject: Subject) -> None:
    """Every attempt on a package as it would be sealed ends in an authentication failure; right keys open it."""
    found = run("tier-keys", subject)
    for row in found.rows:
        assert row.score == (1.0 if row.label in CONTROLS else 0.0), row.label
        assert row.note == "" if row.label in CONTROLS else "refused" in row.note
    assert sum(row.work for row in found.rows if row.label not in CONTROLS) == 3 * 6 + 3 + 6
    verdict = _keys_verdict(found)
    assert (verdict.level, verdict.says[:7]) == ("holds", "0 of 27")


@pytest.mark.slow
def test_a_model_for_buyers_in_tiers_is_attacked_as_well() -> None:
    """Tier keys are tried on it without the master key and every buyer's record, which sealing it for sale takes."""
    record = CopyrightRecord("Acme", "Globex", "L-17")
    key = bound_key(buyer_input_key(InputKey(bytes(range(32))), record), record)
    bundle = replace(tiered(), transform=TransformSpec.parse_text("isnn:4:12"), input_key_ids=(input_key_id(key),))
    found = run("tier-keys", subject_of_bundle(bundle, key, name="digits", task=task()))
    assert _keys_verdict(found).level == "holds"


@pytest.fixture
def chain() -> TierKey:
    """The key of a top tier."""
    return TierKey(keys.PACKAGE_ID, TIERS, TierSecret(bytes([9]) * 32))


@pytest.mark.slow
def test_a_patch_under_the_lower_tiers_key_is_noticed(subject: Subject, chain: TierKey, tmp_path: Path) -> None:
    """Tier 3 sealed under tier 2's key opens by the reader and by the cipher, and the verdict says so."""
    careless = Careless(chain.package_id, chain.tier, chain.secret)
    patches = [tier.patch for tier in tiered().tiers]
    weak = replace(cut_of(subject), sealed=lambda: sealed_under(tmp_path, careless, careless, patches))
    found = run("tier-keys", replace(subject, cut=weak))
    opened = {row.label: round((row.score or 0.0) * row.work) for row in found.rows if row.label not in CONTROLS}
    assert opened["a lower key passed off as a higher one"] == 1
    assert opened["a lower key, past the check of the key"] == 1
    assert sum(opened.values()) == 2
    verdict = _keys_verdict(found)
    assert (verdict.level, verdict.says[:7]) == ("falls", "2 of 27")
    assert "Do not sell" in verdict.advice


@pytest.mark.slow
def test_attempts_prove_nothing_when_the_right_keys_fail(subject: Subject, chain: TierKey, tmp_path: Path) -> None:
    """With another key for the vendor's own, everything is refused, which is no success of the cipher."""
    patches = [tier.patch for tier in tiered().tiers]
    other = TierKey(chain.package_id, chain.tier, TierSecret(bytes(32)))
    odd = replace(cut_of(subject), sealed=lambda: sealed_under(tmp_path, chain, other, patches))
    assert _keys_verdict(run("tier-keys", replace(subject, cut=odd))).level == "not measured"


@pytest.mark.slow
def test_a_segmentation_in_tiers_is_attacked_as_well(tmp_path: Path) -> None:
    """Every attack of the family runs on it, scores are mean IoU, and the floor is that of pixels."""
    images = digits_sample().held_out.images[:120]
    field = SegmentationDataset(images, (images[:, 0] > 100).to(torch.uint8), 2, None)
    half = SegmentationDataset(field.images[:60], field.labels[:60], 2, None)
    model = PixelModel(nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 1)), (0.3,), (0.35,))
    plan = Settings(budget=0.5, fractions=(0.0, 0.5, 1.0), batches=2, layers=("network.0",))
    bundle = encrypt_bundle(bundle_of_module(model.eval(), (1, 8, 8)), Split(half, half), plan).bundle
    report = audit(
        subject_of_bundle(bundle, None, name="field"), Sample(half, field, "by hand"), replace(QUICK, steps=4)
    )
    assert report.sample.metric == "mean_iou"
    assert [result.name for result in report.results] == FAMILY
    assert all(result.rows and not result.skipped for result in report.results)
    write_report(report, tmp_path)
    assert METRIC_WORDS["mean_iou"] in (tmp_path / "report.html").read_text(encoding="utf-8")


def _base() -> AttackResult:
    """Return what tiers answer, as if measured."""
    rows = tuple(Row(label="", score=score, images=0, work=1, unit="tier") for score in (0.1, 0.5, 0.9))
    return AttackResult(name="tier-quality", rows=rows, details={"chance": 0.1})


def _keys_verdict(found: AttackResult) -> Verdict:
    told = tiers_measured([_base(), found])
    assert told is not None
    return tier_verdicts(told)[3]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], str]:
    """The report of a model with an input key and tiers, every attack of both families in a hurry."""
    bundle = tiered("np:4")
    subject = subject_of_bundle(bundle, keys.INPUT_KEY, name="both", task=task())
    assert subject.protections == {"keyed-input", "tiers"}
    report = audit(subject, digits_sample(), replace(QUICK, steps=3))
    folder = tmp_path_factory.mktemp("both")
    write_report(report, folder)
    return json.loads((folder / "report.json").read_bytes()), (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_model_with_both_protections_gets_both_families(both: tuple[dict[str, object], str]) -> None:
    """All attacks are in both files, with verdicts on A0 to A4 and T0 to T3 and what each tier answers."""
    found, page = both
    attacks = found["attacks"]
    assert isinstance(attacks, list)
    assert [entry["name"] for entry in attacks] == list(ATTACKS)
    verdicts = found["verdicts"]
    assert isinstance(verdicts, list)
    assert [entry["attacker"] for entry in verdicts] == ["A0", "A1", "A2", "A3", "A4", "T0", "T1", "T2", "T3"]
    assert (found["protection"], found["transform"], found["tiers"]) == (
        "keyed-input, tiers", "np:4", ["tier-1", "tier-2", "full"],
    )  # fmt: skip
    for text in ("AUC", "0 of 6", "best", "the file alone, no tier key", "Finding the encrypted weights", "3 tiers"):
        assert text in page
    assert page.count("data:image/png") >= 6


@pytest.mark.slow
def test_the_family_alone_for_a_model_of_plain_inputs(subject: Subject) -> None:
    """No keyed attack is run or shown, and an attack that was asked for and does not fit says why."""
    report = audit(subject, digits_sample(), replace(QUICK, steps=2))
    assert [result.name for result in report.results] == FAMILY
    assert [verdict.attacker for verdict in report.verdicts] == ["T0", "T1", "T2", "T3"]
    assert report.to_json()["transform"] is None
    asked = audit(subject, digits_sample(), QUICK, attacks=["no-key"])
    assert "protected by keyed-input" in asked.results[0].skipped
