"""Nearly right keys differ from the right one in exactly the share that was asked for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support import keys
from tessera.keystore.errors import ApiMisuse
from tessera.protect.near_keys import NearKeyTransform
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform, TransformSpec

SHAPE = (3, 8, 8)
IMAGES = torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def wrong_values(text: str, share: float, seed: int = 0) -> float:
    """Return the share of values that a nearly right key makes different from the right one's."""
    spec = TransformSpec.parse_text(text)
    right = TorchTransform(Transform(spec, keys.INPUT_KEY, *SHAPE))(IMAGES)
    near = NearKeyTransform(spec, keys.INPUT_KEY, SHAPE, share, seed=seed)(IMAGES)
    return float((right != near).double().mean())


@pytest.mark.parametrize(("text", "places"), [("shf:4", 48), ("np:4", 48), ("ffx:4", 48), ("np:2", 12)])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 1.0])
def test_the_share_of_wrong_places_is_the_one_asked_for(text: str, places: int, share: float) -> None:
    """An inverted byte always differs; a moved or replaced one nearly always."""
    expected = max(1, round(share * places)) / places
    found = wrong_values(text, share)
    if text.startswith("np"):
        assert found == pytest.approx(expected)
    else:
        assert 0.9 * expected <= found <= expected + 1e-9


@given(st.sampled_from(["shf:4", "np:2", "ffx:4", "ffx:4:positions", "shf:4,np:2,ffx:4"]), st.integers(0, 2**32 - 1))
def test_a_place_or_two_at_least_is_wrong_and_seeds_repeat(text: str, seed: int) -> None:
    """However small the share, the key is not the right one; one seed always gives the same wrong places."""
    assert 0 < wrong_values(text, 1e-6, seed) == wrong_values(text, 1e-6, seed) < 0.6


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    """Nothing wrong would be the right key."""
    with pytest.raises(ApiMisuse, match="share of a key"):
        NearKeyTransform(TransformSpec.parse_text("np:4"), keys.INPUT_KEY, SHAPE, share, seed=0)
