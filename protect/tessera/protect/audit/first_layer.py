"""Reading the key in the weights themselves: no label, no pair, nothing but the file and ordinary pictures.

A first layer that takes whole blocks learns, or is fitted to, how the values of a keyed block go together: inverting
its Gram matrix gives their correlations. Neighbours in a picture are alike, so what stands inverted shows by its sign,
and which place is which by laying the correlations over those of ordinary pictures of the same kind. The rest of the
network is needed only to tell a picture from its negative, and a block from one that is turned or mirrored. A few
labelled images then correct what was misread. Tables of `ffx` are read in `value_tables`.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from torch import Tensor, nn

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.climbing import Climb, Desk, descend
from tessera.protect.audit.guesses import Guess, GuessTransform, StepGuess, moves_of, share_right
from tessera.protect.audit.matching import Matrix, Order, matched
from tessera.protect.audit.measure import BATCH_VALUES
from tessera.protect.audit.programs import first_weights
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject, some
from tessera.protect.audit.value_tables import first_tables, tables_read
from tessera.transforms import TransformSpec, block_positions

NAME: Final = "first-layer"
READ, CORRECTED = "read off the weights", "corrected by labelled images"
"""The labels of the rows."""
UNIT: Final = "ordinary pictures, without labels"
PICTURES: Final = 20_000
"""Most pictures whose correlations are taken; by chance, of those that the sample gives to attackers."""
MAX_VALUES: Final = 2**25
"""Most pixel values of them."""
JUDGED: Final = 200
"""Pictures by which the network itself tells a guess from its negative and turns: it is surer of what it knows."""
_ALONE: Final = 0.8
"""Share of a feature's square weight on one place from which on it is that place."""
_RIDGE: Final = 1e-3
"""Share of the mean square weight that keeps the Gram matrix of a layer with few features invertible."""


