"""First layers that take keyed images at next to no loss, put in the place of any network's own first convolution.

network = keyed(CifarResNet18(), "conv1", spec, mean, std)      # None for spec gives the network as it is
model = network if isinstance(network, ByteModel) else PixelModel(network, mean, std)
fit_stems(model, transformed_images)                            # then train it on transformed images
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse
from tessera.protect.models.pixels import ByteModel, PixelModel
from tessera.protect.models.statistics import scale_values, whiten
from tessera.protect.models.stems import ValueStem
from tessera.transforms import TransformSpec


class PatchStem(nn.Module):
    """Float (N, C, H, W) to (N, width, H / step, W / step): linear in each `block` x `block` block, all blocks alike.

    Two maps: `whiten` to the L = C * block ** 2 principal components of a block, each of variance about one, set once
    from training images by `fit` and not learned; and `mix`, learned, to `width` features for each `step` x `step`
    pixels. SHF and NP only permute and invert the inputs of the first map, so a network behind it, fitted to keyed
    images, starts as it would on plain ones, up to the signs of components: the transform itself costs no accuracy.

    Together they approximate the inverse of the key's map followed by a bank of filters; whoever can read the weights
    reads the key of SHF and NP in them (`tessera.protect.audit.first_layer`), with or without `whiten`. They give
    features and never the plain image, so that no plain network is to be had by leaving the stem out, as there is
    behind a `BlockStem`. `block` is a multiple of `step`.
    """

    def __init__(self, channels: int, block: int, width: int, step: int = 1) -> None:
        super().__init__()
        if min(channels, block, width, step) < 1 or block % step:
            raise ApiMisuse(
                f"a patch stem needs channels and width above zero and a block that its step divides, "
                f"not {channels}, {width}, {block} and {step}"
            )
        values = channels * block * block
        self.block = block
        self.whiten = nn.Conv2d(channels, values, block, stride=block).requires_grad_(False)
        self.mix = nn.Conv2d(values, width * (block // step) ** 2, 1, bias=False)
        self.place = nn.PixelShuffle(block // step)

    def fit(self, images: Tensor) -> None:
        """Set `whiten` from normalised images (N, C, H, W) as the network will see them."""
        weight, bias = whiten(images, self.block)
        with torch.no_grad():
            self.whiten.weight.copy_(weight.reshape(self.whiten.weight.shape))
            self.whiten.bias.copy_(bias)  # type: ignore[union-attr]  # it is made with a bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the features. Raises `ApiMisuse` for an image that the block does not divide."""
        if x.shape[2] % self.block or x.shape[3] % self.block:
            raise ApiMisuse(
                f"the first layer takes blocks of {self.block}, which do not divide {x.shape[2]}x{x.shape[3]}",
                remedy="Choose block sizes whose least common multiple divides height and width, or resize the images.",
            )
        result: Tensor = self.place(self.mix(self.whiten(x)))
        return result


def keyed(
    network: nn.Module, first: str, spec: TransformSpec | None, mean: Sequence[float], std: Sequence[float]
) -> nn.Module:
    """Return `network` made fit for images under `spec`: its convolution called `first` becomes a `PatchStem`.

    `first` is the dotted name of the `nn.Conv2d` that sees the image; its stride becomes the stem's step. With FFX in
    the spec a `ValueStem` stands in front and the result is a `ByteModel`. An isnn leaves images as they are but for a
    faint pattern, so for one the network stays as it is. Raises `ApiMisuse` for another `first`.
    """
    if spec is None or spec.perturbation is not None:
        return network
    found = dict(network.named_modules()).get(first)
    if not isinstance(found, nn.Conv2d) or found.in_channels != len(mean) or found.stride[0] != found.stride[1]:
        raise ApiMisuse(f"{first} is not the network's convolution of {len(mean)} channels, with one stride")
    step = found.stride[0]
    block = math.lcm(step, *(part.block for part in spec.steps))
    parent, _, name = first.rpartition(".")
    setattr(network.get_submodule(parent), name, PatchStem(len(mean), block, found.out_channels, step))
    replaces_values = any(part.kind == "ffx" for part in spec.steps)
    return ByteModel(ValueStem(block, mean, std), network) if replaces_values else network


def fit_stems(model: nn.Module, pixels: Tensor) -> None:
    """Fit the `ValueStem` and the `PatchStem` of `model` to uint8 training images as it will see them, transformed.

    `model` is a `PixelModel` or `ByteModel` on the CPU; one without such stems is left as it is. No labels, no key and
    no plain images are used.
    """
    if not isinstance(model, PixelModel | ByteModel):
        raise ApiMisuse("stems are fitted in a PixelModel or a ByteModel")
    if isinstance(model, ByteModel) and isinstance(model.stem, ValueStem):
        scale_values(model.stem, pixels)
    for part in model.network.modules():
        if isinstance(part, PatchStem):
            with torch.no_grad():
                part.fit(model.normalised(pixels))
