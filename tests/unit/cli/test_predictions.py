"""How an answer is summed up for a person."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tessera.cli.predictions import described, in_words


def test_scores_become_the_best_classes() -> None:
    """The best first, ties by number, as many as asked for."""
    found = described(np.array([0.5, 2.0, 2.0, -1.0], np.float32), 3)
    assert found["top"] == [{"class": 1, "score": 2.0}, {"class": 2, "score": 2.0}, {"class": 0, "score": 0.5}]
    assert in_words(found) == "1 (2.000)  2 (2.000)  0 (0.500)"
    assert len(described(np.zeros(4, np.float32))["top"]) == 1


def test_a_map_of_scores_becomes_shares_of_the_image() -> None:
    """Each class with the part of the image that it wins; the rest is not listed."""
    scores = np.zeros((3, 2, 4), np.float32)
    scores[2, :, :3] = 1
    found = described(scores)
    assert found == {"shape": [3, 2, 4], "shares": [{"class": 2, "share": 0.75}, {"class": 0, "share": 0.25}]}
    assert in_words(found) == "3x2x4: 2 (75.0%)  0 (25.0%)"
    assert described(scores, 1)["shares"] == [{"class": 2, "share": 0.75}]


def test_a_map_of_whole_numbers_holds_the_classes_themselves() -> None:
    """Also when they do not begin at 0."""
    found = described(np.array([[7, 7], [7, 9]], np.uint8))
    assert found["shares"] == [{"class": 7, "share": 0.75}, {"class": 9, "share": 0.25}]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (np.array([[[0.0, 1.0], [2.0, 3.0]]], np.float32), "1x2x2: 0 to 3, mean 1.5"),
        (np.array(2.5, np.float64), "scalar: 2.5 to 2.5, mean 2.5"),
        (np.array([[np.nan, np.inf]]), "1x2: no finite value"),
        (np.zeros((2, 0, 3)), "2x0x3: no finite value"),
        (np.zeros((3, 2, 2), np.uint8), "3x2x2: 0 to 0, mean 0"),
    ],
)
def test_anything_else_is_told_by_its_range(output: NDArray[Any], words: str) -> None:
    """Denoised images, embeddings with more axes, single numbers."""
    assert in_words(described(output)) == words
