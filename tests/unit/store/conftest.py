"""Fixtures: a fresh unsealed store for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stores import make_store
from tessera.keystore.store import Store


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the test's store lies."""
    return tmp_path / "node"


@pytest.fixture
def store(directory: Path) -> Iterator[Store]:
    """An unsealed store, closed afterwards."""
    with make_store(directory) as made:
        yield made
