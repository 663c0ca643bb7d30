"""Logging: one event a line on standard error, as JSON or for people; no event holds a secret or an exception's
text."""

import logging
import sys
from typing import Literal

import structlog


def configure_logging(level: str, form: Literal["json", "console"]) -> None:
    """Set the process's logging up; called by `serve` once, never by a library user."""
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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
