"""Whose request starts next: the queue of one model variant, shared fairly among the buyers who wait in it.

Start-time fair queueing (Goyal, Vin & Cheng 1996): each request is given the virtual time at which its buyer's turn
comes, that of the buyer's last request plus its samples, or now for a buyer who was not waiting; the least goes first.
Buyers who all keep requests waiting get the same number of samples, however many or large their requests are; a
buyer alone gets everything; and a newcomer waits for no more than what has started and one turn of the others.

Room is shared by dynamic thresholds (Choudhury & Hahne 1998): a buyer may hold `SHARE` times what is left free, so that
even a queue full of some buyers' requests takes another buyer's first one.
"""

import heapq
import itertools
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

SHARE: Final = 7
"""One buyer alone may hold seven eighths of the room, the next seven eighths of the rest; some always stays free."""

T = TypeVar("T")


class Turns(Generic[T]):
    """Entries that wait, in the order of their turns; `buyer` and `samples` are read off an entry. Not thread-safe."""

    def __init__(self, buyer: Callable[[T], Hashable], samples: Callable[[T], int]) -> None:
        self._buyer, self._samples = buyer, samples
        self._heap: list[tuple[int, int, T]] = []
        self._ends: dict[Hashable, int] = {}
        self._now = 0
        self._arrivals = itertools.count()
        self.waiting_samples = 0

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, entry: T) -> None:
        """Let an entry wait for its turn: behind its buyer's earlier ones, and as far as others' were served."""
        buyer, samples = self._buyer(entry), self._samples(entry)
        start = max(self._now, self._ends.get(buyer, 0))
        self._ends[buyer] = start + samples
        heapq.heappush(self._heap, (start, next(self._arrivals), entry))
        self.waiting_samples += samples

    def first(self) -> T:
        """Return the entry whose turn it is."""
        return self._heap[0][2]

    def take(self) -> T:
        """Take the entry whose turn it is out of the queue."""
        self._now, _, entry = heapq.heappop(self._heap)
        self._left(entry)
        return entry

    def remove(self, entry: T) -> None:
        """Take an entry out that will not be served; the turns of its buyer's later ones stay where they are."""
        place = next(index for index, (_, _, found) in enumerate(self._heap) if found is entry)
        self._heap[place] = self._heap[-1]
        self._heap.pop()
        heapq.heapify(self._heap)
        self._left(entry)

    def clear(self) -> list[T]:
        """Take everything out, and return it in the order of turns."""
        return [self.take() for _ in range(len(self._heap))]

    def _left(self, entry: T) -> None:
        self.waiting_samples -= self._samples(entry)
        if not self._heap:  # nobody waits: all begin anew, and buyers of long ago are forgotten
            self._now = 0
            self._ends.clear()


class Room:
    """Samples in the care of one queue, by buyer: waiting, computing or being recorded."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[Hashable, int] = {}
        self.held = 0

    def admits(self, buyer: Hashable, samples: int) -> bool:
        """Whether `buyer` may bring so many samples in: there is room, and they hold nothing yet or not too much."""
        mine, free = self._held.get(buyer, 0), self._most - self.held - samples
        return free >= 0 and (mine == 0 or mine + samples <= SHARE * free)

    def enter(self, buyer: Hashable, samples: int) -> None:
        """Take note of samples that came in."""
        self._held[buyer] = self._held.get(buyer, 0) + samples
        self.held += samples

    def leave(self, buyer: Hashable, samples: int) -> None:
        """Take note of samples that are settled."""
        self.held -= samples
        self._held[buyer] -= samples
        if self._held[buyer] == 0:
            del self._held[buyer]
