"""Training an input-sensitive network, from the start or as a short fine-tune of a model the vendor has."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tessera.keystore.secrets import InputKey
from tessera.protect.evaluate import Accuracy, evaluation_keys
from tessera.protect.isnn.measure import IsnnAccuracy, measure
from tessera.protect.isnn.run import IsnnRun
from tessera.protect.isnn.settings import IsnnSettings
from tessera.protect.loop import PulseWatcher, Watcher
from tessera.protect.optimise import usable_device
from tessera.protect.task import Recipe, TrainingTask
from tessera.protect.train import REPORT_FORMAT, WRONG_KEYS, Trained
from tessera.transforms import TransformSpec

DEFAULT_EPSILON: Final = 12
_BLOCKS: Final = (8, 16, 14, 4, 10, 6)


def default_spec(shape: tuple[int, int, int]) -> TransformSpec | None:
    """Return the isnn that is advised for images of (C, H, W): by content, in blocks of 8 where they fit.

    None when no even block of at least 4 divides the sides.
    """
    fitting = [block for block in _BLOCKS if shape[1] % block == 0 and shape[2] % block == 0]
    return TransformSpec.parse_text(f"isnn:{fitting[0]}:{DEFAULT_EPSILON}:content") if fitting else None


def train_isnn(
    task: Recipe | TrainingTask,
    *,
    transform: TransformSpec,
    keys: Sequence[InputKey],
    settings: IsnnSettings | None = None,
    start: Mapping[str, Tensor] | None = None,
    wrong_records: Sequence[InputKey] = (),
    data: Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    epochs: int | None = None,
    wrong_keys: int = WRONG_KEYS,
    progress: Watcher | None = None,
    pulses: PulseWatcher | None = None,
    checkpoint_dir: Path | None = None,
) -> Trained:
    """Train `task` to answer images perturbed under any of `keys` and nothing else, and measure the result.

    `keys` are bound keys (rule C-4), one for each buyer. With `start`, the weights of the same network trained on plain
    images, this is a fine-tune: give it fewer epochs and a lower learning rate than the recipe's. Without `settings`,
    `IsnnSettings.advised` gives them. `wrong_records` are a buyer's key bound to other records, to be measured. All
    else and the errors are as in `tessera.protect.train`; besides, `TransformError` for a spec that is no isnn,
    `Conflict` for weights of another network.
    """
    plan = task.task(data) if isinstance(task, Recipe) else task
    where, started_s = usable_device(device), time.monotonic()
    run = IsnnRun(
        plan,
        transform,
        keys,
        settings if settings is not None else IsnnSettings.advised(transform, plan.shape),
        seed=seed,
        device=where,
        epochs=plan.epochs if epochs is None else epochs,
        start=start,
    )
    with torch.random.fork_rng(), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        history = run.all_epochs(progress, pulses, checkpoint_dir)
        trained_s = time.monotonic() - started_s
        found = measure(
            run.result,
            plan.data.test,
            transform,
            keys,
            wrong_keys=evaluation_keys(wrong_keys, seed),
            wrong_records=wrong_records,
            device=where,
        )
    accuracy = _as_accuracy(found)
    report = {"format": REPORT_FORMAT} | run.describe()
    report |= {
        "metric": found.metric,
        found.metric: accuracy.to_json(),
        "measured": found.to_json(),
        "history": history,
        "training_seconds": round(trained_s, 2),
        "seconds": round(time.monotonic() - started_s, 2),
        "torch_version": torch.__version__,
    }
    model = run.result.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return Trained(
        plan.name,
        model,
        plan.shape,
        transform,
        None,
        plan.max_batch,
        accuracy,
        report,
        input_key_ids=tuple(run.key_ids),
    )


def _as_accuracy(found: IsnnAccuracy) -> Accuracy:
    return Accuracy(found.mean_legal, found.clean, found.wrong_keys, found.metric)
