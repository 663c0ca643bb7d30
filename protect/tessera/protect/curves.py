"""The picture of a training run: loss and accuracy by epoch, and what keys are worth."""

import io
from typing import Any

from tessera.protect.extras import MissingExtra


def draw_curves(report: dict[str, Any]) -> bytes:
    """Return a PNG of a training report. Raises `MissingExtra` when matplotlib is not installed."""
    try:
        # The object interface needs no display and leaves pyplot's global state alone.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "vendor", "to draw training curves") from error
    history, accuracy = report["history"], report["accuracy"]
    epochs = range(1, len(history) + 1)
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, share = figure.subplots(1, 2)
    loss.plot(epochs, [entry["loss"] for entry in history])
    loss.set(title=f"{report['task']}, {report['transform'] or 'no transform'}", xlabel="epoch", ylabel="training loss")
    for name, label in (("train_accuracy", "training"), ("test_accuracy", "test, right key")):
        share.plot(epochs, [entry[name] for entry in history], label=label)
    for name, label, colour in (("wrong_key", "wrong keys (mean)", "C3"), ("plain", "plain inputs", "C2")):
        if accuracy[name] is not None:
            text = f"test, {label}: {accuracy[name]:.1%}"
            share.axhline(accuracy[name], linestyle="--", label=text, color=colour)
    share.set(title="accuracy", xlabel="epoch", ylim=(0, 1.02))
    share.legend(loc="center right")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
