"""The reproduction profile gives what the published research code gave, and stays out of the product's way."""

import ast
from pathlib import Path

import pytest
import torch

import tessera.protect
from tessera.protect import reproduction as published
from tessera.transforms import TransformError

ROOT = Path(__file__).resolve().parents[3]
HALVES = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

TABLES = [
    # password, values of 0 … 15 and of 252 … 255, recorded from pyffx 0.3.0 with length 3
    (b"password", [355, 522, 858, 133, 916, 326, 747, 930, 444, 760, 203, 17, 565, 473, 31, 756], [4, 726, 318, 757]),
    (b"secret-key", [631, 720, 749, 911, 709, 261, 207, 409, 50, 680, 465, 250, 635, 313, 394, 70], [641, 84, 8, 152]),
]
PERMUTATIONS = [
    # seed, L, beginning, recorded from torch.randperm on a CPU
    (42, 48, [6, 16, 2, 7, 0, 5, 46, 34, 38, 29, 12, 9]),
    (0, 48, [44, 22, 29, 18, 23, 20, 19, 41, 25, 39, 4, 2]),
    (42, 12, [6, 8, 1, 7, 0, 2, 10, 11, 4, 3, 5, 9]),
    (0, 12, [8, 0, 5, 9, 7, 4, 2, 10, 3, 1, 11, 6]),
]


def normalised(count: int, seed: int = 0) -> torch.Tensor:
    """Return random images as the published loader gives them: bytes over 255, normalised."""
    values = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return (values / 255 - 0.5) / 0.25


@pytest.mark.parametrize(("password", "first", "last"), TABLES)
def test_tables(password: bytes, first: list[int], last: list[int]) -> None:
    """The tables are pyffx's, whose largest value divides everything."""
    table = published.reproduced_table(password)
    assert table[:16].tolist() == first
    assert table[252:].tolist() == last
    assert int(table.max()) == 996
    assert len(set(table.tolist())) == 256


def test_pyffx_documentation_vector() -> None:
    """The example in pyffx's documentation holds."""
    assert published.pyffx_integer(b"secret-key", 1234, 4) == 6103
    with pytest.raises(TransformError):
        published.pyffx_integer(b"secret-key", 12345, 4)


@pytest.mark.parametrize(("seed", "length", "beginning"), PERMUTATIONS)
def test_permutations(seed: int, length: int, beginning: list[int]) -> None:
    """Keys are torch's own permutations, and asking for one leaves torch's generator alone."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert published.reproduced_permutation(seed, length)[: len(beginning)].tolist() == beginning
    assert torch.equal(torch.get_rng_state(), before)


def test_binary_key() -> None:
    """The rule is strictly above half, so one position less than half is set."""
    mask = published.reproduced_mask(42, 48)
    assert mask.nonzero().flatten()[:8].tolist() == [6, 7, 8, 9, 15, 17, 18, 19]
    assert int(mask.sum()) == 23


def test_shuffling_moves_normalised_values() -> None:
    """y[i] = x[p[i]] in each block, row, column, channel, on the values as they are."""
    x = normalised(2)
    y = published.ReproducedShf(42, 4, *HALVES)(x)
    order = published.reproduced_permutation(42, 48).tolist()
    for top, left in ((0, 0), (4, 0), (4, 4)):
        source = [x[1, c, top + r, left + k] for r in range(4) for k in range(4) for c in range(3)]
        found = [y[1, c, top + r, left + k] for r in range(4) for k in range(4) for c in range(3)]
        assert found == [source[place] for place in order]


def test_negative_positive_works_between_zero_and_one() -> None:
    """1 - v on pixels is -v on values normalised by one half; positions outside the key stay."""
    x = normalised(2)
    y = published.ReproducedNp(42, 4, *HALVES)(x)
    mask = published.reproduced_mask(42, 48).reshape(4, 4, 3).permute(2, 0, 1).repeat(1, 2, 2)
    torch.testing.assert_close(y, torch.where(mask, -x, x))


def test_ffx_divides_everything_and_loses() -> None:
    """Masked positions take the table; all are floored and divided by its maximum, and pixels are lost."""
    x = normalised(2)
    pixels = (y := published.ReproducedFfx(42, 4, *HALVES)(x)) * 0.25 + 0.5
    values = ((x * 0.25 + 0.5).clamp(0, 1) * 255).long()
    table = published.reproduced_table()
    mask = published.reproduced_mask(42, 48).reshape(4, 4, 3).permute(2, 0, 1).repeat(1, 2, 2)
    torch.testing.assert_close(pixels, torch.where(mask, table[values], values) / 996)
    assert float(pixels[:, ~mask].max()) < 0.257
    outside = torch.floor(y.mul(0.25).add(0.5) * 255)[:, ~mask]
    assert len(set(outside.flatten().tolist())) < 70 < len(set(values.flatten().tolist()))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8),
        torch.zeros(1, 1, 8, 8),
        torch.zeros(1, 3, 6, 8),
    ],
)
def test_refusals(x: torch.Tensor) -> None:
    """Bytes, other ranks and shapes that blocks do not divide are refused."""
    for kind in (published.ReproducedShf, published.ReproducedNp, published.ReproducedFfx):
        with pytest.raises(TransformError):
            kind(42, 4, *HALVES)(x)


def test_nobody_uses_it_by_accident() -> None:
    """It is not exported, no room imports it, and its first line says what it is for."""
    assert not [name for name in tessera.protect.__all__ if "eproduc" in name]
    assert "NEVER for a product" in (published.__doc__ or "").splitlines()[0]
    importing = []
    for room in ("client", "keystore", "transforms", "server", "protect", "cli"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
                module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
                if any("reproduction" in f"{module}.{name}" for name in names):
                    importing.append(str(path))
    assert importing == []
