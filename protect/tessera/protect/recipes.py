"""The recipes that come with Tessera, in one explicit table."""

from typing import Final

from tessera.keystore.errors import NotFound
from tessera.protect.augment import random_shift
from tessera.protect.data import digits
from tessera.protect.models import DigitsNet
from tessera.protect.task import Recipe, TrainingTask


def _digits_task() -> TrainingTask:
    return TrainingTask(
        name="digits",
        data=digits(),
        network=DigitsNet,
        mean=(0.5,),
        std=(0.5,),
        epochs=30,
        augment=random_shift(1),
    )


RECIPES: Final[dict[str, Recipe]] = {
    "digits": Recipe(
        name="digits",
        summary="1,797 scans of handwritten digits, 8x8 pixels, bundled with scikit-learn; seconds on one core",
        transform="shf:4,np:4",
        task=_digits_task,
    ),
}
"""Every recipe by the name that `tessera protect train` takes."""


def recipe(name: str) -> Recipe:
    """Return the recipe called `name`. Raises `NotFound`."""
    found = RECIPES.get(name)
    if found is None:
        raise NotFound("there is no such recipe", remedy=f"Choose one of: {', '.join(sorted(RECIPES))}.")
    return found
