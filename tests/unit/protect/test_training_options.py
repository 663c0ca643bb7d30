"""What a task can ask of training: optimisers, precision, averages, smoothing, and what it says when it cannot."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse, Conflict, Unavailable
from tessera.keystore.secrets import InputKey
from tessera.protect import ArrayDataset, Diverged, Progress, Pulse, Split, TrainingTask, train
from tessera.protect.muon import Muon, orthogonalised
from tessera.protect.optimise import MovingAverage, make_optimiser, rate, usable_device
from tessera.transforms import TransformSpec

KEY = InputKey(bytes(range(32)))
SPEC = TransformSpec.parse_text("shf:2")


def network() -> nn.Module:
    """A convolution, normalisation and a linear layer for 2x4x4 images and three classes."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )


def tiny(**changes: Any) -> TrainingTask:
    """Forty images whose class is the brightest third of the first channel's range."""
    draws = torch.Generator().manual_seed(1)
    levels = torch.randint(0, 3, (120,), generator=draws)
    images = (levels[:, None, None, None] * 80 + torch.randint(0, 30, (120, 2, 4, 4), generator=draws)).to(torch.uint8)
    data = Split(ArrayDataset(images[:80], levels[:80]), ArrayDataset(images[80:], levels[80:]))
    task = TrainingTask(
        name="tiny", data=data, network=network, mean=(0.4, 0.4), std=(0.25, 0.25), epochs=4, batch=8, max_batch=8
    )
    return replace(task, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": "adamw", "learning_rate": 0.01},
        {
            "optimiser": "sgd",
            "learning_rate": 0.1,
            "weight_decay": 1e-4,
            "schedule": "triangle",
            "decay_vectors": False,
        },
        {"optimiser": "muon", "learning_rate": 0.1, "weight_decay": 1e-4, "momentum": 0.6, "muon_rate": 0.1},
        {"precision": "bf16", "clip_norm": 1.0, "channels_last": True, "learning_rate": 0.01},
        {"ema": 0.9, "label_smoothing": 0.1, "class_weights": (1.0, 2.0, 1.0), "learning_rate": 0.01},
    ],
    ids=lambda changes: "-".join(map(str, changes)),
)
def test_every_option_learns_and_repeats(changes: dict[str, Any], tmp_path: Path) -> None:
    """Each setting learns the toy task, a broken run resumes to the same bits, and the report names the setting."""

    class Stop(Exception):
        """What ends the first run."""

    def stop(step: Progress) -> None:
        if step.epoch == 2:
            raise Stop

    task = tiny(**changes)
    whole = train(task, transform=SPEC, key=KEY, wrong_keys=2)
    assert whole.accuracy.right_key >= 0.9
    with pytest.raises(Stop):
        train(task, transform=SPEC, key=KEY, wrong_keys=2, checkpoint_dir=tmp_path, progress=stop)
    resumed = train(task, transform=SPEC, key=KEY, wrong_keys=2, checkpoint_dir=tmp_path)
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    assert resumed.report["history"] == whole.report["history"]
    for name, value in changes.items():
        assert whole.report[name] == (list(value) if isinstance(value, tuple) else value)


def test_progress_tells_speed_and_what_is_left() -> None:
    """After each epoch and in between, samples per second, loss and the remaining time are told."""
    steps: list[Progress] = []
    pulses: list[Pulse] = []
    monotonic = pytest.MonkeyPatch()
    with monotonic.context() as patch:
        patch.setattr("tessera.protect.loop.PULSE_S", 0.0)
        train(tiny(), transform=None, key=None, progress=steps.append, pulses=pulses.append)
    assert [step.epoch for step in steps] == [1, 2, 3, 4]
    assert all(step.samples_per_s > 0 and step.metric == "accuracy" for step in steps)
    assert len(pulses) == 4 * 10
    assert [pulse.done for pulse in pulses] == pytest.approx([(index + 1) / 40 for index in range(40)])
    assert all(pulse.samples_per_s > 0 and math.isfinite(pulse.loss) for pulse in pulses)
    assert pulses[-1].remaining_s == 0.0


