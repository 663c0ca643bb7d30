"""The specification and those who cite it agree."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LETTERS = "KLGRWPTBFSU"
CITED = re.compile(rf"\brules? ([{LETTERS}]-\d+)(?:(?: to | and |, |-|–)([{LETTERS}]-\d+))*")
RULE = re.compile(rf"\b[{LETTERS}]-\d+\b")
DEFINED = re.compile(rf"^(?:- )?\*\*([{LETTERS}]-\d+)\b", re.MULTILINE)


def defined() -> list[str]:
    """Return the rules that the specification states, in its order."""
    return DEFINED.findall((ROOT / "docs/spec.md").read_text(encoding="utf-8"))


def test_rules_are_stated_once_and_in_order() -> None:
    """No number is used twice, and within a letter they rise."""
    rules = defined()
    assert len(rules) == len(set(rules)) > 100
    for letter in LETTERS:
        numbers = [int(rule[2:]) for rule in rules if rule[0] == letter]
        assert numbers == sorted(numbers), letter
        assert numbers, letter


def test_every_cited_rule_exists() -> None:
    """Code, tests, protos and documents cite rules that the specification states."""
    rules, missing = set(defined()), []
    for folder in ("proto", "keystore", "transforms", "protect", "server", "client", "cli", "tests", "docs", "deploy"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix not in {".py", ".proto", ".md"} or "_pb2" in path.name:
                continue
            text = path.read_text(encoding="utf-8")
            cited = {rule for citation in CITED.finditer(text) for rule in RULE.findall(citation.group())}
            missing += [f"{path.relative_to(ROOT)}: {rule}" for rule in sorted(cited - rules)]
    assert missing == []


def test_links_between_documents_lead_somewhere() -> None:
    """Relative links in the README and the documents point at files that exist."""
    broken = []
    for path in [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
    ]:
        targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8"))
        broken += [f"{path.relative_to(ROOT)} -> {target}" for target in targets if not (path.parent / target).exists()]
    assert broken == []
