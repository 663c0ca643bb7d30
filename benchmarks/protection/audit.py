"""What the audit finds on a trained bundle, recorded: the rows of every attack and the verdicts.

    python -m benchmarks.protection.audit NAME --bundle DIR --key KEY --recipe RECIPE [--data PATH] [--minutes M]
        [--passphrase-file FILE] [--attack ATTACK…] [--quick]

NAME tells the recorded result apart, as in `cifar10-np4`. The bundle is one that `tessera protect train` wrote. With
--quick nothing is recorded.
"""

import argparse
from pathlib import Path
from typing import Final

from benchmarks._harness import print_table, result_path, write_result
from tessera.cli.loading import input_key
from tessera.protect import RECIPES, read_bundle
from tessera.protect.audit import audit, budget, sample_of_task, subject_of_bundle

AREA: Final = "protection"
SHOWN: Final = ("attack", "label", "score", "from_scratch", "images", "work", "unit", "cut_short", "note")


def main() -> None:
    """Audit one bundle within the standard budget and record what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--passphrase-file", type=Path)
    parser.add_argument("--recipe", required=True, choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, help="folder with the data sets; default: TESSERA_DATA")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--attack", nargs="*", help="these attacks only")
    parser.add_argument("--quick", action="store_true", help="does it run at all? records nothing")
    asked = parser.parse_args()
    task = RECIPES[asked.recipe].task(asked.data)
    key = input_key(asked.key, asked.passphrase_file)
    subject = subject_of_bundle(read_bundle(asked.bundle), key, name=asked.name, task=task)
    allowed = budget("quick" if asked.quick else "standard", minutes=asked.minutes)
    report = audit(subject, sample_of_task(task), allowed, attacks=asked.attack).to_json()
    rows = [
        {"attack": attack["name"], **row}
        for attack in report.pop("attacks")
        for row in attack["rows"] or [_none(attack)]
    ]
    print_table([{name: row.get(name) for name in SHOWN} for row in rows])
    for verdict in report["verdicts"]:
        print(f"{verdict['attacker']} {verdict['level']}: {verdict['says']}")
    if not asked.quick:
        path = result_path(AREA, f"audit-{asked.name}")
        write_result(f"audit-{asked.name}", AREA, report, rows, [], [report["seed"]], path)
        print(f"written to {path}")


def _none(attack: dict[str, object]) -> dict[str, object]:
    return {"label": "not run", "note": attack["skipped"]}


if __name__ == "__main__":
    main()
