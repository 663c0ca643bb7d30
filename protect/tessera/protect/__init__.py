"""The vendor's bench: train a model that works for the holder of a key, export it without weights, seal it.

    key = InputKey.generate()
    trained = train(recipe("digits"), transform=TransformSpec.parse_text("shf:4,np:4"), key=key)
    manifest, secrets = seal(trained, Path("digits.tessera"), issuer=issuer, version=1, now_s=now, input_key=key)

Your own model: describe it as a `TrainingTask` and `train` it here, or train it elsewhere on what `TorchTransform`
gives, then `bundle_of_module` and `seal_bundle`. Importing this package imports torch.
"""

from tessera.protect.bundle import Bundle, bundle_of, bundle_of_module, read_bundle, write_bundle
from tessera.protect.curves import draw_curves
from tessera.protect.data import ArrayDataset, SegmentationDataset, Split
from tessera.protect.evaluate import Accuracy, evaluate, evaluation_keys
from tessera.protect.export import export_program
from tessera.protect.extras import MissingExtra
from tessera.protect.models import ByteModel, CifarResNet18, DigitsNet, FastNet, PixelModel, fit_stems, keyed
from tessera.protect.recipes import RECIPES, recipe
from tessera.protect.seal import seal, seal_bundle
from tessera.protect.task import Recipe, TrainingTask, split_of
from tessera.protect.train import WRONG_KEYS, Diverged, Progress, Pulse, Trained, train
from tessera.protect.transforms_torch import TorchTransform

__all__ = [
    "RECIPES",
    "WRONG_KEYS",
    "Accuracy",
    "ArrayDataset",
    "Bundle",
    "ByteModel",
    "CifarResNet18",
    "DigitsNet",
    "Diverged",
    "FastNet",
    "MissingExtra",
    "PixelModel",
    "Progress",
    "Pulse",
    "Recipe",
    "SegmentationDataset",
    "Split",
    "TorchTransform",
    "Trained",
    "TrainingTask",
    "bundle_of",
    "bundle_of_module",
    "draw_curves",
    "evaluate",
    "evaluation_keys",
    "export_program",
    "fit_stems",
    "keyed",
    "read_bundle",
    "recipe",
    "seal",
    "seal_bundle",
    "split_of",
    "train",
    "write_bundle",
]