def run(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Read shuffling and inversion off the first layer; then improve the reading with labelled images."""
    why = unreadable(subject.spec)
    if why:
        return AttackResult(name=NAME, skipped=why)
    block = subject.spec.steps[0].block
    model = subject.victim().to(device)
    meter.expect(1 + budget.evaluations)
    draws = np.random.default_rng(seed)
    pictures = _pictures(sample, seed)
    guesses, hurried = _guesses(model, subject.spec, (subject.shape[0], block, block), pictures, draws, meter)
    if not guesses:
        return AttackResult(name=NAME, skipped="its first layer takes no whole blocks of the key, and has no tables")
    guess = _surest(model, guesses, subject.shape, pictures[:JUDGED], device)
    desk = Desk(subject, sample, budget, seed, device)
    meter.did()
    row = Row(
        label=READ,
        score=desk.judged(guess),
        images=0,
        work=len(pictures),
        unit=UNIT,
        cut_short=hurried,
        note=f"{share_right(guess, desk.truth):.0%} of the places of permutations and masks right",
    )
    climb = Climb(guess, 0, False, [])
    descend(desk, climb, moves_of(guess), budget.evaluations, meter, draws)
    corrected = climb.row(CORRECTED, desk, climb.tried if climb.ended else budget.evaluations)
    return AttackResult(name=NAME, rows=(row, corrected))


def _guesses(
    model: nn.Module,
    spec: TransformSpec,
    shape: tuple[int, int, int],
    pictures: Tensor,
    draws: np.random.Generator,
    meter: Meter,
) -> tuple[list[Guess], bool]:
    """Return what the first layer lets one guess, best first, and whether time was short; none if it cannot be read."""
    if spec.steps[0].kind == "ffx":
        tables = first_tables(model, shape[0] * shape[1] * shape[2])
        return ([] if tables is None else [tables_read(spec.steps[0], shape, tables)]), False
    weight = first_map(model, shape[0], shape[1])
    if weight is None:
        return [], False
    alone = spelled_out(spec, shape, weight)
    guesses, hurried = [alone] if alone is not None else [], False
    if alone is None:
        seen, known = correlations_of(weight), correlations_in(pictures, shape[1])
        guesses, hurried = read_off(spec, shape, seen, known, draws, lambda: meter.over)
    if any(step.kind == "np" for step in spec.steps):
        guesses += [_negative(guess) for guess in guesses]
    return guesses, hurried


def unreadable(spec: TransformSpec) -> str:
    """Return why a spec is not read, or "": it is one shuffling, one inversion, both with one block, or one `ffx`."""
    kinds = [step.kind for step in spec.steps]
    if kinds == ["ffx"]:
        return ""
    if not set(kinds) <= {"shf", "np"}:
        return "it reads shuffling and inversion, and tables only where they are the one step"
    if len(set(kinds)) < len(kinds) or len({step.block for step in spec.steps}) > 1:
        return "it reads one shuffling and one inversion of the same block, and this is a longer stack"
    return ""


def first_map(model: nn.Module, channels: int, block: int) -> NDArray[np.float64] | None:
    """Return what the first layer makes of a block, float64 (features, L), places as (C, M, M); None if it is no such
    layer: its kernel is a block and sees all channels.
    """
    first = next((weight for weight in first_weights(model) if weight.ndim == 4), None)
    if first is None or tuple(first.shape[1:]) != (channels, block, block):
        return None
    return first.detach().cpu().double().reshape(len(first), -1).numpy()


def correlations_of(weight: NDArray[np.float64]) -> Matrix:
    """Return the correlations (L, L) of values for which the features of `weight` (features, L) are uncorrelated."""
    gram = weight.T @ weight
    ridge = _RIDGE * np.trace(gram) / len(gram) if np.linalg.matrix_rank(gram) < len(gram) else 0.0
    return _correlations(np.linalg.inv(gram + (ridge + 1e-12) * np.eye(len(gram))))


def correlations_in(pictures: Tensor, block: int) -> Matrix:
    """Return the correlations (L, L) of the places of a block in uint8 `pictures` (N, C, H, W)."""
    side = pictures.shape[1] * block * block
    patches = F.unfold(pictures.float(), block, stride=block).transpose(1, 2).reshape(-1, side)
    return _correlations(np.cov(patches.double().numpy().T))


def spelled_out(spec: TransformSpec, shape: tuple[int, int, int], weight: NDArray[np.float64]) -> Guess | None:
    """Return the guess that a layer spells out, as a `BlockStem` does: it gives every place of the plain block from one
    place of the keyed one. None for a layer that mixes places.
    """
    size = np.abs(weight)
    taken = size.argmax(axis=1)
    if weight.shape[0] != weight.shape[1] or len(set(taken.tolist())) < len(taken):
        return None
    places = np.arange(len(taken))
    if (size[places, taken] ** 2 < _ALONE * (size**2).sum(axis=1)).any():
        return None
    source, inverted = np.empty_like(taken), np.empty(len(taken), dtype=np.bool_)
    source[taken], inverted[taken] = places, weight[places, taken] < 0
    return _guess_of(spec, shape, source, inverted)


def read_off(
    spec: TransformSpec,
    shape: tuple[int, int, int],
    seen: Matrix,
    known: Matrix,
    draws: np.random.Generator,
    over: Callable[[], bool] = lambda: False,
) -> tuple[list[Guess], bool]:
    """Return guesses whose transforms give correlations `seen` to pictures with `known`, and whether time was short.

    Best first; the others are as good but for turns of the block, and each is up to a negative of all. `shape` is a
    block's (C, M, M), and places of both matrices are in that order.
    """
    kinds = {step.kind for step in spec.steps}
    places = np.arange(len(known), dtype=np.int64)
    sources, hurried = [places], False
    if kinds == {"shf"}:
        sources, hurried = matched(known, seen, shape, draws, over)
    elif "shf" in kinds:
        sources, hurried = matched(np.abs(known), np.abs(seen), shape, draws, over)
    guesses = []
    for source in sources:
        inverted = np.zeros(len(places), dtype=np.bool_)
        if "np" in kinds:
            alike = seen * known[np.ix_(source, source)]
            inverted = np.linalg.eigh(alike)[1][:, -1] < 0
        guesses.append(_guess_of(spec, shape, source, inverted))
    return guesses, hurried


def _guess_of(spec: TransformSpec, shape: tuple[int, int, int], source: Order, inverted: NDArray[np.bool_]) -> Guess:
    """Return the guess of a block whose place q holds what was at `source[q]`, inverted where `inverted[q]`."""
    placed = block_positions(*shape, shape[1])[0]  # the key's own order of a block's places
    rank = np.argsort(placed)
    order, chosen = rank[source[placed]], inverted[placed]
    kinds = [step.kind for step in spec.steps]
    if kinds == ["np", "shf"]:  # the mask lies on places before they are moved
        before = np.zeros_like(chosen)
        before[order] = chosen
        chosen = before
    still = np.arange(len(placed), dtype=np.int64)
    tables = np.broadcast_to(np.arange(256, dtype=np.uint8), (len(placed), 256))
    none = np.zeros(len(placed), dtype=np.bool_)
    return tuple(
        StepGuess(step, order, none, tables) if step.kind == "shf" else StepGuess(step, still, chosen, tables)
        for step in spec.steps
    )


def _negative(guess: Guess) -> Guess:
    return tuple(
        StepGuess(part.step, part.order, ~part.chosen, part.tables) if part.step.kind == "np" else part
        for part in guess
    )


def _surest(
    model: nn.Module, guesses: list[Guess], shape: tuple[int, int, int], pictures: Tensor, device: torch.device
) -> Guess:
    """Return the guess under which the network is surest of its answers; no label is needed."""
    model.eval()
    sure = np.zeros(len(guesses))
    with torch.no_grad():
        for few in torch.split(pictures, max(1, BATCH_VALUES // pictures[0].numel())):
            for number, guess in enumerate(guesses):
                scores = model(GuessTransform(guess, shape, device)(few.to(device)))
                sure[number] += float(scores.float().softmax(dim=1).amax(dim=1).mean()) * len(few)
    return guesses[int(np.argmax(sure))]


def _pictures(sample: Sample, seed: int) -> Tensor:
    images = sample.attacker.images
    values = images[0].numel()
    return some(sample.attacker, max(1, min(PICTURES, MAX_VALUES // values)), seed).images


def _correlations(covariance: Matrix) -> Matrix:
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
    found: Matrix = covariance / np.outer(deviation, deviation)
    return found
