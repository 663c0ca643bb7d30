"""Whose copy leaked: what a fingerprint costs, and what thieves have to give up to be rid of it.

    python -m benchmarks.protection.fingerprint SUBJECT… --data PATH [--quick]

    resnet20     the third-party ResNet-20 for CIFAR-10: accuracy in percent on all test images for each strength, on
                 every tenth after a thief's work; fine-tuning draws on the training set
    dncnn        the pretrained denoiser: PSNR in dB on centre crops of BSD68

A copy of the default strength is made for one buyer, changed as a thief would, and tried against that buyer's record
and those of 1,000 strangers; z is the statistic of all tensors, Z the furthest from 0 of that and each tensor's own.
A buyer is named when 2 x records x (tensors + 1) x exp(-Z^2 / 2) is below 1e-6. Of copies that were averaged the least
audible buyer's figures are told. The time to make a copy is processor time, the best of five, for a network of a
million weights.
"""

import argparse
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks._harness import bar, print_bars, print_table, result_path, write_result
from benchmarks.protection import _thieves as thieves
from benchmarks.protection._plots import draw_fingerprints
from benchmarks.protection._subjects import dncnn, resnet20
from tessera.keystore.copyright import CopyrightRecord
from tessera.keystore.package import TensorSpec
from tessera.keystore.secrets import InputKey
from tessera.protect import Bundle
from tessera.protect.data import cifar10
from tessera.protect.fingerprint import SIGNIFICANT, STRENGTH, identify, mark
from tessera.protect.selective import psnr_db, share_right, with_state

AREA: Final = "protection"
STRENGTHS: Final = (0.003, 0.005, 0.01, 0.03)
STRANGERS: Final = 1000
MIXED: Final = (2, 5, 10, 50)
SEED: Final = 11
SIGMA: Final = 25.0
LOST_BARS: Final = {"resnet20": 0.1, "dncnn": 0.05}
"""At the default strength, in points and dB."""
HARMLESS: Final = {"resnet20": 5.0, "dncnn": 1.0}
"""A thief who loses less than this, in points and dB, has to be named."""
COPY_BAR_MS: Final = 100.0

SECRET: Final = InputKey(bytes(range(32)))
OTHER_SECRET: Final = InputKey(bytes(range(1, 33)))
RENAMED: Final = "the same, renamed, int8"
BUYERS: Final = tuple(CopyrightRecord("Acme Vision", f"Buyer {number}", f"L-{number}") for number in range(max(MIXED)))

Row = dict[str, Any]


@dataclass(frozen=True)
class Subject(ABC):
    """A network, how it is judged, and what thieves may do to it besides."""

    name: str
    unit: str
    model: nn.Module
    inputs: Tensor
    moved: thieves.Thief
    tuning: Mapping[str, thieves.Thief]

    @property
    def state(self) -> thieves.State:
        """The vendor's own weights."""
        return {name: one.detach().clone() for name, one in self.model.state_dict().items()}

    @abstractmethod
    def whole(self, state: thieves.State) -> float:
        """Quality on the whole test set."""

    @abstractmethod
    def quick(self, state: thieves.State) -> float:
        """Quality on a part of it."""


@dataclass(frozen=True)
class Classifier(Subject):
    """Judged by the share of right answers, in percent."""

    images: Tensor
    labels: Tensor

    def whole(self, state: thieves.State) -> float:
        """Accuracy on all images."""
        return 100 * share_right(with_state(self.model, state), self.images, self.labels)

    def quick(self, state: thieves.State) -> float:
        """Accuracy on every tenth image."""
        return 100 * share_right(with_state(self.model, state), self.images[::10], self.labels[::10])


@dataclass(frozen=True)
class Denoiser(Subject):
    """Judged by mean PSNR in dB; the noise of an image is the same for every model."""

    crops: Tensor

    def whole(self, state: thieves.State) -> float:
        """PSNR on all crops."""
        draws = torch.Generator().manual_seed(SEED)
        noisy = self.crops + torch.randn(self.crops.shape, generator=draws) * (SIGMA / 255)
        restored = with_state(self.model, state)(noisy)
        return sum(psnr_db(one, clean) for one, clean in zip(restored, self.crops, strict=True)) / len(noisy)

    def quick(self, state: thieves.State) -> float:
        """The same."""
        return self.whole(state)