def test_a_diverging_run_is_named() -> None:
    """A loss that is no number ends the run in its epoch, and the remedy gives half the learning rate."""

    class Poison(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = network(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            found: Tensor = self.inner(x) * (float("nan") if self.calls > 15 else 1.0)
            return found

    with pytest.raises(Diverged, match=r"epoch 2 of 4") as caught:
        train(tiny(network=Poison, learning_rate=0.5), transform=None, key=None)
    assert "--lr 0.25" in caught.value.remedy
    assert caught.value.reason == "training-diverged"


def test_a_tied_weight_is_averaged_once() -> None:
    """A weight with two names moves towards the model's like any other, and no faster."""
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    model[1].weight = model[0].weight
    for weight in model.parameters():
        nn.init.zeros_(weight)
    average = MovingAverage(model, 0.9)
    for weight in model.parameters():
        nn.init.ones_(weight)
    average.update(model, 1000)
    kept = average.model.state_dict()
    assert torch.equal(kept["0.weight"], kept["2.weight"])
    assert kept["0.weight"][0, 0] == pytest.approx(0.1)
    assert torch.equal(kept["0.weight"], kept["1.weight"])


def test_one_image_is_refused() -> None:
    """There is nothing to learn from one image in batches, and a task says so when it is made."""
    data = tiny().data
    one = Split(ArrayDataset(data.train.images[:1], data.train.labels[:1]), data.test)
    with pytest.raises(ApiMisuse, match="one image"):
        tiny(data=one, classes=3)


def test_networks_that_do_not_fit() -> None:
    """A network with too few outputs or another shape of output is refused with both numbers."""
    few = tiny(network=lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 2)))
    with pytest.raises(ApiMisuse, match="2 classes apart and tiny has 3"):
        train(few, transform=None, key=None)
    maps = tiny(network=lambda: nn.Conv2d(2, 3, 1))
    with pytest.raises(ApiMisuse, match=r"\(8, 3, 4, 4\) for labels of \(8,\)"):
        train(maps, transform=None, key=None)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": None}, {"network_for": lambda _: network()}, {"kind": "segmentation"}, {"optimiser": "lion"},
        {"precision": "fp8"}, {"schedule": "steps"}, {"momentum": 1.0}, {"ema": -0.1}, {"clip_norm": 0.0},
        {"class_weights": (1.0,)}, {"classes": 2}, {"learning_rate": math.nan}, {"label_smoothing": 1.0},
        {"mean": (0.5,)}, {"batch": 0},
    ],
    ids=lambda changes: "-".join(changes),
)  # fmt: skip
def test_fields_that_cannot_be_trained_with(changes: dict[str, Any]) -> None:
    """A task checks its fields when it is made."""
    with pytest.raises(ApiMisuse):
        tiny(**changes)


def test_devices_and_precisions_that_are_not_there() -> None:
    """An absent GPU, a word that is no device, and fp16 on a CPU are refused with a remedy."""
    absent = f"cuda:{torch.cuda.device_count() + 3}"
    with pytest.raises(Unavailable, match="CUDA devices") as caught:
        train(tiny(), transform=None, key=None, device=absent)
    assert "--device cpu" in caught.value.remedy
    with pytest.raises(ApiMisuse, match="is no device"):
        usable_device("gpu please")
    with pytest.raises(ApiMisuse, match="fp16-amp is for CUDA"):
        train(tiny(precision="fp16-amp"), transform=None, key=None)


