"""Both implementations of the transforms, for tests of what holds for either."""

import pytest

from tessera.transforms import IMPLEMENTATION

needs_extension = pytest.mark.skipif(IMPLEMENTATION != "compiled", reason="the extension was not built here")


@pytest.fixture(scope="module", params=["numpy", pytest.param("compiled", marks=needs_extension)])
def implementation(request: pytest.FixtureRequest) -> str:
    """Which implementation a test's transforms run with."""
    return str(request.param)