def resnet_subject(data: Path, *, quick: bool) -> Subject:
    """Return the ResNet-20 with fine-tuning on 1 and 10 % of the training set at a usual and at a high rate."""
    model = resnet20(data, quick=True).model
    found = cifar10(data)
    step = 50 if quick else 1
    tuning = {}
    for share in (0.01,) if quick else (0.01, 0.1):
        picked = torch.randperm(50_000, generator=torch.Generator().manual_seed(SEED))[: int(share * 50_000)]
        images, labels = found.train.images[picked], found.train.labels[picked]
        for rate in (0.01, 0.1):
            name = f"fine-tuning, {share:.0%} of the data, rate {rate}"
            tuning[name] = thieves.tuned(model, images, labels, rate=rate, seed=SEED)
    return Classifier(
        "resnet20", "accuracy in points; 10,000 test images by strength, 1,000 after thefts", model,
        found.test.images[:8], lambda state: thieves.moved_resnet(state, SEED), tuning,
        found.test.images[::step].contiguous(), found.test.labels[::step].contiguous(),
    )  # fmt: skip


def dncnn_subject(data: Path, *, quick: bool) -> Subject:
    """Return the denoiser on crops of BSD68."""
    from benchmarks.protection._subjects import CROP
    from tessera.protect.data import denoise_set

    model = dncnn(data, quick=True).model
    pictures = [torch.from_numpy(one).to(torch.float32) / 255 for one in denoise_set(data, "BSD68")]
    crops = torch.stack([one[:, :CROP, :CROP] for one in pictures[:: 34 if quick else 8]])
    return Denoiser(
        "dncnn", "PSNR in dB; 9 crops of BSD68", model, crops[:1], lambda state: thieves.moved_chain(state, SEED), {},
        crops,
    )  # fmt: skip


SUBJECTS: Final = {"resnet20": resnet_subject, "dncnn": dncnn_subject}


def vendor(state: thieves.State) -> Bundle:
    """Return weights in the clothes of a bundle; the program is none."""
    ports = TensorSpec("image", "UINT8", (-1, 3, 32, 32), "NCHW"), TensorSpec("logits", "FP32", (-1, 10))
    return Bundle(
        inputs=ports[:1], outputs=ports[1:], transform=None, input_key_id=None, quality={}, max_batch=1,
        torch_version=torch.__version__, program=b"", tensors=state,
    )  # fmt: skip


def strength_rows(subject: Subject) -> Iterator[Row]:
    """Yield quality before and after for each strength."""
    state = subject.state
    before = subject.whole(state)
    for strength in STRENGTHS:
        after = subject.whole(mark(state, SECRET, BUYERS[0], strength=strength))
        yield {
            "subject": subject.name, "thief": f"none, strength {strength}", "strength": strength,
            "quality": round(after, 3), "lost": round(before - after, 3),
        }  # fmt: skip


def thefts(subject: Subject) -> Iterator[tuple[str, thieves.State, Sequence[CopyrightRecord]]]:
    """Yield what thieves made of copies, and whose copies they had."""
    state = subject.state
    copy, own = mark(state, SECRET, BUYERS[0]), BUYERS[:1]
    works: dict[str, thieves.Thief] = {
        "nothing": dict,
        "float16": thieves.rounded(torch.float16),
        "bfloat16": thieves.rounded(torch.bfloat16),
        "int8, a step for each channel": thieves.int8(by_row=True),
        "int8, a step for each tensor": thieves.int8(by_row=False),
        "int4, a step for each channel": thieves.steps(7, by_row=True),
        **{f"pruning, {share:.0%}": thieves.pruned(share) for share in (0.3, 0.6, 0.9)},
        **{f"noise, {share:.0%}": thieves.noise(share, SEED) for share in (0.01, 0.05, 0.1)},
        **subject.tuning,
        "channels moved and rescaled": subject.moved,
        RENAMED: lambda held: thieves.int8(by_row=True)(subject.moved(held)),
        "another mark over it": lambda held: mark(held, OTHER_SECRET, BUYERS[1]),
    }
    for name, work in works.items():
        yield name, work(copy), own
    copies = [mark(state, SECRET, record) for record in BUYERS]
    for count in MIXED:
        yield f"average of {count} copies", thieves.averaged(copies[:count]), BUYERS[:count]


