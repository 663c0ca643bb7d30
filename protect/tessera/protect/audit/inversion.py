"""Finding a perturbation that unlocks an input-sensitive network by following its gradient, and no key.

One perturbation for all images is optimised on a few labelled ones, after Neural Cleanse (Wang et al., S&P 2019) and
universal adversarial perturbations (Moosavi-Dezfooli et al., CVPR 2017). Where the true pattern is one for all images
this finds a stand-in for it; where it depends on the image there is no such thing, only what works a little on many.
"""

import functools
from typing import Final

import torch
from torch import Tensor, nn

from tessera.protect.audit.adapters import lets_gradients_out
from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.measure import TRAINING_BATCH, loss_of, reached
from tessera.protect.audit.result import NO_TIME, AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject, some
from tessera.protect.evaluate import LabelledImages
from tessera.transforms import Step

NAME: Final = "inversion"
IMAGES: Final = (10, 100, 1000)
"""How many labelled images the attacker has, row by row."""
WIDEST: Final = 2.0
"""The largest change of a value, in epsilons: the attacker need not keep to the true strength."""
RATE: Final = 0.1
"""Of Adam, in epsilons."""


def run(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Optimise a perturbation of whole images and one of repeated blocks with each number of images; keep the better.

    The attacker knows the transform's public spec, so its block and epsilon, and judges the two on their own images.
    """
    meter.expect(2 * budget.steps * len(IMAGES))
    step = subject.spec.steps[0]
    rows = []
    for at, count in enumerate(IMAGES):
        own = some(sample.attacker, count, seed)
        if len(own) < count:
            rows.append(_row(count, None, 0, budget, f"not run: the attacker's part holds {len(own)} images"))
            continue
        model = _frozen(subject, device)
        if not lets_gradients_out(model, own.images.to(device)):
            rows.append(_row(count, None, 0, budget, "not run: the model lets no gradient out to its pixels"))
            continue
        best, done = _better(subject, model, own, step, budget, meter.part(len(IMAGES) - at), seed, device)
        score = reached(model, sample.held_out, device, functools.partial(added, perturbation=best)) if done else None
        rows.append(_row(count, score, done, budget, "" if done else NO_TIME))
    return AttackResult(name=NAME, rows=tuple(rows), details={"widest_change": WIDEST * step.epsilon})


def added(x: Tensor, perturbation: Tensor) -> Tensor:
    """Return uint8 `x` (N, C, H, W) plus a float perturbation (C, H, W), rounded and clipped to a byte."""
    return (x.to(torch.float32) + perturbation).round().clamp(0, 255).to(torch.uint8)


def _frozen(subject: Subject, device: torch.device) -> nn.Module:
    model = subject.victim().to(device).eval()
    for weight in model.parameters():
        weight.requires_grad_(False)
    return model


def _better(
    subject: Subject,
    model: nn.Module,
    own: LabelledImages,
    step: Step,
    budget: Budget,
    meter: Meter,
    seed: int,
    device: torch.device,
) -> tuple[Tensor, int]:
    """Return the better perturbation (C, H, W), by the attacker's own images, and the steps that were taken."""
    found: list[tuple[float, Tensor]] = []
    total = 0
    channels, height, width = subject.shape
    for number, shape in enumerate([(channels, step.block, step.block), subject.shape]):
        start = torch.zeros(shape, device=device)
        perturbation, done = optimised(
            model, own, start, step.epsilon, budget.steps, meter.part(2 - number), seed, device
        )
        total += done
        whole = perturbation.repeat(1, height // shape[1], width // shape[2])
        found.append((reached(model, own, device, functools.partial(added, perturbation=whole)), whole))
    return max(found, key=lambda pair: pair[0])[1], total


def optimised(
    model: nn.Module,
    own: LabelledImages,
    start: Tensor,
    epsilon: int,
    steps: int,
    meter: Meter,
    seed: int,
    device: torch.device,
) -> tuple[Tensor, int]:
    """Return the perturbation of the form of `start`, repeated over the image, that lowers the loss, and the steps."""
    perturbation = start.clone().requires_grad_()
    learner = torch.optim.Adam([perturbation], lr=RATE * epsilon)
    draws = torch.Generator().manual_seed(seed)
    images, labels = own.images.to(device), own.labels.to(device)
    height, width = images.shape[2:]
    repeats = (1, height // start.shape[1], width // start.shape[2])
    for step in range(steps):
        if meter.over:
            return perturbation.detach(), step
        chosen = torch.randint(len(own), (min(len(own), TRAINING_BATCH),), generator=draws)
        pixels = (images[chosen].to(torch.float32) + perturbation.repeat(*repeats)).clamp(0, 255)
        learner.zero_grad()
        torch.autograd.backward(loss_of(model(pixels), labels[chosen], own).mean())
        learner.step()
        with torch.no_grad():
            perturbation.clamp_(-WIDEST * epsilon, WIDEST * epsilon)
        meter.did()
    return perturbation.detach(), steps


def _row(count: int, score: float | None, done: int, budget: Budget, note: str) -> Row:
    return Row(
        label=f"{count} labelled images",
        score=score,
        at=count,
        images=count,
        work=done,
        unit="optimiser steps",
        cut_short=score is not None and done < 2 * budget.steps,
        note=note,
    )
