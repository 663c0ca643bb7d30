"""Data that models are trained on: uint8 images with their labels, held in memory.

Every reader takes the folder of its data set, or a folder that holds it under the data set's name; `data_path` finds
that folder. Archives are read in memory: nothing is unpacked to disk, and no file makes code run.
"""

from tessera.protect.data.arrays import ArrayDataset, SegmentationDataset, Split, image_shape, materialise
from tessera.protect.data.camvid import camvid
from tessera.protect.data.cifar10 import cifar10
from tessera.protect.data.denoise import denoise_set
from tessera.protect.data.digits import DIGITS_TEST_COUNT, digits
from tessera.protect.data.fashion_mnist import fashion_mnist
from tessera.protect.data.folders import image_folder
from tessera.protect.data.paths import data_path
from tessera.protect.data.tiny_imagenet import tiny_imagenet

__all__ = [
    "DIGITS_TEST_COUNT",
    "ArrayDataset",
    "SegmentationDataset",
    "Split",
    "camvid",
    "cifar10",
    "data_path",
    "denoise_set",
    "digits",
    "fashion_mnist",
    "image_folder",
    "image_shape",
    "materialise",
    "tiny_imagenet",
]
