"""One audit as a whole: what it refuses, how it keeps to its time, and what a byte model and a segmentation change."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support import keys
from support.audits import CPU, SMALL, patient, sample, subject
from tessera.keystore.errors import ApiMisuse, NotFound
from tessera.protect import ArrayDataset, ByteModel, SegmentationDataset
from tessera.protect.audit import BUDGETS, Lock, Meter, Sample, Subject, audit, budget
from tessera.protect.audit.adapters import lets_gradients_out
from tessera.protect.audit.adapters import run as run_adapter
from tessera.protect.audit.measure import chance
from tessera.protect.locking import block_map
from tessera.protect.models import ValueStem
from tessera.transforms import TransformSpec

TINY = replace(SMALL, wrong_keys=3, random_keys=6, search_images=10, evaluations=12, steps=3)


def test_the_same_seed_repeats_an_audit_and_leaves_torch_alone() -> None:
    """All numbers are equal; the generator and the number of threads are as before."""
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    first, second = (audit(subject("shf:2,np:2"), sample(), TINY, seed=4) for _ in range(2))
    assert [result.rows for result in first.results] == [result.rows for result in second.results]
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads
    other = audit(subject("shf:2,np:2"), sample(), TINY, seed=5)
    assert [result.rows for result in first.results] != [result.rows for result in other.results]


def test_no_more_images_judge_than_the_budget_says() -> None:
    """And the report says how many that were."""
    report = audit(subject("np:2"), sample(), replace(TINY, held_out=50), attacks=["no-key"])
    assert report.to_json()["sample"] == {
        "source": "made by hand", "attacker_images": 1000, "held_out_images": 50,
    }  # fmt: skip


def test_images_and_labels_of_another_model_are_refused() -> None:
    """The shape and the number of classes are named."""
    wide = ArrayDataset(torch.zeros((30, 1, 8, 16), dtype=torch.uint8), torch.zeros(30, dtype=torch.int64))
    with pytest.raises(ApiMisuse, match=r"images of \(1, 8, 16\), and the model takes \(1, 8, 8\)"):
        audit(subject("np:2"), Sample(wide, wide, "wide.npz"), TINY)
    many = ArrayDataset(torch.zeros((30, 1, 8, 8), dtype=torch.uint8), torch.arange(30))
    with pytest.raises(ApiMisuse, match="labels up to 29, and the model has 4 classes"):
        audit(subject("np:2"), Sample(many, many, "many.npz"), TINY)
    with pytest.raises(ApiMisuse, match="of one kind and shape"):
        Sample(wide, many, "both")


@pytest.mark.parametrize("minutes", [0, -1, 1e9, float("nan"), float("inf")])
def test_a_time_outside_its_range_is_refused(minutes: float) -> None:
    """The message has the number and the range."""
    with pytest.raises(ApiMisuse, match="more than 0 and at most"):
        budget("quick", minutes)


def test_an_unknown_budget_is_refused_with_those_there_are() -> None:
    """No budget is taken for another."""
    with pytest.raises(NotFound, match="no budget 'lavish'") as caught:
        budget("lavish")
    assert all(name in caught.value.remedy for name in BUDGETS)
    with pytest.raises(ApiMisuse, match="at least 1"):
        replace(TINY, steps=0)


def test_a_meter_shares_out_what_is_left() -> None:
    """Parts end one after the other at their share of the time, and what they do counts for the whole."""
    now = [100.0]
    told: list[tuple[int, int]] = []
    meter = Meter(60, lambda done, total: told.append((done, total)), clock=lambda: now[0])
    meter.expect(4)
    first = meter.part(3)
    now[0] += 19
    assert not first.over
    now[0] += 2
    assert first.over
    assert not meter.over
    second = meter.part(1)
    second.did(3)
    now[0] += 38
    assert not second.over
    now[0] += 2
    assert second.over
    assert meter.over
    assert meter.seconds == 61
    assert told == [(0, 4), (3, 4)]


def test_the_floor_is_what_always_saying_the_commonest_class_reaches() -> None:
    """Of labels that are not balanced it lies above one over the number of classes; of pixels it is a mean IoU."""
    images = torch.zeros((10, 1, 8, 8), dtype=torch.uint8)
    uneven = ArrayDataset(images, torch.tensor([0] * 7 + [1, 2, 3]))
    assert chance(uneven, uneven) == pytest.approx(0.7)
    assert chance(sample().attacker, sample().held_out) >= 0.25
    pixels = torch.zeros((10, 8, 8), dtype=torch.uint8)
    pixels[:, :4] = 1
    pixels[:, :2] = 9
    field = SegmentationDataset(images, pixels, 3, 9)
    # Class 0 has 32 counted pixels of an image and class 1 has 16: always saying 0 gives IoU 32/48 and 0.
    assert chance(field, field) == pytest.approx((32 / 48) / 2)


def byte_subject(text: str) -> Subject:
    """Return a model that looks its bytes up in a table, undoing the spec `text`; np and ffx only."""
    spec = TransformSpec.parse_text(text)

    def victim() -> nn.Module:
        stem = ValueStem(4, (0.5,), (0.5,))
        places = torch.from_numpy(block_map(spec, keys.INPUT_KEY, 1, 4).values.astype(np.int64))
        with torch.no_grad():
            stem.table.copy_(torch.empty_like(stem.table).scatter_(1, places, stem.table))
        inner = subject("np:2").victim()
        assert isinstance(inner.network, nn.Sequential)
        return ByteModel(stem, inner.network[1]).eval()

    return replace(subject("np:4"), name="bytes", victim=victim, lock=Lock(spec, keys.INPUT_KEY))


@pytest.mark.slow
@pytest.mark.parametrize("text", ["np:4", "ffx:4"])
def test_a_model_that_looks_bytes_up_has_its_table_learned_anew(text: str) -> None:
    """No gradient reaches its pixels, so the attacker trains the first layer, and says so."""
    model = byte_subject(text).victim()
    assert not lets_gradients_out(model, sample().attacker.images)
    assert lets_gradients_out(subject("np:4").victim(), sample().attacker.images)
    found = run_adapter(byte_subject(text), sample(), SMALL, patient(), seed=0, device=CPU)
    assert "looks bytes up" in found.details["adapter"]
    scores = [row.score or 0.0 for row in found.rows]
    plain = audit(byte_subject(text), sample(), TINY, attacks=["no-key"]).results[0].rows[1].score or 0.0
    assert scores[2] > max(plain, scores[0])


class Brightness(nn.Module):
    """A segmentation that is keyed by inversion of all pixels that its lock says: dark and bright are its classes."""

    def __init__(self, lock: nn.Module) -> None:
        super().__init__()
        self.lock = lock
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, image: Tensor) -> Tensor:
        """Return two logits for each pixel."""
        shade = self.lock(image.float() / 127.5 - 1.0)[:, :1] * self.scale
        return torch.cat([-shade, shade], dim=1)


@pytest.mark.slow
def test_a_segmentation_is_attacked_by_mean_intersection_over_union() -> None:
    """Every attack runs on it, the mask is found from a few images, and the report names the measure."""
    base = subject("np:2")
    images = sample().held_out.images
    labels = (images[:, 0] >= 128).to(torch.uint8)
    labels[:, 0, 0] = 255
    field = SegmentationDataset(images, labels, 2, 255)

    def victim() -> nn.Module:
        inner = base.victim()
        assert isinstance(inner.network, nn.Sequential)
        return Brightness(inner.network[0]).eval()

    dense = replace(base, kind="segmentation", classes=2, victim=victim, fresh=lambda _seed: victim())
    report = audit(dense, Sample(field, field, "by hand"), replace(TINY, evaluations=200))
    assert report.sample.metric == "mean_iou"
    found = {result.name: result for result in report.results}
    assert found["no-key"].rows[0].score == 1.0
    assert found["mask-search"].rows[0].score == 1.0
    assert found["known-pairs"].best == 1.0
    assert len(report.verdicts) == 5
    assert all(row.score is None or 0 <= row.score <= 1 for result in report.results for row in result.rows)
