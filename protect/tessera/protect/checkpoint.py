"""A training run's state on disk, replaced atomically after each epoch, so that a run can be resumed bit for bit.

The file holds plaintext weights, so it is private (0600). It is read with `weights_only=True`: no code runs from it.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from tessera.keystore._files import PRIVATE_MODE, read_limited, write_atomically
from tessera.keystore.errors import Conflict, Malformed, NotFound

FILE_NAME: Final = "checkpoint.pt"
MAX_BYTES: Final = 64 * 2**30

_FIELDS = frozenset({"run", "epoch", "model", "optimiser", "history"})


@dataclass(frozen=True)
class Checkpoint:
    """The state after `epoch` epochs of the run that `run` describes; `history` has one entry for each."""

    run: str
    epoch: int
    model: dict[str, Any]
    optimiser: dict[str, Any]
    history: list[dict[str, float]]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of `folder`, which is made when missing. Raises `Denied` or `Unavailable`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    buffer = io.BytesIO()
    torch.save({name: getattr(checkpoint, name) for name in sorted(_FIELDS)}, buffer)
    write_atomically(folder / FILE_NAME, buffer.getvalue(), mode=PRIVATE_MODE, overwrite=True)


def load_checkpoint(folder: Path, *, run: str) -> Checkpoint | None:
    """Return the checkpoint of `folder`, or None when it has none.

    Raises `Conflict` when it belongs to a run with other settings, `Malformed` when it is no checkpoint.
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
    if not _has_form(found):
        raise Malformed(f"{path} is not a checkpoint", remedy=f"Delete {path} and train from the start.")
    if found["run"] != run:
        raise Conflict(
            f"{path} belongs to a run with other settings",
            remedy="Choose another folder, or repeat the settings of that run.",
        )
    return Checkpoint(**found)


def _has_form(found: Any) -> bool:
    if not isinstance(found, dict) or found.keys() != _FIELDS:
        return False
    model, optimiser, history = found["model"], found["optimiser"], found["history"]
    return (
        isinstance(model, dict)
        and isinstance(optimiser, dict)
        and isinstance(history, list)
        and found["epoch"] == len(history)
    )
