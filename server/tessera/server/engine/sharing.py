"""Weights that several programs use are one tensor in memory, and are overwritten when the last of them goes."""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch


@dataclass
class _Held:
    tensor: torch.Tensor
    users: int = 0


class SharedTensors:
    """Tensors by identity: a hashable that is equal exactly when the content is equal. Safe between threads.

    Every `take` is undone by one `release`; the last one overwrites the tensor with zeros and forgets it.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, _Held] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of everything held, each tensor once."""
        with self._lock:
            return sum(held.tensor.nbytes for held in self._held.values())

    def take(self, identity: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the tensor of `identity`, made by `make` when nobody holds it, and count one more user."""
        with self._lock:
            held = self._held.get(identity)
            if held is None:
                held = self._held[identity] = _Held(make())
            held.users += 1
            return held.tensor

    def release(self, identity: Hashable) -> None:
        """Count one user less; the last one overwrites and forgets the tensor. Unknown identities are ignored."""
        with self._lock:
            held = self._held.get(identity)
            if held is None:
                return
            held.users -= 1
            if held.users <= 0:
                del self._held[identity]
                overwrite(held.tensor)


def overwrite(tensor: torch.Tensor) -> None:
    """Fill the tensor's memory with zeros, whoever still refers to it."""
    with torch.no_grad():
        tensor.detach().zero_()
