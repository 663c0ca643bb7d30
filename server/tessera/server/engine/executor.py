"""One long-lived thread owns torch for one device.

Torch's thread pools belong to the thread that starts them, so work that wanders between threads pays for new pools;
and a batch that is formed by the thread that runs it can take everything that arrived until that very moment.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

import torch

from tessera.keystore.errors import ApiMisuse

_T = TypeVar("_T")

Step = Callable[[], bool]
"""One bounded piece of work; returns whether it wants another turn. Must not raise."""


class Executor:
    """Runs steps round-robin in one thread under `torch.inference_mode`, until `close`.

    `device` is a torch device string (`cpu`, `cuda:0`). `threads` is torch's number of intra-operation threads on a
    CPU; None leaves torch's own choice.
    """

    def __init__(self, device: str = "cpu", *, threads: int | None = None) -> None:
        self.device = torch.device(device)
        self._threads = threads
        self._steps: SimpleQueue[Step | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"tessera-{self.device}", daemon=True)
        self._thread.start()

    def schedule(self, step: Step) -> None:
        """Give `step` a turn after those already waiting, and again for as long as it asks. From any thread."""
        self._steps.put(step)

    def call(self, work: Callable[[], _T]) -> "Future[_T]":
        """Run `work` once in the device's thread; the future carries its result or exception. From any thread.

        Raises `ApiMisuse` after `close`.
        """
        if self._closed:
            raise ApiMisuse("the executor is closed")
        future: Future[_T] = Future()

        def step() -> bool:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 -- the future carries it to whoever asked
                    future.set_exception(error)
            return False

        self.schedule(step)
        return future

    def close(self) -> None:
        """Run what is scheduled, then end the thread. Idempotent; not to be called from a step."""
        self._closed = True
        self._steps.put(None)
        self._thread.join()

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while (step := self._steps.get()) is not None:
                if step():
                    self._steps.put(step)
