"""Pieces of a long benchmark, kept between runs so that a broken one goes on where it stopped."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.protect.selective import Scores


class Cache:
    """A folder of finished pieces. A piece's name and settings are its key; delete the folder to measure again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str, settings: object) -> bool:
        """Return whether the JSON value of a piece is there."""
        return self._path(name, settings, ".json").exists()

    def rows(self, name: str, settings: object, make: Callable[[], Any]) -> Any:
        """Return the JSON value of a piece, made now unless it is there."""
        path = self._path(name, settings, ".json")
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        made = make()
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(made), encoding="utf-8")
        beside.replace(path)
        return made

    def scores(self, name: str, settings: object, make: Callable[[], Scores]) -> Scores:
        """Return the scores of a piece, made now unless they are there."""
        path = self._path(name, settings, ".npz")
        if not path.exists():
            made = make()
            beside = path.with_suffix(".part.npz")
            np.savez(beside, allow_pickle=False, **{key: value.numpy() for key, value in made.items()})
            beside.replace(path)
        with np.load(path, allow_pickle=False) as found:
            return {key: torch.from_numpy(found[key]) for key in found.files}

    def _path(self, name: str, settings: object, suffix: str) -> Path:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return self._folder / f"{re.sub('[^A-Za-z0-9]+', '-', name)}-{digest}{suffix}"
