"""The same work on many things, in a few threads."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def in_threads(work: Callable[[T], object], items: Iterable[T], workers: int) -> None:
    """Call `work` with every item, in `workers` threads, of which one is the caller's; items are begun in order.

    New threads are given the first items: each is running before the next is started and before the caller takes an
    item of its own. After an error the calls that have begun are finished and no other begins; the error that comes
    first in the order of the items is raised when no thread works any more.
    """
    waiting = deque(enumerate(items))
    failed: list[tuple[int, BaseException]] = []

    def take() -> None:
        while not failed:
            try:
                number, item = waiting.popleft()
            except IndexError:
                return
            try:
                work(item)
            except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
                failed.append((number, error))

    threads = [threading.Thread(target=take, name="tessera-package") for _ in range(min(workers, len(waiting)) - 1)]
    begun: list[threading.Thread] = []
    try:
        for thread in threads:
            thread.start()
            begun.append(thread)
        take()
    finally:
        for thread in begun:
            thread.join()
    if failed:
        raise min(failed, key=lambda pair: pair[0])[1]
