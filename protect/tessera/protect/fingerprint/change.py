"""How far a mark moves what a model answers, on images that mean nothing: quick, and no measure of quality."""

from typing import Final

import torch
from torch import Tensor

from tessera.keystore.errors import Malformed
from tessera.protect.bundle import Bundle
from tessera.protect.selective.bundled import module_of

IMAGES: Final = 8
"""Random images that both models are asked."""

_SEED: Final = 4099


def output_change(before: Bundle, after: Bundle) -> float:
    """Return the root mean square by which outputs differ, in root mean squares of the outputs of `before`.

    Both are asked the same random images. Raises `Malformed` when a program cannot be loaded or run.
    """
    draws = torch.Generator().manual_seed(_SEED)
    shape = (min(IMAGES, before.max_batch), *before.inputs[0].shape[1:])
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws)
    one, other = (_answers(bundle, images) for bundle in (before, after))
    size = float(one.square().mean().sqrt())
    return float((other - one).square().mean().sqrt()) / size if size else 0.0


def _answers(bundle: Bundle, images: Tensor) -> Tensor:
    module = module_of(bundle)
    try:
        with torch.inference_mode():
            answers: Tensor = module(images)
        return answers.to(torch.float64)
    except Exception as error:  # torch raises many unrelated types here, all meaning this
        raise Malformed(
            "the bundle's program does not run on the input that it names", remedy="Bundle the model again."
        ) from error
