"""The benchmark of tiers still runs, and its result has the agreed form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_quick_run(tmp_path: Path) -> None:
    """A quick run ends well, checks that the top tier is the vendor's model, and writes only where it was told to."""
    results = ROOT / "benchmarks" / "results"
    before = sorted(results.glob("*"))
    command = [sys.executable, "-W", "error", "-m", "benchmarks.tiers", "--quick", "--json", str(tmp_path / "r.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "loading the top tier against" in done.stdout
    result = json.loads((tmp_path / "r.json").read_text())
    assert set(result) == {"name", "area", "commit", "date", "machine", "versions", "seeds", "config", "rows", "bars"}
    assert all(row["value"] > 0 for row in result["rows"])
    memory = [row["against plain"] for row in result["rows"] if row["what"].startswith("memory")]
    assert len(memory) == 4
    assert all(share < 0.6 for share in memory[2:])
    assert all(share <= 1 for share in memory)
    assert sorted(results.glob("*")) == before