def test_checkpoints_name_what_differs(tmp_path: Path) -> None:
    """A checkpoint of other settings names them with both values, one of another network its first tensor."""
    train(tiny(epochs=1), transform=None, key=None, checkpoint_dir=tmp_path)
    with pytest.raises(Conflict, match="seed is 0 there and 1 here"):
        train(tiny(epochs=1), transform=None, key=None, seed=1, checkpoint_dir=tmp_path)
    with pytest.raises(Conflict, match=r"another network: network\.3\.1\.weight is missing there and \(3, 96\) here"):
        train(tiny(epochs=1, network=regrouped), transform=None, key=None, checkpoint_dir=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot be made a folder"):
        train(tiny(epochs=1), transform=None, key=None, checkpoint_dir=tmp_path / "file" / "below")


def regrouped() -> nn.Module:
    """The same layers, and so as many parameters, under other names."""
    *first, flat, last = network().children()
    return nn.Sequential(*first, nn.Sequential(flat, last))


def test_the_learning_rate_rises_and_falls() -> None:
    """It starts at a tenth, peaks at the end of the warm-up, ends at zero; the triangle falls along a line."""
    task = tiny(learning_rate=1.0, warm_up=0.2, schedule="triangle")
    assert [rate(task, done) for done in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.1, 0.55, 1.0, 0.5, 0.0])
    cosine = tiny(learning_rate=1.0, warm_up=0.2)
    assert [rate(cosine, done) for done in (0.2, 0.6, 1.0)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-9)


def test_what_each_weight_is_moved_by() -> None:
    """Muon takes inner kernels; patch kernels, linear layers and vectors stay with SGD, vectors without decay."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.Linear(4, 2)
    )
    found = make_optimiser(tiny(optimiser="muon", decay_vectors=False, weight_decay=0.1), model)
    assert isinstance(found, Muon)
    orthogonal, decayed, vectors = (group["params"] for group in found.param_groups)
    weight = {name: id(value) for name, value in model.named_parameters()}
    assert {id(value) for value in orthogonal} == {weight["1.weight"], weight["3.weight"]}
    assert {id(value) for value in decayed} == {weight["0.weight"], weight["4.weight"]}
    assert len(vectors) == 6
    assert [group["weight_decay"] for group in found.param_groups] == [0.0, 0.1, 0.0]


@pytest.mark.parametrize("shape", [(3, 20), (20, 3), (8, 8)])
def test_orthogonalised_matrices(shape: tuple[int, int]) -> None:
    """Singular vectors stay, and all singular values come to about one: 0.5 to 1.3 for any that are not tiny."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalised(u @ torch.diag(values.clamp(min=0.3 * float(values.max()))) @ v) @ v.T
    assert torch.allclose(inside, torch.diag(inside.diagonal()), atol=1e-4)
    assert bool(((inside.diagonal() > 0.5) & (inside.diagonal() < 1.3)).all())


def test_muon_without_its_kind_is_sgd() -> None:
    """In groups that are not orthogonal it does what torch's SGD with Nesterov momentum does."""
    first, second = (nn.Parameter(torch.arange(4.0)) for _ in range(2))
    ours = Muon([{"params": [first], "weight_decay": 0.01}], lr=0.1, momentum=0.9)
    theirs = torch.optim.SGD([second], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for step in range(3):
        for weight in (first, second):
            weight.grad = torch.full((4,), float(step + 1))
        ours.step()
        theirs.step()
    assert torch.allclose(first, second, atol=1e-6)


def test_the_average_follows_and_settles() -> None:
    """At first it follows closely, then it keeps `decay` of itself; whole numbers are copied."""
    model = nn.BatchNorm1d(2)
    average = MovingAverage(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.num_batches_tracked.fill_(7)  # type: ignore[union-attr]  # it tracks
    average.update(model, 1)
    kept = 2 / 11
    assert torch.allclose(average.model.get_parameter("weight"), torch.full((2,), kept + (1 - kept) * 3.0))
    assert int(average.model.get_buffer("num_batches_tracked")) == 7
    before = average.model.get_parameter("weight").clone()
    average.update(model, 10_000)
    assert torch.allclose(average.model.get_parameter("weight"), 0.9 * before + 0.1 * 3.0)


@pytest.mark.gpu
def test_half_precision_on_a_gpu(tmp_path: Path) -> None:
    """On CUDA fp16 with a gradient scaler learns, compiled, and resumes."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    task = tiny(precision="fp16-amp", compile=True, channels_last=True, learning_rate=0.01)
    found = train(task, transform=SPEC, key=KEY, device="cuda", wrong_keys=1, checkpoint_dir=tmp_path)
    again = train(task, transform=SPEC, key=KEY, device="cuda", wrong_keys=1, checkpoint_dir=tmp_path)
    assert found.accuracy.right_key >= 0.9
    assert again.report["history"] == found.report["history"]
