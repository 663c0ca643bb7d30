"""An exported program as an attacker trains it: the same answers, batch norms that learn, a fresh start."""

import pytest
import torch
from torch import nn

from tessera.keystore.errors import Malformed
from tessera.protect import PixelModel, export_program
from tessera.protect.audit.programs import ProgramModel

IMAGES = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    """Return a small network with everything whose training mode differs, its statistics away from the defaults."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = PixelModel(
            nn.Sequential(
                nn.Conv2d(1, 4, 4, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
                nn.Linear(16, 3),
            ),
            (0.4,), (0.3,),
        )  # fmt: skip
        made(IMAGES)
    return made.eval()


@pytest.fixture(scope="module")
def exported() -> tuple[nn.Module, bytes, dict[str, torch.Tensor]]:
    """Return the network and what it exports to."""
    made = network()
    return made, *export_program(made, IMAGES, max_batch=8)


Exported = tuple[nn.Module, bytes, dict[str, torch.Tensor]]


def test_it_answers_as_the_network_does(exported: Exported) -> None:
    """For bytes, for the same values as floats, and at a batch size that the program was not exported for."""
    made, program, tensors = exported
    model = ProgramModel(program, tensors)
    assert torch.equal(model(IMAGES), made(IMAGES))
    assert torch.equal(model(IMAGES.float()), made(IMAGES))
    many = IMAGES.repeat(5, 1, 1, 1)
    assert torch.allclose(model(many), made(many))


def test_training_mode_is_that_of_the_network(exported: Exported) -> None:
    """Batch norms use and keep the batch's statistics, dropout drops; afterwards eval mode is back."""
    made, program, tensors = exported
    model, twin = ProgramModel(program, tensors), network()
    before = model(IMAGES)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        mine = model.train()(IMAGES)
        torch.manual_seed(1)
        theirs = twin.train()(IMAGES)
    assert torch.allclose(mine, theirs)
    model.eval()
    twin.eval()
    assert torch.allclose(model(IMAGES), twin(IMAGES))
    assert not torch.allclose(model(IMAGES), before)
    assert torch.equal(ProgramModel(program, tensors)(IMAGES), made(IMAGES))  # copies share no weights


def test_a_reset_forgets_the_weights_and_repeats(exported: Exported) -> None:
    """Batch norms are neutral, the rest is drawn from the seed; the mean and deviation of the pixels stay."""
    _, program, tensors = exported
    first, second, other = (ProgramModel(program, tensors) for _ in range(3))
    first.reset(1)
    second.reset(1)
    other.reset(2)
    assert torch.equal(first(IMAGES), second(IMAGES))
    assert not torch.allclose(first(IMAGES), other(IMAGES))
    state = first.graph.state_dict()
    assert torch.equal(state["network.1.running_mean"], torch.zeros(4))
    assert torch.equal(state["network.1.running_var"], torch.ones(4))
    assert torch.equal(state["network.1.weight"], torch.ones(4))
    assert torch.equal(state["mean"], tensors["mean"])
    assert not torch.allclose(state["network.0.weight"], tensors["network.0.weight"])


def test_gradients_reach_the_pixels_and_the_first_weights(exported: Exported) -> None:
    """An adapter in front can be trained, and the first layer's weights are known."""
    _, program, tensors = exported
    model = ProgramModel(program, tensors)
    pixels = IMAGES.float().requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixels).square().sum(), pixels)
    assert float(gradient.abs().sum()) > 0
    assert [tuple(weight.shape) for weight in model.first_weights()] == [(4, 1, 4, 4)]


def test_program_and_weights_that_do_not_belong_together_are_refused(exported: Exported) -> None:
    """A damaged program, and weights of another network."""
    _, program, tensors = exported
    for raw, weights in ((program[:100], tensors), (program, {"x": torch.zeros(1)})):
        with pytest.raises(Malformed, match="cannot be loaded with its weights"):
            ProgramModel(raw, weights)
