"""Fingerprints: each buyer's copy of the weights carries an invisible mark, and a leaked file tells whose copy it was.

    copy  = fingerprint(bundle, secret, CopyrightRecord("Acme", "Globex", "L-17"))     # sell this one to Globex
    found = identify(bundle, read_leaked(Path("leaked.safetensors")), secret, records)
    found.named                                                                        # whose copies it was made from

Spread spectrum after Cox, Kilian, Leighton and Shamoon 1997 (IEEE Transactions on Image Processing 6, 1673-1687), as
Uchida et al. 2017 (arXiv 1701.04082) and DeepMarks (Chen et al. 2019, arXiv 1804.03648) brought it to networks. They
train the mark in and read it without the original; here the vendor has the original, so a mark is one addition, and
reading it is a correlation whose significance rests on no assumption about weights or thief (docs/adr/0017).
"""

from tessera.protect.fingerprint.change import output_change
from tessera.protect.fingerprint.embed import MAX_STRENGTH, MIN_STRENGTH, STRENGTH, check_strength, fingerprint, mark
from tessera.protect.fingerprint.identify import SIGNIFICANT, FingerprintSuspect, Heard, Identification, identify
from tessera.protect.fingerprint.leaked import read_leaked

__all__ = [
    "MAX_STRENGTH",
    "MIN_STRENGTH",
    "SIGNIFICANT",
    "STRENGTH",
    "FingerprintSuspect",
    "Heard",
    "Identification",
    "check_strength",
    "fingerprint",
    "identify",
    "mark",
    "output_change",
    "read_leaked",
]
