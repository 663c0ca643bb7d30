"""A training run's state on disk, replaced atomically after each epoch, so that a run can be resumed bit for bit.

The file holds plaintext weights, so it is private (0600). It is read with `weights_only=True`: no code runs from it.
"""

import io
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from tessera.keystore._files import PRIVATE_MODE, read_limited, write_atomically
from tessera.keystore.errors import Conflict, Malformed, NotFound, Unavailable

FILE_NAME: Final = "checkpoint.pt"
MAX_BYTES: Final = 64 * 2**30


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after `epoch` epochs of the run with the settings `run`; `history` has one entry for each epoch."""

    run: dict[str, Any]
    epoch: int
    model: dict[str, Any]
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    """The gradient scaler's; empty for the precisions that have none."""
    average: dict[str, Any] | None
    """The moving average's weights, where the run keeps one."""
    history: list[dict[str, float]]
    extra: dict[str, Any] = field(default_factory=dict)
    """What else of the run changes as it trains, beside the model, by name; tensors."""


_FIELDS = frozenset(one.name for one in fields(Checkpoint))


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of `folder`, which is made when missing. Raises `Denied` or `Unavailable`."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Unavailable(f"{folder} cannot be made a folder", remedy="Choose another path.") from error
    buffer = io.BytesIO()
    torch.save({name: getattr(checkpoint, name) for name in sorted(_FIELDS)}, buffer)
    write_atomically(folder / FILE_NAME, buffer.getvalue(), mode=PRIVATE_MODE, overwrite=True)


def load_checkpoint(folder: Path, *, run: dict[str, Any]) -> Checkpoint | None:
    """Return the checkpoint of `folder`, or None when it has none.

    Raises `Conflict` naming the settings when it belongs to a run with others, `Malformed` when it is no checkpoint.
    """
    path = folder / FILE_NAME
    try:
        raw = read_limited(path, max_bytes=MAX_BYTES, private=True)
    except NotFound:
        return None
    try:
        found = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many unrelated types for a damaged file
        raise Malformed(f"{path} is not a checkpoint", remedy=f"Delete {path} and train from the start.") from error
    if isinstance(found, dict):
        found.setdefault("extra", {})  # older runs had none; what they lack in settings is told below
    if not _has_form(found):
        raise Malformed(f"{path} is not a checkpoint", remedy=f"Delete {path} and train from the start.")
    if found["run"] != run:
        raise Conflict(
            f"{path} belongs to a run with other settings: {_difference(found['run'], run)}",
            remedy="Choose another folder, or repeat the settings of that run.",
        )
    return Checkpoint(**found)


def restore_weights(model: nn.Module, saved: dict[str, Any], path: Path) -> None:
    """Put `saved` into `model`. Raises `Conflict` naming the first tensor that differs when it is another network's."""
    mine = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(getattr(value, "shape", ())) for name, value in saved.items()}
    for name in [*mine, *theirs]:
        if mine.get(name) != theirs.get(name):
            raise Conflict(
                f"{path / FILE_NAME} belongs to another network: {name} is "
                f"{theirs.get(name, 'missing')} there and {mine.get(name, 'missing')} here",
                remedy="Choose another folder for this run's checkpoints, or the network of that run.",
            )
    model.load_state_dict(saved)


def _difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    names = [name for name in sorted(theirs.keys() | mine.keys()) if theirs.get(name) != mine.get(name)]
    return "; ".join(f"{name} is {theirs.get(name)} there and {mine.get(name)} here" for name in names[:3])


def _has_form(found: Any) -> bool:
    if not isinstance(found, dict) or found.keys() != _FIELDS:
        return False
    objects = [found[name] for name in ("run", "model", "optimiser", "scaler", "extra")]
    return (
        all(isinstance(value, dict) for value in objects)
        and isinstance(found["average"], dict | None)
        and isinstance(found["history"], list)
        and found["epoch"] == len(found["history"])
    )
