"""docs/reasons.md says what the code says."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_is_up_to_date() -> None:
    """The committed page is what the generator writes; run `python docs/make_reasons.py` when this fails."""
    assert (DOCS / "reasons.md").read_text(encoding="utf-8") == runpy.run_path(str(DOCS / "make_reasons.py"))[
        "render"
    ]()
