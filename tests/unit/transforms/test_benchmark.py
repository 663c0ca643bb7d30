"""The benchmark of the transforms still runs, and its result has the agreed form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.transforms import IMPLEMENTATION

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_quick_run(tmp_path: Path) -> None:
    """A quick run ends well, checks its results, and writes only where it was told to."""
    results = ROOT / "benchmarks" / "results"
    before = sorted(results.glob("*"))
    command = [sys.executable, "-m", "benchmarks.transforms", "--quick", "--json", str(tmp_path / "result.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "shf:4,np:4,ffx:4:positions images last" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result) == {"name", "area", "commit", "date", "machine", "versions", "seeds", "config", "rows", "bars"}
    assert {row["variant"] for row in result["rows"]} >= {"copy", "np.take", "table[x]", "ffx:4:positions"}
    assert result["config"]["implementation"] == IMPLEMENTATION
    assert all(set(entry) == {"name", "bar", "observed", "ok"} for entry in result["bars"])
    assert sorted(results.glob("*")) == before
