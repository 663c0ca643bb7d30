"""Taking a model apart and putting it together: bits come back, tiers grow, decoys tell nothing, masks invert."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.keystore.package.patches import decode_patch
from tessera.protect.selective import (
    DECOYS,
    DecoySeed,
    Layer,
    Normal,
    Plan,
    SecretStream,
    apply,
    auc,
    baseline_scores,
    choose,
    layers_of,
    localise,
    make_decoys,
    make_plan,
    mask,
    mask_error,
    mean_auc,
    same_bits,
    split,
    unmask,
)

SEED = DecoySeed(bytes(range(32)))
FRACTIONS = (0.0, 0.4, 0.7, 1.0)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return a network with a convolution, a 1x1 and a linear layer, in `dtype`."""
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8 * 16, 6))
    for value in model.parameters():
        value.data = torch.randn(value.shape, generator=draws)
    return model.to(dtype)


def plan_for(model: nn.Module, budget: float = 0.4, fractions: tuple[float, ...] = FRACTIONS) -> Plan:
    """Return a plan over all layers of `model`."""
    layers = layers_of(model)
    scores = baseline_scores(model.state_dict(), layers, "descend")
    return make_plan(layers, layers, scores, budget=budget, fractions=fractions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("decoys", DECOYS)
def test_the_top_tier_is_the_model_to_the_bit(dtype: torch.dtype, decoys: str) -> None:
    """In every dtype, negative zero included, through the bytes that packages carry; lower tiers are not."""
    model = network(dtype)
    with torch.no_grad():
        model.get_parameter("0.weight")[:, :, 0, 0] = -0.0
    state, plan = model.state_dict(), plan_for(model)
    parts = split(state, plan, decoys, seed=SEED)  # type: ignore[arg-type]
    increments = [decode_patch(patch) for patch in parts.patches]
    assert same_bits(apply(parts.public, increments, 3), state)
    assert [same_bits(apply(parts.public, increments, tier), state) for tier in range(3)] == [False] * 3
    assert same_bits(apply(parts.public, increments, 0), parts.public)
    assert not increments[0]


def test_each_tier_has_its_units_and_no_others() -> None:
    """After tier t exactly the units of E_t are true, and what was not selected never changed."""
    model = network()
    state, plan = model.state_dict(), plan_for(model)
    parts = split(state, plan, seed=SEED)
    for tier in range(plan.tiers):
        found = apply(parts.public, parts.increments, tier)
        for layer in plan.layers:
            same = (layer.rows(found[layer.weight]) == layer.rows(state[layer.weight])).all(dim=1)
            secret = np.setdiff1d(plan.selected()[layer.weight], plan.units(tier).get(layer.weight, []))
            assert np.flatnonzero(~same.numpy()).tolist() == secret.tolist()
    assert same_bits({"0.bias": parts.public["0.bias"]}, {"0.bias": state["0.bias"]})


def test_the_caller_keeps_its_tensors() -> None:
    """Neither taking apart nor putting together writes into what was given."""
    model = network()
    state, plan = {name: value.clone() for name, value in model.state_dict().items()}, plan_for(model)
    parts = split(model.state_dict(), plan)
    public = {name: value.clone() for name, value in parts.public.items()}
    apply(parts.public, parts.increments, 3)
    assert same_bits(state, model.state_dict())
    assert same_bits(public, parts.public)


def test_an_increment_for_another_model_is_refused() -> None:
    """Another name, dtype or size, and a tier that is not there, are typed errors."""
    plan = plan_for(network())
    parts = split(network().state_dict(), plan)
    for other in (
        {},
        {name: value.double() for name, value in parts.public.items()},
        {**parts.public, "0.weight": torch.zeros(1, 1, 3, 3)},
    ):
        with pytest.raises(Malformed):
            apply(other, parts.increments, 3)
    for tier in (-1, 4):
        with pytest.raises(ApiMisuse, match="tiers 0 to 3"):
            apply(parts.public, parts.increments, tier)


def test_weights_that_are_not_finite_are_refused() -> None:
    """NaN in a chosen layer stops the split before anything is made."""
    model = network()
    plan = plan_for(model)
    with torch.no_grad():
        model.get_parameter("4.weight")[0, 0] = torch.nan
    with pytest.raises(Malformed, match=r"4\.weight"):
        split(model.state_dict(), plan)


@pytest.mark.parametrize("kind", DECOYS)
def test_decoys_follow_their_seed_alone(kind: str) -> None:
    """Same seed, same decoys; another seed or layer, others; without a seed they are fresh every time."""
    model = network()
    state, plan = model.state_dict(), plan_for(model)

    def public(seed: DecoySeed | None) -> dict[str, Tensor]:
        return split(state, plan, kind, seed=seed).public  # type: ignore[arg-type]

    assert same_bits(public(SEED), public(SEED))
    assert not same_bits(public(SEED), public(DecoySeed(bytes(32))))
    assert not same_bits(public(None), public(None))


def test_kernel_decoys_tell_nothing_about_the_secret_values() -> None:
    """They are a function of the public units: other secret values, same public file."""
    model = network()
    plan = plan_for(model)
    first = split(model.state_dict(), plan, seed=SEED).public
    with torch.no_grad():
        for layer in plan.layers:
            weight = dict(model.named_parameters())[layer.weight]
            layer.rows(weight)[torch.from_numpy(plan.selected()[layer.weight])] *= -3.5
    assert same_bits(first, split(model.state_dict(), plan, seed=SEED).public)


def test_a_layer_that_is_encrypted_whole() -> None:
    """Without public units decoys are what a fresh layer would hold, of finite and sensible size."""
    layer = Layer("w", "conv", (64, 16, 3, 3))
    rows = np.random.default_rng(0).standard_normal((layer.count, 9))
    made = make_decoys("kernel", layer, rows, np.ones(layer.count, dtype=bool), SEED)
    assert made.std() == pytest.approx((2 / 144) ** 0.5, rel=0.02)
    with pytest.raises(ApiMisuse):
        make_decoys("kernel", layer, rows[:5], np.ones(5, dtype=bool), SEED)
    with pytest.raises(ApiMisuse, match="no decoys"):
        make_decoys("zero", layer, rows, np.ones(layer.count, dtype=bool), SEED)  # type: ignore[arg-type]


def test_the_stream_is_uniform_and_bound_to_seed_and_label() -> None:
    """Uniforms in the open interval with the right moments, normals too, integers in range; labels separate."""
    stream = SecretStream(SEED, "a")
    uniforms, normals = stream.uniforms(50_000), stream.normals(50_000)
    assert 0 < uniforms.min() < uniforms.max() < 1
    assert uniforms.mean() == pytest.approx(0.5, abs=0.005)
    assert normals.mean() == pytest.approx(0, abs=0.02)
    assert normals.std() == pytest.approx(1, abs=0.02)
    assert set(stream.integers(1000, 3)) == {0, 1, 2}
    assert not np.array_equal(SecretStream(SEED, "b").uniforms(4), uniforms[:4])
    assert np.array_equal(SecretStream(SEED, "a").uniforms(4), uniforms[:4])
    assert not np.array_equal(stream.uniforms(4), uniforms[:4])


def smooth_model(side: int = 3, width: int = 64) -> tuple[Mapping[str, Tensor], Plan]:
    """Return a layer of smooth, heavy-tailed kernels as training makes them, and a plan for 8 % of them."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(side**2, 2)
    covariance = np.exp(-((grid[:, None] - grid[None]) ** 2).sum(-1) / 4) + 0.02 * np.eye(side**2)
    sizes = np.exp(rng.normal(0, 0.8, (width**2, 1)))
    kernels = rng.multivariate_normal(np.zeros(side**2), covariance, width**2) * sizes
    layer = Layer("w", "conv", (width, width, side, side))
    state = {"w": torch.from_numpy(kernels).reshape(layer.shape).float()}
    scores = {"w": torch.from_numpy(np.linalg.norm(kernels, axis=1))}
    return state, make_plan([layer], [layer], scores, budget=0.08, fractions=(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("side", "width"), [(3, 64), (3, 32), (5, 32)])
def test_statistics_find_the_papers_decoys_and_not_ours(side: int, width: int) -> None:
    """Smoothness and residual tests: AUC above 0.7 for independent normals, at most 0.6 for kernel decoys; likeness to
    other units gives ours away neither, whatever the kernel's size and however few units there are.
    """
    state, plan = smooth_model(side, width)
    paper = mean_auc(localise(split(state, plan, "normal", seed=SEED).public, plan), plan)
    ours = mean_auc(localise(split(state, plan, "kernel", seed=SEED).public, plan), plan)
    for test in ("smoothness", "residual"):
        assert paper[test] > 0.7
    for test in ("smoothness", "residual", "shape", "neighbour", "norm", "twin"):
        assert 0.4 <= ours[test] <= 0.6
    assert mean_auc(localise(state, plan), plan)["norm"] > 0.95


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_decoy_has_the_norm_of_no_other_unit(side: int) -> None:
    """A norm copied from a public unit would be the only one in the layer that two units have; of single weights too.

    The test of twins finds such decoys.
    """
    state, plan = smooth_model(side)
    (layer,), selected = plan.layers, plan.selected()["w"]
    public = split(state, plan, seed=SEED).public["w"]
    assert 0.4 <= mean_auc(localise({"w": public}, plan), plan)["twin"] <= 0.6
    rows = layer.rows(public).double().clone()
    copied = torch.from_numpy(np.setdiff1d(np.arange(layer.count), selected)[: len(selected)])
    chosen = torch.from_numpy(selected)
    rows[chosen] *= (rows[copied].norm(dim=1) / rows[chosen].norm(dim=1))[:, None]
    assert mean_auc(localise({"w": rows.float()}, plan), plan)["twin"] > 0.9


COARSE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "bf16": lambda weight: weight.bfloat16().float(),
    "fp16": lambda weight: weight.half().float(),
    "grid": lambda weight: (weight / weight.abs().max() * 127).round() * (weight.abs().max() / 127),
    "fixed-point": lambda weight: (weight * 16).round().clamp(-127, 127) / 16,
    "pruned": lambda weight: weight * (torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) > 0.6),
}


@pytest.mark.parametrize("how", COARSE)
def test_decoys_are_as_coarse_as_their_layer(how: str) -> None:
    """Among weights that were rounded, quantised or pruned, decoys of full precision would tell at a glance."""
    state, plan = smooth_model()
    coarse = {"w": COARSE[how](state["w"])}
    parts = split(coarse, plan, seed=SEED)
    (layer,), selected = plan.layers, plan.selected()["w"]
    made = layer.rows(parts.public["w"])[torch.from_numpy(selected)]
    assert same_bits(apply(parts.public, parts.increments, 1), coarse)
    if how == "pruned":
        assert float((made == 0).float().mean()) == pytest.approx(0.6, abs=0.05)
    elif how in ("bf16", "fp16"):
        assert torch.equal(COARSE[how](made), made)
    else:
        assert set(made.reshape(-1).tolist()) <= set(coarse["w"].reshape(-1).tolist())
    assert 0.35 <= mean_auc(localise(parts.public, plan), plan)["grain"] <= 0.65
    fine = parts.public["w"].clone()
    layer.rows(fine)[torch.from_numpy(selected)] += 1e-5 * torch.rand(made.shape)
    assert mean_auc(localise({"w": fine}, plan), plan)["grain"] > 0.9


def test_localisation_where_a_test_does_not_apply() -> None:
    """Single weights have no smoothness; layers encrypted whole or not at all are left out."""
    model = network()
    layers = layers_of(model)
    scores = baseline_scores(model.state_dict(), layers, "descend")
    plan = make_plan(layers, choose(layers, ["2"]), scores, budget=0.5, fractions=(0, 1))
    found = localise(split(model.state_dict(), plan).public, plan)
    assert found["2.weight"].keys() == {"norm", "twin", "channel", "place"}
    whole = make_plan(layers, choose(layers, ["2"]), scores, budget=1.0, fractions=(0, 1))
    assert localise(model.state_dict(), whole) == {}


def test_auc() -> None:
    """1 for a perfect score, 0.5 for a constant one, and both classes are needed."""
    encrypted = np.array([True, False, True, False])
    assert auc(np.array([2.0, 1, 3, 0]), encrypted) == 1
    assert auc(np.zeros(4), encrypted) == 0.5
    with pytest.raises(ApiMisuse):
        auc(np.zeros(4), np.zeros(4, dtype=bool))


def test_the_mask_keeps_the_distribution_and_inverts() -> None:
    """Masked weights are distributed as their law, come back to float error, and not under another key."""
    weights = np.random.default_rng(0).normal(0.02, 0.1, (400, 9))
    law = Normal.of(weights)
    masked = mask(weights, law, SEED, "w")
    assert masked.mean() == pytest.approx(law.mean, abs=0.01)
    assert masked.std() == pytest.approx(law.spread, rel=0.05)
    assert abs(np.corrcoef(masked.reshape(-1), weights.reshape(-1))[0, 1]) < 0.06
    assert np.abs(unmask(masked, law, SEED, "w") - weights).max() < 1e-10
    assert np.abs(unmask(masked, law, DecoySeed(bytes(32)), "w") - weights).max() > 0.1
    assert np.abs(unmask(masked, law, SEED, "v") - weights).max() > 0.1
    error = mask_error(weights, SEED)
    assert error["median"] < 1e-14
    assert error["max"] < error["float32_max"]
    with pytest.raises(Malformed):
        Normal.of(np.ones((3, 3)))
