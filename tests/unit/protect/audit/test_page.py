"""The report: one page that needs nothing else, numbers as measured, and no secret."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from support import keys
from support.audits import SMALL, sample, subject
from tessera.keystore.errors import Unavailable
from tessera.protect.audit import AttackResult, Report, Row, audit, write_report
from tessera.protect.audit.page import render
from tessera.protect.audit.plots import draw


@pytest.fixture(scope="module")
def report() -> Report:
    """An audit of a model made by hand with every attack, in a few seconds."""
    return audit(subject("shf:2,np:2"), sample(), replace(SMALL, evaluations=150, steps=40, random_keys=20))


@pytest.fixture(scope="module")
def written(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both files of the report, made with its parents."""
    folder = tmp_path_factory.mktemp("audit") / "made"
    write_report(report, folder)
    return folder


class Tags(HTMLParser):
    """Collects the tags and attributes of a page and holds that they are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember it."""
        self.attributes += attrs
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Hold that it closes the last one opened."""
        assert self.open.pop() == tag


@pytest.mark.slow
def test_the_page_stands_alone_and_shows_every_attack(report: Report, written: Path) -> None:
    """Balanced HTML, pictures inline as PNG, nothing fetched from elsewhere, every title, every verdict at the end."""
    page = (written / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    sources = [value or "" for name, value in tags.attributes if name in {"src", "href"}]
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    pictures = [base64.b64decode(source.partition(",")[2]) for source in sources if source.startswith("data:")]
    assert len(pictures) >= 5
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    places = [page.index(f"<h3>{attack.title}") for attack in report.attacks]
    assert places == sorted(places)
    assert page.index("Verdicts: who is kept out") > places[-1]
    assert all(f"<b>{attacker}</b>" in page for attacker in ("A0", "A1", "A2", "A3", "A4"))


@pytest.mark.slow
def test_json_holds_the_same_numbers(report: Report, written: Path) -> None:
    """Each row's work, images and score are there; so are budget, seed and verdicts."""
    found = json.loads((written / "report.json").read_bytes())
    assert found["format"] == "tessera-audit-report/1"
    assert [entry["name"] for entry in found["attacks"]] == [attack.name for attack in report.attacks]
    rows = [row for entry in found["attacks"] for row in entry["rows"]]
    assert all({"score", "work", "unit", "images", "cut_short"} <= row.keys() for row in rows)
    assert found["budget"]["evaluations"] == 150
    assert [entry["attacker"] for entry in found["verdicts"]] == ["A0", "A1", "A2", "A3", "A4"]
    page = (written / "report.html").read_text(encoding="utf-8")
    for row in rows:
        if row["score"] is not None:
            assert f"{next(r.score for a in report.results for r in a.rows if r.label == row['label']):.1%}" in page


@pytest.mark.slow
def test_no_key_material_is_in_the_files(written: Path) -> None:
    """Neither the key's bytes in any usual notation, nor its permutation or mask."""
    from tessera.transforms import mask, permutation

    raw = b"".join((written / name).read_bytes() for name in ("report.html", "report.json"))
    text, key = raw.decode(), keys.INPUT_KEY.reveal()
    assert key not in raw
    for form in (key.hex(), base64.b64encode(key).decode(), base64.urlsafe_b64encode(key).decode().rstrip("=")):
        assert form not in text
    numbers = re.sub(r"\s", "", text)
    for part in (permutation(keys.INPUT_KEY, 0, "shf", 2, 1), mask(keys.INPUT_KEY, 1, "np", 2, 1)):
        assert ",".join(map(str, part.tolist())) not in numbers


def test_texts_from_outside_are_escaped(report: Report) -> None:
    """A model's name or a path cannot put markup into the page."""
    named = replace(report, subject=replace(report.subject, name="<script>x</script>"))
    page = render(replace(named, attacks=(), results=()))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_attacks_cut_short_are_named(report: Report) -> None:
    """The reader is told which numbers are those of a hurried thief."""
    row = Row(label="x", score=0.5, images=1, work=1, unit="steps", cut_short=True)
    results = tuple(AttackResult(name=attack.name, rows=(row,)) for attack in report.attacks[1:2])
    page = render(replace(report, attacks=report.attacks[1:2], results=results))
    assert "Time ran out" in page
    assert page.count(report.attacks[1].title) == 2
    assert "the attack <i>no-key</i>" in page


def test_an_attack_without_anything_to_draw_has_no_picture() -> None:
    """One row is a number, not a picture; three points are a line, with or without training from scratch."""
    levels = {"right": 0.9, "floor": 0.1, "words": "accuracy", "axis": "images"}
    row = Row(label="x", score=0.5, images=1, work=1, unit="steps")
    assert draw(AttackResult(name="x", rows=(row,)), **levels) is None  # type: ignore[arg-type]
    series = tuple(replace(row, at=at, beside=0.3) for at in (0.01, 0.05, 0.1))
    made = draw(AttackResult(name="x", rows=series), **levels)  # type: ignore[arg-type]
    assert made is not None
    assert made.startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(report: Report, tmp_path: Path) -> None:
    """A file in its place."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match="cannot be made a folder"):
        write_report(replace(report, attacks=(), results=()), tmp_path / "file")
