"""Training with keyed inputs: augment, transform under the key, learn; all on the device.

A run is determined by its task, transform, key, seed, device and number of threads: each epoch draws its order,
augmentation and dropout from a seed of its own, so a resumed run ends with the same bits as one without a break.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.protect.evaluate import Accuracy, evaluate, evaluation_keys
from tessera.protect.loop import Diverged, Progress, Pulse, PulseWatcher, Run, Watcher
from tessera.protect.optimise import usable_device
from tessera.protect.task import Recipe, TrainingTask
from tessera.transforms import TransformSpec

__all__ = ["REPORT_FORMAT", "WRONG_KEYS", "Diverged", "Progress", "Pulse", "Trained", "train"]

REPORT_FORMAT: Final = "tessera-training-report/1"
WRONG_KEYS: Final = 20


@dataclass(frozen=True)
class Trained:
    """What a run gives: the model, in eval mode on the CPU and taking uint8 pixels, and what was measured on it.

    `report` is JSON; `accuracy` is the same measurement unrounded. The key itself is not kept.
    """

    name: str
    model: nn.Module
    shape: tuple[int, int, int]
    transform: TransformSpec | None
    input_key_id: str | None
    max_batch: int
    accuracy: Accuracy
    report: dict[str, Any]
    input_key_ids: tuple[str, ...] = ()
    """Of the bound keys of an input-sensitive network, one for each buyer, sorted; `input_key_id` is None then."""


def train(
    task: Recipe | TrainingTask,
    *,
    transform: TransformSpec | None,
    key: InputKey | None,
    data: Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    epochs: int | None = None,
    wrong_keys: int = WRONG_KEYS,
    progress: Watcher | None = None,
    pulses: PulseWatcher | None = None,
    checkpoint_dir: Path | None = None,
) -> Trained:
    """Train `task` on inputs transformed under `key`, or on plain ones when both are None, and measure the result.

    `data` is the folder of a recipe's data set. `progress` is called after each epoch, `pulses` in between.
    With `checkpoint_dir` the state is saved there after each epoch, and a run with the same settings goes on from it.
    Raises `ApiMisuse` when only one of transform and key is given or a network does not fit its data, `TransformError`
    when the spec does not fit the images, `Unavailable` for an absent device, `Diverged` when the loss is no number any
    more, `MissingExtra` when the recipe's data needs a library, and what a recipe's loader and `load_checkpoint` raise.
    """
    plan = task.task(data) if isinstance(task, Recipe) else task
    if (transform is None) != (key is None):
        raise ApiMisuse("a transform needs an input key, and a key a transform", remedy="Give both, or neither.")
    where, started_s = usable_device(device), time.monotonic()
    run = Run(plan, transform, key, seed=seed, device=where, epochs=plan.epochs if epochs is None else epochs)
    with torch.random.fork_rng(), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        history = run.all_epochs(progress, pulses, checkpoint_dir)
        trained_s = time.monotonic() - started_s
        found = evaluate(
            run.result,
            plan.data.test,
            transform=transform,
            key=key,
            wrong_keys=evaluation_keys(wrong_keys, seed),
            device=where,
        )
    report = {"format": REPORT_FORMAT} | run.describe()
    report |= {
        "metric": found.metric,
        found.metric: found.to_json(),
        "history": history,
        "training_seconds": round(trained_s, 2),
        "seconds": round(time.monotonic() - started_s, 2),
        "torch_version": torch.__version__,
    }
    model = run.result.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    key_id = None if key is None else input_key_id(key)
    return Trained(plan.name, model, plan.shape, transform, key_id, plan.max_batch, found, report)
