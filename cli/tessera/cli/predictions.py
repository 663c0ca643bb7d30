"""What a model's output says in a few numbers: classes and scores, each class's share of an image, or a range."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

DEFAULT_SCORES, DEFAULT_SHARES = 1, 8


def described(output: "Array", top: int | None = None) -> dict[str, Any]:
    """Return the summary of one sample's output as JSON values; `top` bounds the classes listed (one score, 8 shares).

    - (classes,): `top`, the best classes with their scores.
    - (classes, H, W), two classes or more: `shares`, how much of the image each class wins, the largest first.
    - (H, W) of whole numbers: `shares` of the values, taken as classes.
    - anything else: `minimum`, `mean` and `maximum`.

    `shape` is always there.
    """
    import numpy as np

    found: dict[str, Any] = {"shape": list(output.shape)}
    whole = output.dtype.kind in "bui"
    if output.ndim == 1 and output.size:
        return found | {"top": _best(output, top or DEFAULT_SCORES)}
    if output.ndim == 3 and output.shape[0] > 1 and output[0].size and not whole:
        return found | {"shares": _shares(np.argmax(output, axis=0), top or DEFAULT_SHARES)}
    if output.ndim == 2 and whole and output.size:
        return found | {"shares": _shares(output, top or DEFAULT_SHARES)}
    return found | _range(output)


def in_words(found: dict[str, Any]) -> str:
    """Return a summary as one line for a person."""
    if "top" in found:
        return "  ".join(f"{one['class']} ({one['score']:.3f})" for one in found["top"])
    shape = "x".join(str(axis) for axis in found["shape"]) or "scalar"
    if "shares" in found:
        shares = "  ".join(f"{one['class']} ({one['share']:.1%})" for one in found["shares"])
        return f"{shape}: {shares}"
    if found["mean"] is None:
        return f"{shape}: no finite value"
    return f"{shape}: {found['minimum']:.4g} to {found['maximum']:.4g}, mean {found['mean']:.4g}"


def _best(scores: "Array", top: int) -> list[dict[str, Any]]:
    import numpy as np

    ranked = np.argsort(-scores.astype(np.float64), kind="stable")[:top]
    return [{"class": int(one), "score": round(float(scores[one]), 6)} for one in ranked]


def _shares(classes: "Array", top: int) -> list[dict[str, Any]]:
    import numpy as np

    values, counts = np.unique(classes, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:top]
    return [{"class": int(values[at]), "share": round(float(counts[at] / classes.size), 6)} for at in order]


def _range(output: "Array") -> dict[str, Any]:
    import numpy as np

    finite = output[np.isfinite(output)]
    if not finite.size:
        return {"minimum": None, "mean": None, "maximum": None}
    numbers = finite.astype(np.float64)
    return {
        "minimum": round(float(numbers.min()), 6),
        "mean": round(float(numbers.mean()), 6),
        "maximum": round(float(numbers.max()), 6),
    }
