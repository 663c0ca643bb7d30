"""Reference networks, and the adapters that let any network take raw pixels.

Every network is our own definition of a published one and says which; `load_npz` reads published parameters.
"""

from tessera.protect.models.convmixer import ConvMixer
from tessera.protect.models.digits import DigitsNet
from tessera.protect.models.dncnn import DnCNN
from tessera.protect.models.fast import FastNet
from tessera.protect.models.keyed import PatchStem, fit_stems, keyed
from tessera.protect.models.pixels import ByteModel, PixelModel
from tessera.protect.models.resnet import IMAGENET_MEAN, IMAGENET_STD, BasicBlock, CifarResNet18, ResNet20
from tessera.protect.models.stems import BlockStem, ValueStem
from tessera.protect.models.unet import UNet
from tessera.protect.models.vgg import CifarVgg19, CompactVgg
from tessera.protect.models.weights import load_npz

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "BasicBlock",
    "BlockStem",
    "ByteModel",
    "CifarResNet18",
    "CifarVgg19",
    "CompactVgg",
    "ConvMixer",
    "DigitsNet",
    "DnCNN",
    "FastNet",
    "PatchStem",
    "PixelModel",
    "ResNet20",
    "UNet",
    "ValueStem",
    "fit_stems",
    "keyed",
    "load_npz",
]
