"""Writes tests/vectors/ff1_wycheproof.json: `python tests/vectors/make_ff1_wycheproof.py FOLDER COMMIT`.

FOLDER is `testvectors_v1` of a checkout of https://github.com/C2SP/wycheproof (Apache-2.0), COMMIT the commit it is at.
The selection is a rule, not a choice, so the same commit gives the same bytes.
"""

import json
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent / "ff1_wycheproof.json"

DENSE = {"radix255": 20, "radix256": 20, "radix65536": 12}
"""Cases of one sort that are taken of these files, pixels and the largest radix among them; 2 of all others."""

ABOUT = (
    "A part of Project Wycheproof's AES-FF1 test vectors, unchanged but for their layout. Copyright Google LLC and the "
    "Wycheproof authors, Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0). Of each of the 22 files "
    "aes_ff1_*_test.json, cases are sorted by result, flags and key size, and of each sort, in the order of tcId, "
    "as many as `taken` says are kept at equal distances, the first and the last among them. A case is [tcId, key, "
    "tweak, msg, ct, result, flags]; msg and ct are text over `alphabet` or lists of numerals. Every invalid case is "
    "to be refused."
)


def spaced(cases: list[Any], count: int) -> list[Any]:
    """Return `count` of `cases` at equal distances with the first and the last, or all."""
    if len(cases) <= count:
        return cases
    return [cases[at * (len(cases) - 1) // (count - 1)] for at in range(count)]


def selection(document: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the part of one file that is kept."""
    sorts: dict[tuple[str, ...], list[Any]] = {}
    for group in document["testGroups"]:
        for test in group["tests"]:
            sort = (test["result"], *test["flags"], str(group["keySize"]))
            row = [test[name] for name in ("tcId", "key", "tweak", "msg", "ct", "result", "flags")]
            sorts.setdefault(sort, []).append(row)
    group = document["testGroups"][0]
    cases = [row for sort in sorted(sorts) for row in spaced(sorted(sorts[sort], key=lambda row: row[0]), count)]
    found = {"radix": group["radix"], "of": document["numberOfTests"], "taken": count, "cases": cases}
    return found | ({"alphabet": group["alphabet"]} if "alphabet" in group else {})


def main(folder: Path, commit: str) -> None:
    """Write the file."""
    files = {}
    for path in sorted(folder.glob("aes_ff1_*_test.json")):
        name = path.name.removeprefix("aes_ff1_").removesuffix("_test.json")
        files[name] = selection(json.loads(path.read_text(encoding="utf-8")), DENSE.get(name, 2))
    parts = [f' "about": {json.dumps(ABOUT)}', f' "commit": "{commit}"']
    for name, file in files.items():
        rows = ",\n".join("   " + json.dumps(row, separators=(",", ":")) for row in file.pop("cases"))
        head = json.dumps(file, separators=(",", ":")).removesuffix("}")
        parts.append(f' "{name}": {head},"cases":[\n{rows}]}}')
    TARGET.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    sys.stdout.write(f"{len(files)} files, {TARGET.stat().st_size} bytes\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
