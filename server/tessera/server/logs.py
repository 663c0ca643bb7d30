"""Logging: one event a line on standard error, as JSON or for people; no event holds a secret or an exception's
text."""

import contextlib
import logging
import sys
import traceback
from pathlib import Path
from typing import Final, Literal, TextIO

import structlog

MAX_FRAMES: Final = 12


def frames(error: BaseException) -> list[str]:
    """Return where `error` was raised, innermost last, for a log.

    Neither its message nor any argument of it: both may hold what a peer or a key file held.
    """
    found = traceback.extract_tb(error.__traceback__)
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in found][-MAX_FRAMES:]


class _Sink(structlog.PrintLogger):
    """Writes lines, and drops what cannot be written: a full disk or a reader that has gone must refuse nobody."""

    def msg(self, message: str) -> None:
        """Write one line."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed in this process
            super().msg(message)

    log = debug = info = warn = warning = error = critical = msg


class _Sinks:
    """What structlog makes its loggers with."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, *_: object) -> _Sink:
        return _Sink(self._stream)


def configure_logging(level: str, form: Literal["json", "console"]) -> None:
    """Set the process's logging up; called by `serve` once, never by a library user.

    An event that cannot be written is lost and raises nothing.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=_Sinks(sys.stderr),
        cache_logger_on_first_use=True,
    )
