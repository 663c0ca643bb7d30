"""The torch twin of `tessera.transforms.Transform`: the same bits for whole batches on any device (rule T-12)."""

import torch
from torch import Tensor

from tessera.transforms import Transform, TransformError


class TorchTransform:
    """Applies `transform` to uint8 tensors on `device`; equal to the NumPy form bit for bit, with the same inverse law.

    It holds one int64 index twice and one uint8 mask of C * H * W values on the device.
    """

    def __init__(self, transform: Transform, device: torch.device | str = "cpu") -> None:
        self.transform = transform
        self._index = torch.tensor(transform.index, device=device)
        self._inverse = torch.empty_like(self._index)
        self._inverse[self._index] = torch.arange(len(transform.index), device=device)
        self._xor = torch.tensor(transform.xor, device=device)

    def __repr__(self) -> str:
        return f"TorchTransform({self.transform!r}, device={str(self._index.device)!r})"

    def __call__(self, x: Tensor) -> Tensor:
        """Return the transformed copy of `x`: uint8 (N, C, H, W) on this device. Raises `TransformError` otherwise."""
        flat = self._flat(x).index_select(1, self._index)
        return flat.bitwise_xor_(self._xor).reshape(x.shape)

    def inverse(self, y: Tensor) -> Tensor:
        """Return the copy of `y` that `self` would turn into `y`; same shapes and errors as calling it."""
        return self._flat(y).bitwise_xor(self._xor).index_select(1, self._inverse).reshape(y.shape)

    def _flat(self, x: Tensor) -> Tensor:
        if x.dtype != torch.uint8 or x.ndim != 4 or tuple(x.shape[1:]) != self.transform.shape:
            shape = ", ".join(map(str, self.transform.shape))
            raise TransformError(
                f"the transform needs a uint8 tensor (N, {shape}), not {x.dtype} {tuple(x.shape)}",
                remedy="Give raw 0-255 pixels as one batch; the model scales and normalises inside.",
            )
        return x.reshape(len(x), len(self._index))
