"""A bundle as a model again: its exported program with its weights, for scoring and for measuring tiers."""

import io

import torch
from torch import nn

from tessera.keystore.errors import Malformed
from tessera.protect.bundle import Bundle


def module_of(bundle: Bundle) -> nn.Module:
    """Return the bundle's program holding its weights; takes uint8 (N, C, H, W), gives what the model gives.

    Raises `Malformed` when the program and the weights do not belong together.
    """
    try:
        program = torch.export.load(io.BytesIO(bundle.program)).module()
        program.load_state_dict(bundle.tensors, strict=True, assign=True)
    except Exception as error:  # torch raises many unrelated types here, all meaning this
        raise Malformed(
            "the bundle's program cannot be loaded with its weights", remedy="Bundle the model again."
        ) from error
    return program
