"""Terms of the tokenizer's training objective (docs/method.md, "The tokenizer's objective")."""

from __future__ import annotations

from typing import Any

import lpips
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from imagefolder.distributed import is_distributed, mean_over_processes, own_samples
from imagefolder.errors import InputError
from imagefolder.weights import VGG16_FILE, require

ADVERSARIAL_KINDS = ("hinge", "vanilla", "non-saturating")


def semantic_loss(
    projected: Tensor, pooled: Tensor, *, logit_scale: float = 1.0, normalise: bool = False, skip: int = 0
) -> Tensor:
    """CLIP-style contrastive loss: symmetric cross-entropy over the samples of all processes.

    Args:
        projected: (B, C), teacher features through the tokenizer's own `quant_conv`; B is the same in all processes.
        pooled: (B, C), quantized map of the regularised branch averaged over space.
        normalise: compare directions only (binary models).
        skip: number of samples at the start of the whole batch that are left out; the loss is 0 if none remains.
    """
    if normalise:
        projected, pooled = F.normalize(projected, dim=-1), F.normalize(pooled, dim=-1)
    projected, pooled = gather_with_gradient(projected)[skip:], gather_with_gradient(pooled)[skip:]
    if len(projected) == 0:
        return 0 * (projected.sum() + pooled.sum())  # every process must still take part in the backward pass
    logits = logit_scale * projected @ pooled.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def gather_with_gradient(x: Tensor) -> Tensor:
    """The tensors of all processes, of one shape (B, ...), as (processes * B, ...) in the order of the whole batch.

    The order is that of `imagefolder.distributed`: one sample of each process in turn. The gradients of all processes'
    losses are summed for each row and flow back to the process that holds it: losses that are equal in all processes,
    with gradients averaged over processes (DDP), train like one process on the whole batch.
    """
    return _Gather.apply(x) if is_distributed() else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gathered = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, x.contiguous())
        return torch.stack(gathered, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)  # autograd's tensor must not be overwritten
        dist.all_reduce(total)  # Gloo has no reduce-scatter
        return own_samples(total)


class Perceptual(nn.Module):
    """LPIPS with VGG16 on images in [-1, 1]: scalar mean over the batch.

    Raises:
        InputError: the VGG16 weights are missing, or are not the published file.
    """

    def __init__(self) -> None:
        super().__init__()
        path = require(VGG16_FILE)  # first, as building the network takes seconds
        net = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)  # lpips ships its linear heads, not the backbone
        backbone = torch.load(path, map_location="cpu", weights_only=True)
        features = {name.removeprefix("features."): w for name, w in backbone.items() if name.startswith("features.")}
        # lpips cuts VGG16's features into five slices and keeps the layers' original numbers
        own = {name: features[name.split(".", 1)[1]] for name in net.net.state_dict()}
        net.net.load_state_dict(own)
        self.net = net.eval().requires_grad_(False)

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        return self.net(images, target).mean()


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """Loss of the discriminator on its logits of real and generated images.

    Args:
        kind: "hinge", "vanilla" or "non-saturating"; the latter two differ only on the generator's side.
    """
    if _checked(kind) == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def adversarial_loss(kind: str, fake: Tensor) -> Tensor:
    """Loss of the generator on the discriminator's logits of its images; `kind` as in `discriminator_loss`."""
    return F.softplus(-fake).mean() if _checked(kind) == "non-saturating" else -fake.mean()


def _checked(kind: str) -> str:
    if kind not in ADVERSARIAL_KINDS:
        raise InputError(f"adversarial loss {kind!r} is not one of {', '.join(ADVERSARIAL_KINDS)}")
    return kind


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """|grad of reconstruction| / (|grad of adversarial| + 1e-4) at the last decoder layer, clamped to [0, 1e4].

    The gradients are those of the whole batch: averaged over processes before their norms are taken.
    """
    return weight_of_gradients(*last_layer_gradients(reconstruction, adversarial, last_layer))


def last_layer_gradients(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of both losses at the last decoder layer, in this process."""
    ours = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0]
    theirs = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0]
    return ours.contiguous(), theirs.contiguous()


def weight_of_gradients(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """The adaptive weight, from this process's part of both gradients; averages them over the processes in place."""
    norms = [mean_over_processes(gradient).norm() for gradient in (reconstruction, adversarial)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4)


class LeCam(nn.Module):
    """LeCAM regularisation: keeps the discriminator's logits near the running means of the other side (EMA 0.999)."""

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def update(self, real: Tensor, fake: Tensor) -> None:
        """Average in the means (scalars) of a step's logits in this process, over all processes."""
        self.real.lerp_(mean_over_processes(real.detach().clone()), 1 - self.decay)
        self.fake.lerp_(mean_over_processes(fake.detach().clone()), 1 - self.decay)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The regularisation of logits by the current running means."""
        return F.relu(real - self.fake).square().mean() + F.relu(self.real - fake).square().mean()
