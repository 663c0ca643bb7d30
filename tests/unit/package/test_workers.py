"""Threads that share a list of jobs, and the memory they work in."""

import threading

import numpy as np
import pytest

from tessera.keystore.package.buffers import LARGE_PAGE, fresh_bytes, wipe
from tessera.keystore.package.workers import in_threads


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_item_is_worked_on_once(workers: int) -> None:
    """However many threads there are, each item is done once; one thread is the caller's and takes them in order."""
    done: list[int] = []
    in_threads(done.append, range(40), workers)
    assert sorted(done) == list(range(40))
    if workers == 1:
        assert done == list(range(40))
    in_threads(done.append, [], workers)
    assert len(done) == 40


def test_the_caller_works_beside_the_others() -> None:
    """Two jobs that wait for each other end only if the caller and a new thread each have one."""
    meet, names = threading.Barrier(2, timeout=60), list[str]()

    def job(_number: int) -> None:
        meet.wait()
        names.append(threading.current_thread().name)

    in_threads(job, [1, 2], 2)
    assert sorted(names) == sorted([threading.current_thread().name, "tessera-package"])
    assert not [thread for thread in threading.enumerate() if thread.name == "tessera-package"]


def test_the_first_error_in_order_is_raised() -> None:
    """Both of two failing jobs have begun: the earlier one's error is raised, and nothing else begins."""
    meet, begun = threading.Barrier(2, timeout=60), list[int]()

    def job(number: int) -> None:
        begun.append(number)
        meet.wait()
        raise LookupError(str(number))

    with pytest.raises(LookupError, match="0"):
        in_threads(job, range(10), 2)
    assert sorted(begun) == [0, 1]


@pytest.mark.parametrize("lasting", [True, False])
@pytest.mark.parametrize("size", [0, 1, 1000, LARGE_PAGE // 8, LARGE_PAGE - 1, LARGE_PAGE, 3 * LARGE_PAGE + 5])
def test_fresh_memory_is_writable_and_its_own(size: int, lasting: bool) -> None:
    """Any size is given out to the byte, below and above that of a large page, and shares nothing."""
    first, second = (fresh_bytes(size, lasting=lasting) for _ in range(2))
    assert len(first) == len(second) == size
    np.frombuffer(first, np.uint8)[:] = 7
    np.frombuffer(second, np.uint8)[:] = 9
    assert set(bytes(first)) <= {7}
    wipe(first)
    assert not any(bytes(first))
    assert set(bytes(second)) <= {9}
