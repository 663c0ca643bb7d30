"""Turns among buyers: alone one has everything, together each as much, and a newcomer waits for no backlog."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tessera.server.engine.turns import SHARE, Room, Turns


@dataclass(eq=False)
class Entry:
    """A request."""

    buyer: str
    samples: int
    number: int = 0


def turns() -> Turns[Entry]:
    """Return an empty queue."""
    return Turns(lambda entry: entry.buyer, lambda entry: entry.samples)


SIZES = st.lists(st.integers(1, 64), min_size=1, max_size=40)
ARRIVALS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 64)), min_size=1, max_size=60)


@given(SIZES)
def test_a_buyer_alone_is_served_in_order_of_arrival(sizes: list[int]) -> None:
    """As in a plain queue."""
    queue = turns()
    entries = [Entry("a", size) for size in sizes]
    for entry in entries:
        queue.add(entry)
    assert queue.waiting_samples == sum(sizes)
    assert queue.clear() == entries
    assert not queue
    assert queue.waiting_samples == 0


@given(ARRIVALS, st.data())
def test_each_buyers_requests_keep_their_order_and_none_is_lost(
    arrivals: list[tuple[str, int]], data: st.DataObject
) -> None:
    """Whatever is added, taken and taken back in between."""
    queue = turns()
    waiting: list[Entry] = []
    served: list[Entry] = []
    for number, (buyer, samples) in enumerate(arrivals):
        entry = Entry(buyer, samples, number)
        queue.add(entry)
        waiting.append(entry)
        if data.draw(st.booleans()):
            assert queue.first() is queue.first()
            served.append(queue.take())
            waiting.remove(served[-1])
        goes: bool = data.draw(st.booleans())
        if waiting and goes:
            gone = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            queue.remove(gone)
    assert queue.waiting_samples == sum(entry.samples for entry in waiting)
    served += queue.clear()
    assert len(served) == len({entry.number for entry in served})
    assert {entry.number for entry in waiting} <= {entry.number for entry in served}
    for buyer in "abc":
        numbers = [entry.number for entry in served if entry.buyer == buyer]
        assert numbers == sorted(numbers)


@given(SIZES, SIZES)
def test_buyers_who_both_wait_get_as_many_samples(first: list[int], second: list[int]) -> None:
    """While both have requests waiting, what each was given differs by no more than one request of each."""
    queue, given_samples = turns(), {"a": 0, "b": 0}
    left = {"a": len(first), "b": len(second)}
    for buyer, sizes in (("a", first), ("b", second)):
        for size in sizes:
            queue.add(Entry(buyer, size))
    while left["a"] and left["b"]:
        entry = queue.take()
        given_samples[entry.buyer] += entry.samples
        left[entry.buyer] -= 1
        assert abs(given_samples["a"] - given_samples["b"]) <= max(first) + max(second)


@given(SIZES, st.integers(1, 64), st.integers(0, 39))
def test_a_newcomer_waits_for_no_backlog(backlog: list[int], size: int, already: int) -> None:
    """At most one request starts before that of a buyer who comes to a queue full of another's."""
    queue = turns()
    for samples in backlog:
        queue.add(Entry("a", samples))
    for _ in range(min(already, len(backlog) - 1)):
        queue.take()
    newcomer = Entry("b", size)
    queue.add(newcomer)
    assert newcomer in (queue.take(), queue.take())


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 8), st.booleans()), max_size=300))
def test_room_is_bounded_and_never_one_buyers_alone(steps: list[tuple[str, int, bool]]) -> None:
    """However greedy some are, the bound holds, and who holds something stays below their share of what is free."""
    room, most, held = Room(64), 64, dict.fromkeys("abcd", 0)
    taken: list[tuple[str, int]] = []
    for buyer, samples, leaves in steps:
        if leaves and taken:
            done = taken.pop(0)
            room.leave(*done)
            held[done[0]] -= done[1]
        if room.admits(buyer, samples):
            first = held[buyer] == 0
            room.enter(buyer, samples)
            taken.append((buyer, samples))
            held[buyer] += samples
            assert first or held[buyer] <= SHARE * (most - sum(held.values()))
        assert room.held == sum(held.values()) <= most


def test_a_greedy_buyer_leaves_an_eighth() -> None:
    """The next one an eighth of that, and so on: a third buyer's first request still finds room."""
    room = Room(4096)
    for buyer, most in (("a", 3584), ("b", 448)):
        while room.admits(buyer, 1):
            room.enter(buyer, 1)
        assert room._held[buyer] == most
    assert room.admits("c", 64)
    assert not room.admits("c", 65)
