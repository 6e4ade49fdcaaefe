"""The tokenizer's training objective (architecture section 1: semantic regularisation, reconstruction losses)."""

from __future__ import annotations

import os
from pathlib import Path

import lpips
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagefolder.errors import InputError

VGG16_FILE = "vgg16-397923af.pth"
VGG16_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"


def semantic_loss(projected: Tensor, pooled: Tensor, logit_scale: float = 1.0) -> Tensor:
    """CLIP-style contrastive loss: symmetric cross-entropy over the batch, without normalisation.

    Args:
        projected: (B, C), teacher features through the tokenizer's own `quant_conv`.
        pooled: (B, C), quantized map of the regularised branch averaged over space.
    """
    logits = logit_scale * projected @ pooled.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class Perceptual(nn.Module):
    """LPIPS with VGG16 on images in [-1, 1]: scalar mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        path = vgg16_weights()
        net = lpips.LPIPS(
            net="vgg", pnet_rand=True, verbose=False
        )  # linear heads ship with lpips, the backbone does not
        backbone = torch.load(path, map_location="cpu", weights_only=True)
        features = {name.removeprefix("features."): w for name, w in backbone.items() if name.startswith("features.")}
        # lpips cuts VGG16's features into five slices that keep the layers' original numbers
        own = {name: features[name.split(".", 1)[1]] for name in net.net.state_dict()}
        net.net.load_state_dict(own)
        self.net = net.eval().requires_grad_(False)

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        return self.net(images, target).mean()


def vgg16_weights() -> Path:
    """Local file of the VGG16 weights LPIPS needs; `InputError` says where to put it if absent."""
    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    if "IMAGEFOLDER_WEIGHTS" in os.environ:
        folders.insert(0, Path(os.environ["IMAGEFOLDER_WEIGHTS"]))
    for folder in folders:
        if (folder / VGG16_FILE).is_file():
            return folder / VGG16_FILE
    raise InputError(
        f"LPIPS needs {VGG16_FILE} (sha256 {VGG16_SHA256}); put it into {folders[-1]} or into $IMAGEFOLDER_WEIGHTS"
    )


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator on its logits."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """|grad of reconstruction| / (|grad of adversarial| + 1e-4) at the last decoder layer, clamped to [0, 1e4]."""
    ours = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0]
    theirs = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0]
    return (ours.norm() / (theirs.norm() + 1e-4)).clamp(0, 1e4).detach()


class LeCam(nn.Module):
    """LeCAM regularisation: keeps the discriminator's logits near the running means of the other side (EMA 0.999)."""

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        self.real.lerp_(real.detach().mean(), 1 - self.decay)
        self.fake.lerp_(fake.detach().mean(), 1 - self.decay)
        return F.relu(real - self.fake).square().mean() + F.relu(self.real - fake).square().mean()
