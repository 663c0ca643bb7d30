"""Every public name says what it promises."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("client", "keystore", "transforms", "server", "protect", "cli")


def _undocumented(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    where = str(path.relative_to(ROOT))
    if not ast.get_docstring(tree):
        yield where
    yield from _missing(tree, where)


def _missing(node: ast.AST, where: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if child.name.startswith("_"):
            continue
        overload = any(
            isinstance(item, ast.Name) and item.id in {"overload", "override"} for item in child.decorator_list
        )
        if not ast.get_docstring(child) and not overload:
            yield f"{where}:{child.lineno} {child.name}"
        if isinstance(child, ast.ClassDef):
            yield from _missing(child, where)


def test_every_public_name_has_a_docstring() -> None:
    """Modules, classes, functions and methods without a leading underscore carry a docstring."""
    missing = [entry for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) for entry in _undocumented(path)]
    assert missing == []


def test_every_test_says_what_it_proves() -> None:
    """Each test function has a sentence that states the behaviour."""
    missing = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
            if named and not ast.get_docstring(node):  # type: ignore[arg-type]
                missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")  # type: ignore[attr-defined]
    assert missing == []


def test_every_reason_that_is_raised_is_listed() -> None:
    """Each `reason="…"` and `default_reason` in the code is an entry of REASONS, and no entry is unused."""
    from tessera.keystore.errors import REASONS

    raised: set[str] = set()
    text = ""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            if path.name != "errors.py" or room != "keystore":
                text += source
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.keyword) and node.arg == "reason" and isinstance(node.value, ast.Constant):
                    raised.add(str(node.value.value))
    assert {reason for reason in raised if "-" in reason} - set(REASONS) == set()
    defaults = {"internal", "api-misuse", "malformed", "invalid-tensor", "refused", "denied", "exhausted", "conflict"}
    defaults |= {"not-found", "tampered", "wrong-key", "store-sealed", "unavailable", "session-missing"}
    assert {reason for reason in REASONS if f'"{reason}"' not in text} - defaults == set()
