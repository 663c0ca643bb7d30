"""DnCNN, a denoiser."""

from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse
from tessera.protect.models.stems import block_stem


class DnCNN(nn.Module):
    """Float (N, C, H, W), pixels 0 … 1 with noise, to the image without it: the input minus the predicted noise.

    Zhang et al. 2017 (arXiv 1608.03981): `depth` 3x3 convolutions of `width` channels with ReLU between and, with
    `batch_norm`, batch normalisation after all but the first and last. Without it, parameter names match the merged
    models of github.com/cszn/KAIR, whose weights it loads: 555,137 parameters for one channel at depth 17.
    """

    def __init__(
        self,
        depth: int = 17,
        width: int = 64,
        channels: int = 1,
        batch_norm: bool = False,
        stem_block: int | None = None,
    ) -> None:
        super().__init__()
        if depth < 2 or width < 1:
            raise ApiMisuse(f"DnCNN needs a depth of at least 2 and a width of at least 1, not {depth} and {width}")
        self.stem = block_stem(channels, stem_block)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            layers.append(nn.ReLU())
        self.model = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the denoised images, float (N, C, H, W)."""
        noisy = self.stem(x)
        result: Tensor = noisy - self.model(noisy)
        return result
