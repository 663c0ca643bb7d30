"""The audit: what a protected model is worth to a thief, measured before it is sold.

    subject = subject_of_bundle(read_bundle(folder), key, name="digits")
    sample  = sample_of_npz(path, subject.classes, seed=0)         # or sample_of_task(recipe("digits").task())
    report  = audit(subject, sample, budget("quick"))
    write_report(report, folder)                                    # report.html and report.json

Every attack has the whole model, the public transform spec and a few labelled images, never the key. It is judged on
images that it did not see. What it may spend is counted and stated; nothing is extrapolated. `ATTACKS` is the table.
"""

from tessera.protect.audit.budget import BUDGETS, MAX_MINUTES, Advance, Budget, Meter, budget
from tessera.protect.audit.cut import Cut
from tessera.protect.audit.loading import (
    sample_of_npz,
    sample_of_task,
    subject_of_bundle,
    subject_of_checkpoint,
    subject_of_file,
    subject_of_module,
    subject_of_package,
)
from tessera.protect.audit.page import write_report
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.run import FORMAT, Report, audit
from tessera.protect.audit.subject import Lock, Sample, Subject, split_sample
from tessera.protect.audit.table import ATTACKS, Attack, chosen_attacks
from tessera.protect.audit.tier_verdict import TiersMeasured, tier_verdicts, tiers_measured
from tessera.protect.audit.verdict import Measured, Verdict, measured, verdicts

__all__ = [
    "ATTACKS",
    "BUDGETS",
    "FORMAT",
    "MAX_MINUTES",
    "Advance",
    "Attack",
    "AttackResult",
    "Budget",
    "Cut",
    "Lock",
    "Measured",
    "Meter",
    "Report",
    "Row",
    "Sample",
    "Subject",
    "TiersMeasured",
    "Verdict",
    "audit",
    "budget",
    "chosen_attacks",
    "measured",
    "sample_of_npz",
    "sample_of_task",
    "split_sample",
    "subject_of_bundle",
    "subject_of_checkpoint",
    "subject_of_file",
    "subject_of_module",
    "subject_of_package",
    "tier_verdicts",
    "tiers_measured",
    "verdicts",
    "write_report",
]
