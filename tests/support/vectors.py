"""Test vectors: `tests/vectors/NAME.json` is a list of objects, each with a `name`."""

import json
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

FOLDER = Path(__file__).parents[1] / "vectors"


def load(name: str) -> Any:
    """Return the document of `tests/vectors/NAME.json`."""
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def cases(name: str, key: str | None = None) -> list[ParameterSet]:
    """Return the vectors of a file, or of one list in it, as named cases for `parametrize`."""
    document = load(name)
    listed = document if key is None else document[key]
    return [pytest.param(case, id=case["name"]) for case in listed]
