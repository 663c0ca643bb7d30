"""The picture of a training run: loss and measure by epoch, and what keys are worth."""

import io
from typing import Any, Final

from tessera.protect.extras import MissingExtra

METRIC_WORDS: Final = {"accuracy": "accuracy", "mean_iou": "mean intersection over union"}
"""What each measure is called in front of people."""


def draw_curves(report: dict[str, Any]) -> bytes:
    """Return a PNG of a training report. Raises `MissingExtra` when matplotlib is not installed."""
    try:
        # The object interface needs no display and leaves pyplot's global state alone.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "vendor", "to draw training curves") from error
    history, metric = report["history"], report["metric"]
    measured, words = report[metric], METRIC_WORDS[metric]
    epochs = range(1, len(history) + 1)
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, share = figure.subplots(1, 2)
    loss.plot(epochs, [entry["loss"] for entry in history])
    loss.set(title=f"{report['task']}, {report['transform'] or 'no transform'}", xlabel="epoch", ylabel="training loss")
    pixels = "" if metric == "accuracy" else ", share of pixels"
    share.plot(epochs, [entry["train_accuracy"] for entry in history], label=f"training{pixels}")
    share.plot(epochs, [entry[f"test_{metric}"] for entry in history], label="test, right key")
    for name, label, colour in (("wrong_key", "wrong keys (mean)", "C3"), ("plain", "plain inputs", "C2")):
        if measured[name] is not None:
            text = f"test, {label}: {measured[name]:.1%}"
            share.axhline(measured[name], linestyle="--", label=text, color=colour)
    share.set(title=words, xlabel="epoch", ylim=(0, 1.02))
    share.legend(loc="center right")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
