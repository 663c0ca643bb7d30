"""Logging: where lines go, and that nobody is refused because they cannot be written."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
import structlog

from tessera.server.logs import configure_logging


@pytest.fixture(autouse=True)
def _own_configuration() -> Iterator[None]:
    """Give structlog back as it was; it is set up for the whole process."""
    yield
    structlog.reset_defaults()


def test_an_event_is_a_line_of_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One object a line; events below the level are not there."""
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging("info", "json")
        structlog.get_logger("tessera.test").debug("silent")
        structlog.get_logger("tessera.test").info("started", port=7)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["event"], line["level"], line["port"]) for line in lines] == [("started", "info", 7)]


def full_disk() -> TextIO:
    """A file on a disk without room."""
    return open("/dev/full", "w", encoding="utf-8")


def lost_reader() -> TextIO:
    """A pipe whose other end has gone, as when the program that collects the log dies."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


@pytest.mark.parametrize("sink", [full_disk, lost_reader])
def test_a_sink_that_takes_nothing_stops_nobody(sink: Callable[[], TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are answered all the same: a log line that is lost raises nothing, at any level."""
    stream = sink()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging("debug", "json")
    log = structlog.get_logger("tessera.test")
    for write in (log.debug, log.info, log.warning, log.error):
        write("refused", reason="licence-expired")
    with pytest.raises(OSError):  # what could not be written is still in the stream, so the sink was really tried
        stream.close()
    log.info("after the stream was closed")
