"""What a locked network is worth with its key, with others and without."""

import dataclasses

from tessera.keystore.secrets import InputKey
from tessera.protect.audit.programs import ProgramModel
from tessera.protect.bundle import Bundle
from tessera.protect.evaluate import Accuracy, LabelledImages, evaluate, evaluation_keys


def measured(bundle: Bundle, key: InputKey, data: LabelledImages, *, wrong_keys: int, seed: int = 0) -> Accuracy:
    """Return what the bundle's program reaches on `data` under its transform and `key`, and under `wrong_keys` others.

    Raises `Malformed` when program and weights do not belong together, `TransformError` for images of another size.
    """
    model = ProgramModel(bundle.program, bundle.tensors)
    others = evaluation_keys(wrong_keys, seed)
    return evaluate(model, data, transform=bundle.transform, key=key, wrong_keys=others)


def with_quality(bundle: Bundle, found: Accuracy) -> Bundle:
    """Return the bundle with what was measured in the place of what it had (rule B-12)."""
    named = {name: value for name, value in found.to_json().items() if isinstance(value, float)}
    return dataclasses.replace(bundle, quality={f"{found.metric}_{name}": value for name, value in named.items()})
