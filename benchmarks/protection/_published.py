"""What the papers' own code reached, to stand beside what is measured here.

Test accuracy on CIFAR-10 with the right key, ResNet-18, 200 epochs: the logs of the authors' implementation of the same
three transforms (github.com/fugokidi/block_transform, cifar10/experiments; MaungMaung & Kiya, IEEE TIFS 2021 and APSIPA
TSIP 10 e10, 2021). Their accuracies with wrong keys are not published.
"""

from typing import Final

UNPROTECTED: Final = 0.9543

RIGHT_KEY: Final[dict[str, dict[int, float]]] = {
    "shf": {2: 0.9477, 4: 0.9256, 8: 0.8640, 16: 0.7725},
    "np": {2: 0.9532, 4: 0.9341, 8: 0.9154, 16: 0.9268},
    "ffx": {2: 0.9379, 4: 0.9227, 8: 0.9199, 16: 0.9139},
}


def published_loss(kind: str, block: int) -> float | None:
    """Return how much accuracy the transform cost them, 0 … 1; None where they published nothing."""
    found = RIGHT_KEY.get(kind, {}).get(block)
    return None if found is None else round(UNPROTECTED - found, 4)
