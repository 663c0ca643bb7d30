"""Training input-sensitive networks, and saying whose key opens one."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tessera.keystore.errors import ApiMisuse, Conflict
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.protect import Progress, Split, Trained, TrainingTask
from tessera.protect.data import ArrayDataset
from tessera.protect.evaluate import evaluation_keys
from tessera.protect.isnn import IsnnSettings, default_spec, measure, trace, train_isnn
from tessera.transforms import TransformError, TransformSpec


@pytest.mark.slow
def test_it_answers_its_buyer_only(trained: Trained, key: InputKey) -> None:
    """Legal inputs are answered right; clean ones, wrong keys and a wrong record much less; the report says so."""
    found = trained.report["measured"]
    assert found["legal"] > 0.9
    assert found["clean"] < 0.4
    assert found["wrong_key"] < 0.6
    assert found["wrong_record"] < 0.7
    assert found["near"]["0.01"] > found["near"]["0.5"] + 0.2
    assert trained.input_key_ids == (input_key_id(key),)
    assert trained.input_key_id is None
    assert trained.report["isnn"]["target"] == "uniform"
    assert key.reveal().hex() not in json.dumps(trained.report)


@pytest.mark.slow
def test_fine_tuning_begins_at_the_given_weights(trained: Trained, task: TrainingTask, key: InputKey) -> None:
    """A fine-tune that hardly moves answers as the weights it began with; weights of another network are refused."""
    weights = trained.model.state_dict()
    still = dataclasses.replace(task, epochs=1, learning_rate=1e-7)
    again = train_isnn(still, transform=trained.transform or TransformSpec(()), keys=[key], start=weights, wrong_keys=2)
    assert again.accuracy.right_key > 0.85
    assert again.report["fine_tuned"] is True
    with pytest.raises(Conflict, match="another network"):
        train_isnn(still, transform=TransformSpec.parse_text("isnn:8:32"), keys=[key], start={"other": torch.zeros(1)})


@pytest.mark.slow
@pytest.mark.parametrize("target", ["wrong-class", "random-label"])
def test_other_illegal_targets(task: TrainingTask, target: str) -> None:
    """Every target trains, by content and for several buyers too, and the same seed gives the same weights."""
    short = dataclasses.replace(task, epochs=1)
    settings = IsnnSettings(target=target, wrong_class=3)  # type: ignore[arg-type]
    made = [
        train_isnn(
            short, transform=TransformSpec.parse_text("isnn:4:24:content"), keys=evaluation_keys(3, 8),
            settings=settings, wrong_keys=1,
        )
        for _ in range(2)
    ]  # fmt: skip
    first, second = (one.model.state_dict() for one in made)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(made[0].input_key_ids) == 3
    assert made[0].report["measured"]["buyers"] == 3


def test_a_broken_run_goes_on(task: TrainingTask, key: InputKey, tmp_path: Path) -> None:
    """By content an adversary trains beside the model; a resumed run ends with the bits of one without a break."""

    class Stop(Exception):
        """What ends the first run."""

    def stop(step: Progress) -> None:
        if step.epoch == 1:
            raise Stop

    def run(checkpoints: Path | None, watcher: Callable[[Progress], None] | None = None) -> Trained:
        return train_isnn(
            short, transform=TransformSpec.parse_text("isnn:4:24:content"), keys=[key],
            settings=IsnnSettings(), wrong_keys=1, checkpoint_dir=checkpoints, progress=watcher,
        )  # fmt: skip

    train_part = task.data.train
    assert isinstance(train_part, ArrayDataset)
    few = Split(ArrayDataset(train_part.images[:128], train_part.labels[:128]), task.data.test)
    short = dataclasses.replace(task, epochs=2, data=few, classes=10)
    whole = run(None).model.state_dict()
    with pytest.raises(Stop):
        run(tmp_path, stop)
    resumed = run(tmp_path).model.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_fine_tune_goes_on_from_its_own_start_only(task: TrainingTask, key: InputKey, tmp_path: Path) -> None:
    """Its start is also its teacher, so a run with another start is another run."""
    few = dataclasses.replace(task, epochs=1, learning_rate=1e-4)
    spec = TransformSpec.parse_text("isnn:8:32")
    torch.manual_seed(0)
    start, other = (task.model(None).state_dict() for _ in range(2))
    train_isnn(few, transform=spec, keys=[key], start=start, wrong_keys=1, checkpoint_dir=tmp_path)
    with pytest.raises(Conflict, match="start_sha256"):
        train_isnn(few, transform=spec, keys=[key], start=other, wrong_keys=1, checkpoint_dir=tmp_path)


def test_settings_are_checked(task: TrainingTask, key: InputKey) -> None:
    """What cannot be asked is refused before anything is trained."""
    bad = [{"target": "other"}, {"illegal_share": 0.0}, {"illegal_share": 1.0}, {"weight": 0.0}, {"wrong_class": -1}]
    for fields in bad:
        with pytest.raises(ApiMisuse):
            IsnnSettings(**fields)  # type: ignore[arg-type]
    spec = TransformSpec.parse_text("isnn:8:32")
    with pytest.raises(ApiMisuse, match="no class 10"):
        train_isnn(task, transform=spec, keys=[key], settings=IsnnSettings(target="wrong-class", wrong_class=10))
    with pytest.raises(TransformError):
        train_isnn(task, transform=TransformSpec.parse_text("shf:4"), keys=[key])
    with pytest.raises(TransformError):
        train_isnn(task, transform=TransformSpec.parse_text("isnn:5:32"), keys=[key])


def test_advised_settings() -> None:
    """Turns are asked for where they can be learned; whatever else is wanted stays."""
    strict, shape = IsnnSettings(), (3, 32, 32)
    assert IsnnSettings.advised(TransformSpec.parse_text("isnn:8:12:content"), shape) == strict
    for text in ("isnn:8:12", "isnn:16:12:content"):
        gentle = IsnnSettings.advised(TransformSpec.parse_text(text), shape, target="wrong-class", wrong_class=4)
        assert (gentle.target, gentle.wrong_class) == ("wrong-class", 4)
        assert gentle.weight < strict.weight
        assert gentle.mixture.shares["misplaced"] < strict.mixture.shares["misplaced"]
    with pytest.raises(ApiMisuse):
        IsnnSettings.advised(TransformSpec.parse_text("isnn:8:12"), shape, weight=0.0)


def test_default_specs() -> None:
    """The advised spec fits the image, and there is none where no even block does."""
    assert str(default_spec((3, 32, 32))) == "isnn:8:12:content"
    assert str(default_spec((1, 28, 28))) == "isnn:14:12:content"
    assert default_spec((1, 27, 27)) is None


@pytest.mark.slow
def test_a_trace_names_the_buyer_and_no_stranger(trained: Trained, task: TrainingTask, key: InputKey) -> None:
    """The buyer comes first and is beyond doubt; a stranger's key and an unlocked model name nobody."""
    held = task.data.test
    assert isinstance(held, ArrayDataset)
    buyers = {"Globex": key, "Initech": evaluation_keys(1, 77)[0], "Umbrella": evaluation_keys(1, 78)[0]}
    found = trace(trained.model, held, TransformSpec.parse_text("isnn:8:32"), buyers, null_keys=40)
    assert found.suspects[0].name == "Globex"
    assert [one.name for one in found.named] == ["Globex"]
    assert found.suspects[0].p_value < 1e-3 < found.suspects[1].p_value
    assert found.to_json()["suspects"][0]["named"] is True
    with pytest.raises(ApiMisuse):
        trace(trained.model, held, TransformSpec.parse_text("isnn:8:32"), {})


@pytest.mark.slow
def test_measuring_for_several_buyers(trained: Trained, task: TrainingTask, key: InputKey) -> None:
    """Each buyer has a value of their own: here one is trained for and the other is not."""
    keys = [key, evaluation_keys(1, 77)[0]]
    found = measure(trained.model, task.data.test, TransformSpec.parse_text("isnn:8:32"), keys, near_shares=())
    assert found.legal[0] > 0.9 > found.legal[1]
    assert found.mean_legal == pytest.approx(sum(found.legal) / 2)