def theft_rows(subject: Subject, strangers: int) -> Iterator[Row]:
    """Yield who is named after each theft, and what the thief lost."""
    bundle = vendor(subject.state)
    before = subject.quick(bundle.tensors)
    nobodies = [CopyrightRecord("Acme Vision", f"Stranger {number}", "L") for number in range(strangers)]
    for name, leaked, owners in thefts(subject):
        begin = time.process_time()
        found = identify(bundle, thieves.renamed(leaked) if name == RENAMED else leaked, SECRET, [*owners, *nobodies])
        seconds = time.process_time() - begin
        theirs = [one for one in found.suspects if one.record in owners]
        others = [one for one in found.suspects if one.record not in owners]
        after = subject.quick(leaked)
        yield {
            "subject": subject.name, "thief": name, "quality": round(after, 3), "lost": round(before - after, 3),
            "z": round(theirs[-1].z, 2), "Z": round(theirs[-1].strongest, 2),
            "log10 p": round(theirs[-1].log10_p, 1), "best stranger": round(others[0].strongest, 2),
            "stranger's log10 p": round(others[0].log10_p, 2),
            "named": sum(one.named for one in theirs), "of": len(owners),
            "strangers named": sum(one.named for one in others),
            "tensors": f"{theirs[-1].carried_by}/{len(found.tensors)}", "seconds": round(seconds, 1),
        }  # fmt: skip
        print(f"{subject.name}: {name}: z {theirs[-1].z:.1f}, stranger {others[0].z:.1f}", flush=True)


def copy_milliseconds(rounds: int = 5) -> dict[str, float]:
    """Return processor and wall time to make a buyer's copy of a million weights, the best of some rounds."""
    draws = torch.Generator().manual_seed(SEED)
    state = {f"layer{number}": torch.randn(256, 64, 4, 4, generator=draws) for number in range(4)}
    best = {"processor": float("inf"), "wall": float("inf")}
    for number in range(rounds):
        processor, wall = time.process_time(), time.perf_counter()
        mark(state, SECRET, BUYERS[number])
        best["processor"] = min(best["processor"], 1e3 * (time.process_time() - processor))
        best["wall"] = min(best["wall"], 1e3 * (time.perf_counter() - wall))
    return {name: round(value, 1) for name, value in best.items()}


def bars_of(strengths: Sequence[Row], rows: Sequence[Row], copy_ms: float) -> Iterator[Row]:
    """Yield the bars: quality, names, strangers, time."""
    for row in strengths:
        if row["strength"] == STRENGTH:
            limit = LOST_BARS[row["subject"]]
            lost = row["lost"]
            yield bar(f"{row['subject']}: quality lost at strength {STRENGTH}", f"<= {limit}", lost, lost <= limit)
    for row in rows:
        if row["lost"] < HARMLESS[row["subject"]]:
            right = row["named"] == row["of"]
            yield bar(f"{row['subject']}, {row['thief']}: named", f"{row['of']}", row["named"], right)
    strangers = sum(row["strangers named"] for row in rows)
    yield bar("strangers named in all rows", "0", strangers, strangers == 0)
    yield bar("a copy of a million weights, ms", f"< {COPY_BAR_MS:g}", copy_ms, copy_ms < COPY_BAR_MS)


def main() -> None:
    """Measure the subjects that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="+", choices=sorted(SUBJECTS))
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets and weights")
    parser.add_argument("--quick", action="store_true", help="does it run at all? records nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.subjects:
        run(SUBJECTS[name](asked.data, quick=asked.quick), quick=asked.quick)


def run(subject: Subject, *, quick: bool) -> None:
    """Measure one subject, print what was seen, and record it."""
    begin, copy = time.process_time(), copy_milliseconds()
    strangers = 20 if quick else STRANGERS
    alike = thieves.computes_alike(subject.model, subject.state, subject.moved(subject.state), subject.inputs)
    strengths = list(strength_rows(subject))
    rows = list(theft_rows(subject, strangers))
    print_table(strengths)
    print_table(rows)
    bars = list(bars_of(strengths, rows, copy["processor"]))
    print_bars(bars)
    if quick:
        return
    config = {
        "strength": STRENGTH, "strangers": strangers, "significance": SIGNIFICANT, "quality": subject.unit,
        "harmless_below": HARMLESS[subject.name], "copy_milliseconds": copy, "moved_outputs_differ_by": alike,
        "processor_seconds": round(time.process_time() - begin),
    }  # fmt: skip
    path = result_path(AREA, f"fingerprint-{subject.name}")
    write_result(f"fingerprint-{subject.name}", AREA, config, [*strengths, *rows], bars, [SEED], path)
    draw_fingerprints(rows, subject.unit.partition(";")[0], strangers, SIGNIFICANT, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
