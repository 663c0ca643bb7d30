"""Selective encryption: lock the few weights that matter, and give tiers of a licence more of them back.

    layers = layers_of(model)                                # kernel slices and row blocks are the units
    chosen = choose(layers)                                  # or choose(layers, ["conv1", "layer2.0.conv1"])
    goal   = Objective(model, labelled(images, labels, 32), cross_entropy)
    scores = fast_scores(goal, chosen, "opening")            # seconds; learn_scores(...) is PSS itself
    plan   = make_plan(layers, chosen, scores, budget=0.08, fractions=(0, 0.68, 0.76, 0.84, 0.92, 1))
    parts  = split(model.state_dict(), plan)                 # public weights with decoys, one increment per tier
    state  = apply(parts.public, parts.increments, 3)        # what a holder of tier 3 has; the last tier: every bit

Nothing here changes the model. It follows Tian, Zhou and Duan (CVPR 2021) in choosing units, and leaves their DPRM for
decoys plus authenticated encryption (docs/threat-model.md says what that does not stop: an owner of a little data).
"""

from tessera.protect.selective.attacks import Attack, retrain
from tessera.protect.selective.baselines import baseline_scores
from tessera.protect.selective.decoys import DECOYS, DecoySeed, SecretStream, fresh_seed, make_decoys
from tessera.protect.selective.encrypt import Encrypted, Settings, encrypt_bundle
from tessera.protect.selective.fast_scores import fast_scores
from tessera.protect.selective.gates import HardConcrete, call_gated, eval_mode, gated
from tessera.protect.selective.localise import localise, localise_units, mean_auc, weighted_auc
from tessera.protect.selective.mask import Normal, mask, mask_error, unmask
from tessera.protect.selective.measure import psnr_db, share_right, with_state
from tessera.protect.selective.objective import (
    Objective,
    cross_entropy,
    labelled,
    noisy_patches,
    squared_error,
)
from tessera.protect.selective.plan import PAPER_FRACTIONS, Plan, make_plan, parse_fractions
from tessera.protect.selective.pss import PAPER, SHORT, Agreement, Schedule, Scores, learn_scores, rank_agreement
from tessera.protect.selective.scoring import SCORES, ScoreKind, score_by
from tessera.protect.selective.split import SplitModel, apply, same_bits, split
from tessera.protect.selective.suspicion import TESTS, auc
from tessera.protect.selective.units import Layer, Shares, choose, layers_of

__all__ = [
    "DECOYS",
    "PAPER",
    "PAPER_FRACTIONS",
    "SCORES",
    "SHORT",
    "TESTS",
    "Agreement",
    "Attack",
    "DecoySeed",
    "Encrypted",
    "HardConcrete",
    "Layer",
    "Normal",
    "Objective",
    "Plan",
    "Schedule",
    "ScoreKind",
    "Scores",
    "SecretStream",
    "Settings",
    "Shares",
    "SplitModel",
    "apply",
    "auc",
    "baseline_scores",
    "call_gated",
    "choose",
    "cross_entropy",
    "encrypt_bundle",
    "eval_mode",
    "fast_scores",
    "fresh_seed",
    "gated",
    "labelled",
    "layers_of",
    "learn_scores",
    "localise",
    "localise_units",
    "make_decoys",
    "make_plan",
    "mask",
    "mask_error",
    "mean_auc",
    "noisy_patches",
    "parse_fractions",
    "psnr_db",
    "rank_agreement",
    "retrain",
    "same_bits",
    "score_by",
    "share_right",
    "split",
    "squared_error",
    "unmask",
    "weighted_auc",
    "with_state",
]
