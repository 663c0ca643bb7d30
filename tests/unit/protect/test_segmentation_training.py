"""Segmentation: labels of pixels, the ignored one, mean intersection over union, and a bundle of maps."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.protect import SegmentationDataset, Split, TrainingTask, bundle_of, draw_curves, train
from tessera.protect.augment import paired_shift_and_flip
from tessera.protect.evaluate import evaluate, mean_iou, score
from tessera.transforms import TransformSpec

KEY = InputKey(bytes(range(32)))
SPEC = TransformSpec.parse_text("np:2")
CPU = torch.device("cpu")


def shapes(count: int, seed: int) -> SegmentationDataset:
    """Dark pictures with a bright stripe, whose pixels are class 1; the first column is ignored."""
    draws = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, 1, 8, 8), dtype=torch.uint8, generator=draws)
    labels = torch.zeros(count, 8, 8, dtype=torch.uint8)
    for index, row in enumerate(torch.randint(0, 7, (count,), generator=draws).tolist()):
        images[index, 0, row : row + 2] += 150
        labels[index, row : row + 2] = 1
    labels[:, :, 0] = 9
    return SegmentationDataset(images, labels, 2, 9)


def stripes_task(**changes: Any) -> TrainingTask:
    """A task of stripes for a network of two convolutions."""
    fields: dict[str, Any] = {
        "name": "stripes", "data": Split(shapes(48, 1), shapes(16, 2)), "kind": "segmentation", "epochs": 8,
        "network": lambda: nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)),
        "mean": (0.3,), "std": (0.3,), "batch": 8, "learning_rate": 0.05, "max_batch": 4,
        "augment": paired_shift_and_flip(1, fill_label=9),
    }  # fmt: skip
    return TrainingTask(**{**fields, **changes})


def test_a_segmentation_trains_seals_and_draws() -> None:
    """It learns, its measures are mean IoU, its output in the bundle is a map of logits for any batch."""
    found = train(stripes_task(), transform=SPEC, key=KEY, wrong_keys=2)
    assert found.accuracy.metric == "mean_iou"
    assert found.accuracy.right_key > 0.8
    assert found.report["mean_iou"]["right_key"] == round(found.accuracy.right_key, 4)
    assert {"loss", "train_accuracy", "test_mean_iou"} == found.report["history"][0].keys()
    bundle = bundle_of(found)
    assert bundle.outputs[0].shape == (-1, 2, 8, 8)
    assert bundle.quality["mean_iou_right_key"] == round(found.accuracy.right_key, 4)
    assert {"mean_iou_wrong_key", "mean_iou_plain"} <= bundle.quality.keys()
    assert draw_curves(found.report).startswith(b"\x89PNG")


class Fixed(nn.Module):
    """Answers every picture with given maps of classes."""

    def __init__(self, classes: Tensor, count: int) -> None:
        super().__init__()
        self.answer = nn.functional.one_hot(classes.long(), count).movedim(-1, 1).float()

    def forward(self, _image: Tensor) -> Tensor:
        """Return the logits."""
        return self.answer


def test_mean_iou_by_hand() -> None:
    """Over the whole set, without ignored pixels, over classes that occur; an answer of no class is wrong."""
    labels = torch.tensor([[[0, 0], [1, 9]], [[0, 1], [1, 1]]], dtype=torch.uint8)
    answers = torch.tensor([[[0, 1], [1, 0]], [[0, 1], [3, 0]]])
    data = SegmentationDataset(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), labels, 3, 9)
    # class 0: 2 right of 3 labelled, 3 answered (one at a 1, none at the ignored pixel); class 1: 2 of 4, 3 answered
    expected = (2 / (3 + 3 - 2) + 2 / (4 + 3 - 2)) / 2
    assert mean_iou(Fixed(answers, 4), data, CPU, None) == pytest.approx(expected)
    everything_ignored = SegmentationDataset(data.images, torch.full_like(labels, 9), 3, 9)
    assert mean_iou(Fixed(answers, 4), everything_ignored, CPU, None) == 0.0


def test_a_model_of_another_kind_is_refused() -> None:
    """A classifier cannot be scored on labels of pixels."""
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    class Bytes(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            found: Tensor = classifier(image.float())
            return found

    with pytest.raises(ApiMisuse, match=r"\(4, 2\) for labels of \(4, 8, 8\)"):
        score(Bytes(), shapes(4, 0), CPU, None)
    assert evaluate(Fixed(shapes(4, 0).labels.clamp(max=1), 2), shapes(4, 0), transform=None, key=None).plain == 1.0


def test_images_and_labels_move_together() -> None:
    """Shift and mirror move the label of a pixel with the pixel; what comes in is black and has the fill label."""
    draws = torch.Generator().manual_seed(0)
    images = torch.zeros(100, 3, 6, 6, dtype=torch.uint8)
    images[:, :, 1, 2] = 200
    labels = (images[:, 0] > 0).to(torch.uint8) * 5
    moved, marks = paired_shift_and_flip(2, fill_label=11)(images, labels, draws)
    assert moved.dtype == marks.dtype == torch.uint8
    assert torch.equal(moved[:, 0] > 0, marks == 5)
    assert bool((moved[marks[:, None].expand(moved.shape) == 11] == 0).all())
    assert len(torch.unique(marks.reshape(100, -1), dim=0)) > 10
