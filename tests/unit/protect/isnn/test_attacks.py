"""What thieves do to an input-sensitive network: each attack runs and says what it reached."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tessera.keystore.errors import ApiMisuse, WrongKey
from tessera.keystore.secrets import InputKey
from tessera.protect import Trained, TrainingTask, bundle_of
from tessera.protect.audit import Budget, audit, split_sample, subject_of_bundle, subject_of_module, write_report
from tessera.protect.audit.pattern_pairs import Substitute
from tessera.protect.evaluate import evaluation_keys
from tessera.transforms import Transform, TransformSpec

SMALL = Budget(
    name="small", minutes=5, held_out=200, wrong_keys=10, random_keys=10, search_images=40, evaluations=10, steps=60
)


@pytest.mark.slow
def test_the_audit_of_an_input_sensitive_network(
    trained: Trained, task: TrainingTask, key: InputKey, tmp_path: Path
) -> None:
    """The fixed form falls to one pair of images and to averaging; the report has a row for every attack."""
    subject = subject_of_module(trained.model, key, TransformSpec.parse_text("isnn:8:32"), task, name="digits")
    report = audit(subject, split_sample(task.data.test, "the test set", seed=0), SMALL)
    found = {result.name: result for result in report.results if not result.skipped}
    assert set(found) == {
        "no-key", "near-keys", "adapter", "fine-tuning", "inversion", "averaging", "pattern-pairs", "pruning",
        "ambiguity",
    }  # fmt: skip
    right, plain = (found["no-key"].rows[at].score for at in (0, 1))
    assert right is not None
    assert plain is not None
    assert right > 0.9 > plain + 0.3
    assert found["averaging"].rows[0].score == pytest.approx(right, abs=0.05)
    paired = found["pattern-pairs"].rows[0].score
    assert paired is not None
    assert paired > plain + 0.3
    inverted = [row.score for row in found["inversion"].rows if row.score is not None]
    assert max(inverted) > plain + 0.1
    assert found["ambiguity"].details["nearest_share_of_signs"] < 0.8
    assert {verdict.attacker: verdict.level for verdict in report.verdicts}["A4"] == "falls"
    write_report(report, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Averaging away what images show" in page
    assert key.reveal().hex() not in page


@pytest.mark.parametrize("text", ["isnn:4:12", "isnn:4:12:content"])
def test_pairs_give_the_transform_away(text: str) -> None:
    """From a hundred images before and after, a regression gives nearly all values of others right, in either form."""
    lock = Transform(TransformSpec.parse_text(text), evaluation_keys(1, 3)[0], 1, 16, 16)
    smooth = torch.nn.functional.interpolate(
        torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 200 + 28, size=(16, 16), mode="bilinear"
    ).to(torch.uint8)
    sent = torch.from_numpy(lock(smooth.numpy()))
    substitute = Substitute(smooth[:100], sent[:100], 4, 12)
    assert (substitute(smooth[100:]) == sent[100:]).double().mean() > 0.95


@pytest.mark.slow
def test_a_bundle_is_audited_with_a_bound_key(trained: Trained, task: TrainingTask, key: InputKey) -> None:
    """The bundle's ids are those of bound keys; another key and none are refused."""
    bundle = bundle_of(trained)
    assert subject_of_bundle(bundle, key, name="digits", task=task).key is key
    with pytest.raises(WrongKey, match="not the one"):
        subject_of_bundle(bundle, evaluation_keys(1, 5)[0], name="digits", task=task)
    with pytest.raises(ApiMisuse, match="without it"):
        subject_of_bundle(bundle, None, name="digits", task=task)
    with pytest.raises(ApiMisuse):
        dataclasses.replace(subject_of_bundle(bundle, key, name="digits", task=task), classes=1)
