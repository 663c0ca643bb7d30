"""The torch twin of `tessera.transforms.Transform`: the same bits for whole batches on any device (rule T-12)."""

from typing import Final

import torch
from torch import Tensor

from tessera.protect.perturbation_torch import TorchPerturbation
from tessera.transforms import Pass, Transform, TransformError

LOOKUPS: Final = 1 << 24
"""Most values that are looked up in tables at once; each takes five bytes of working memory."""


class TorchTransform:
    """Applies `transform` to uint8 tensors on `device`; equal to the NumPy form bit for bit, with the same inverse law.

    For each pass it holds one int64 index of C * H * W values, and with `ffx` one int32 for each value.
    """

    def __init__(self, transform: Transform, device: torch.device | str = "cpu") -> None:
        self.transform = transform
        self.device = torch.device(device)
        found = transform.perturbation
        self._perturbation = None if found is None else TorchPerturbation(found, self.device)
        self._forwards = [] if found is not None else [_TorchPass(done, self.device) for done in transform.passes()]
        self._backwards: list[_TorchPass] | None = None

    def __repr__(self) -> str:
        return f"TorchTransform({self.transform!r}, device={str(self.device)!r})"

    def __call__(self, x: Tensor) -> Tensor:
        """Return the transformed copy of `x`: uint8 (N, C, H, W) on this device. Raises `TransformError` otherwise."""
        if self._perturbation is not None:
            self._check(x)
            return self._perturbation(x)
        return self._run(self._forwards, x)

    def inverse(self, y: Tensor) -> Tensor:
        """Return the copy of `y` that `self` would turn into `y`; same shapes and errors as calling it.

        Raises `ApiMisuse` for an isnn, which cannot be undone.
        """
        if self._backwards is None:
            self._backwards = [_TorchPass(done.inverse(), self.device) for done in reversed(self.transform.passes())]
        return self._run(self._backwards, y)

    def _check(self, x: Tensor) -> None:
        if x.dtype != torch.uint8 or x.ndim != 4 or tuple(x.shape[1:]) != self.transform.shape:
            shape = ", ".join(map(str, self.transform.shape))
            raise TransformError(
                f"the transform needs a uint8 tensor (N, {shape}), not {x.dtype} {tuple(x.shape)}",
                remedy="Give raw 0-255 pixels as one batch; the model scales and normalises inside.",
            )

    def _run(self, passes: "list[_TorchPass]", x: Tensor) -> Tensor:
        self._check(x)
        channels, height, width = self.transform.shape
        flat = x.reshape(len(x), channels * height * width)
        for done in passes:
            flat = done(flat)
        return flat.reshape(x.shape)


class _TorchPass:
    """One `Pass` on a device: uint8 (N, size) to a new uint8 (N, size)."""

    def __init__(self, done: Pass, device: torch.device) -> None:
        parts = (done.index, done.before, done.after)
        self._index, self._before, self._after = (
            None if part is None else torch.tensor(part, device=device) for part in parts
        )
        self._offsets = self._tables = None
        if done.choice is not None:
            self._offsets = torch.tensor(done.choice.astype("int32") * 256, device=device)
            self._tables = torch.tensor(done.tables.reshape(-1), device=device)

    def __call__(self, x: Tensor) -> Tensor:
        y = x.clone() if self._index is None else x.index_select(1, self._index)
        if self._before is not None:
            y.bitwise_xor_(self._before)
        if self._tables is not None and self._offsets is not None:
            step = max(1, LOOKUPS // y.shape[1])
            for first in range(0, len(y), step):
                some = y[first : first + step]
                at = self._offsets + some.to(torch.int32)
                some.copy_(self._tables.index_select(0, at.reshape(-1)).reshape(some.shape))
        if self._after is not None:
            y.bitwise_xor_(self._after)
        return y
