"""Few long-lived threads, the lanes, own torch for one device.

Torch's thread pools belong to the thread that starts them, so work that wanders between threads pays for new pools; and
a batch that is formed by the thread that runs it can take everything that arrived until that very moment.

A small CPU has two lanes of one thread each. One operation split over all cores waits at its end for the slowest of
them, and on a machine whose cores also serve the network one of them is always late: two batches side by side keep both
cores busy where one batch on both leaves them waiting. While only lane 0 has work, as with a single caller, it gets all
threads for the shorter wait; lane 1 never does, so that it needs no thread pool of its own. What this gains, and what
it costs a single caller after the first busy moment, was measured: docs/adr/0009.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Final, TypeVar

import torch

from tessera.keystore.errors import ApiMisuse

_T = TypeVar("_T")

Step = Callable[[], bool]
"""One bounded piece of work; returns whether it wants another turn. Must not raise."""

SMALL_CPU: Final = range(2, 4)
"""Numbers of threads with which a second lane was measured to pay; with more, a lane would need a pool of its own."""
QUIET_STEPS: Final = 4
"""So many steps in a row without company, and a lane believes that it is alone."""


class Executor:
    """Runs steps, round-robin, in its lanes under `torch.inference_mode`, until `close`.

    `device` is a torch device string (`cpu`, `cuda:0`). `threads` is the number of CPU threads that torch may use in
    all; None leaves torch's own choice. Two or three threads make two lanes; everything else has one.
    """

    def __init__(self, device: str = "cpu", *, threads: int | None = None) -> None:
        self.device = torch.device(device)
        self.threads = threads or torch.get_num_threads()
        self.lanes = 2 if self.device.type == "cpu" and self.threads in SMALL_CPU else 1
        self._lane_threads = self.threads // self.lanes
        self._steps: list[SimpleQueue[Step | None]] = [SimpleQueue() for _ in range(self.lanes)]
        self._closed = False
        self._lock = threading.Lock()
        self._running = 0
        self._quiet = 0
        self._here = threading.local()
        self._lane_list = [
            threading.Thread(target=self._run, args=(number,), name=f"tessera-{self.device}-{number}", daemon=True)
            for number in range(self.lanes)
        ]
        for lane in self._lane_list:
            lane.start()

    def schedule(self, step: Step, *, lane: int = 0) -> None:
        """Give `step` a turn in `lane` after those already waiting, and again for as long as it asks. From any thread.

        Whatever one lane can do goes to lane 0, so that a single caller always meets the same warm thread pool.
        """
        self._steps[lane].put(step)

    def call(self, work: Callable[[], _T]) -> "Future[_T]":
        """Run `work` once in lane 0; the future carries its result or exception. From any thread.

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

    def spread(self, *, alone: bool | None = None) -> None:
        """Choose how many threads torch uses for what this lane runs next; called within a step.

        All of them in lane 0 when `alone`, which None leaves to what was seen of late, else the lane's share.
        """
        if alone is None:
            alone = self._quiet >= QUIET_STEPS
        alone = alone and self._here.lane == 0
        wanted = self.threads if alone else self._lane_threads
        if getattr(self._here, "threads", None) != wanted:
            torch.set_num_threads(wanted)
            self._here.threads = wanted

    def close(self) -> None:
        """Run what is scheduled, then end the lanes. Idempotent; not to be called from a step."""
        self._closed = True
        for steps in self._steps:
            steps.put(None)
        for lane in self._lane_list:
            lane.join()

    def _run(self, lane: int) -> None:
        self._here.lane = lane
        self.spread(alone=False)
        steps = self._steps[lane]
        with torch.inference_mode():
            while (step := steps.get()) is not None:
                with self._lock:
                    self._running += 1
                    self._quiet = self._quiet + 1 if self._running == 1 else 0
                again = step()
                with self._lock:
                    self._running -= 1
                if again:
                    steps.put(step)
