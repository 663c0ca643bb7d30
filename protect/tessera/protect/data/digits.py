"""Scikit-learn's scans of handwritten digits: data that comes with a library and needs no file."""

import hashlib
from typing import Final

import numpy as np
import torch

from tessera.protect.data.arrays import ArrayDataset, Split
from tessera.protect.extras import MissingExtra

DIGITS_TEST_COUNT: Final = 500


def digits(test_count: int = DIGITS_TEST_COUNT) -> Split:
    """Return scikit-learn's 1,797 scans of handwritten digits as uint8 (N, 1, 8, 8), split the same way everywhere.

    The scans hold 0 … 16 ink levels v; a pixel is (v * 255 + 8) // 16, so 0 stays 0 and 16 becomes 255. Sample i goes
    to the test set when SHA-256 of the text `tessera/digits/<i>` is among the `test_count` smallest. Raises
    `MissingExtra` when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "demo", "for the digits data") from error
    found = load_digits()
    levels = np.asarray(found.images, dtype=np.int64)
    images = torch.from_numpy(((levels * 255 + 8) // 16).astype(np.uint8))[:, None]
    labels = torch.from_numpy(np.asarray(found.target, dtype=np.int64))
    ranked = sorted(range(len(images)), key=lambda index: hashlib.sha256(f"tessera/digits/{index}".encode()).digest())
    test, train = sorted(ranked[:test_count]), sorted(ranked[test_count:])
    return Split(ArrayDataset(images[train], labels[train]), ArrayDataset(images[test], labels[test]))
