"""What the benchmarks share."""

import json
from pathlib import Path
from typing import Any

from benchmarks._harness import unknown_rows, with_kept


def test_rows_that_were_not_run_are_kept_from_the_recorded_result(tmp_path: Path) -> None:
    """A measured row stays as it is, one that was not run comes from the record with its commit, else stays not run."""
    path = tmp_path / "result.json"
    now: list[dict[str, Any]] = [
        {"row": "a", "status": "measured", "x": 2},
        {"row": "b", "status": "not run"},
        {"row": "c", "label": "not run"},
    ]
    assert with_kept(now, path) == now
    recorded = [
        {"row": "a", "status": "measured", "x": 1},
        {"row": "b", "status": "measured", "x": 3},
        {"row": "c", "label": "first", "kept_from": "older"},
        {"row": "c", "label": "second"},
        {"row": "d", "status": "not run"},
    ]
    path.write_text(json.dumps({"commit": "abc", "rows": recorded}), encoding="utf-8")
    assert with_kept(now, path) == [
        {"row": "a", "status": "measured", "x": 2},
        {"row": "b", "status": "measured", "x": 3, "kept_from": "abc"},
        {"row": "c", "label": "first", "kept_from": "older"},
        {"row": "c", "label": "second", "kept_from": "abc"},
    ]
    assert with_kept([{"row": "d", "status": "not run"}], path) == [{"row": "d", "status": "not run"}]


def test_only_takes_names_of_rows() -> None:
    """A misspelt row is refused with the names there are; no name and no --only are fine."""
    assert unknown_rows(None, ["a/0", "b/0"]) is None
    assert unknown_rows([], ["a/0", "b/0"]) is None
    assert unknown_rows(["b/0"], ["a/0", "b/0"]) is None
    assert unknown_rows(["a", "b/0"], ["a/0", "b/0"]) == "--only: no row is named a; rows: a/0, b/0"
