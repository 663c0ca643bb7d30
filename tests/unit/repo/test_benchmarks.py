"""What the benchmarks share."""

import json
from pathlib import Path
from typing import Any

from benchmarks._harness import with_kept


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
