"""One small input-sensitive network, trained once for all tests of this folder."""

import dataclasses

import pytest

from tessera.keystore.copyright import CopyrightRecord, bound_key, buyer_input_key
from tessera.keystore.secrets import InputKey
from tessera.protect import Trained, TrainingTask, recipe
from tessera.protect.isnn import train_isnn
from tessera.transforms import TransformSpec

SPEC = TransformSpec.parse_text("isnn:8:32")
MASTER = InputKey(bytes(range(32)))
RECORD = CopyrightRecord("Acme", "Globex", "L-17")


@pytest.fixture(scope="session")
def task() -> TrainingTask:
    """The digits, for a few epochs."""
    return dataclasses.replace(recipe("digits").task(None), epochs=25)


@pytest.fixture(scope="session")
def key() -> InputKey:
    """The bound key of the one buyer."""
    return bound_key(buyer_input_key(MASTER, RECORD), RECORD)


@pytest.fixture(scope="session")
def trained(task: TrainingTask, key: InputKey) -> Trained:
    """A network for that buyer, from the start, in the fixed form."""
    other = bound_key(buyer_input_key(MASTER, RECORD), CopyrightRecord("Acme", "Globex", "L-18"))
    return train_isnn(task, transform=SPEC, keys=[key], wrong_records=[other], wrong_keys=10)
