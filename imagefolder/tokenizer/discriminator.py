"""PatchGAN discriminator: logits per patch (ablation rows 1 to 6)."""

from __future__ import annotations

from torch import Tensor, nn


class PatchDiscriminator(nn.Sequential):
    """Images (B, 3, H, W) in [-1, 1] to logits (B, 1, h, w).

    `layers` strided 4x4 convolutions, then two more at stride 1, with batch normalisation and leaky ReLU 0.2 (pix2pix).
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        modules: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        channels = width
        for layer in range(1, layers + 1):
            out = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            modules += [
                nn.Conv2d(channels, out, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            channels = out
        modules.append(nn.Conv2d(channels, 1, 4, stride=1, padding=1))
        super().__init__(*modules)
        self.apply(_init)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
