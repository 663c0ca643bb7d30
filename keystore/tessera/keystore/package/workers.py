"""The same work on many things, in a few threads."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_threads(work: Callable[[T], object], items: Iterable[T], workers: int) -> None:
    """Call `work` with every item, in `workers` threads; one means the caller's own, and in order.

    After the first error, in the order of the items, the calls that have begun are finished and no other begins; it is
    raised when no thread works any more.
    """
    if workers == 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="tessera-package") as pool:
        pending = [pool.submit(work, item) for item in items]
        try:
            for call in pending:
                call.result()
        finally:
            pool.shutdown(cancel_futures=True)
