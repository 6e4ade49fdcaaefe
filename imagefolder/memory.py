"""How many images fit in memory: the free memory of a device, and what sampling needs per image."""

from __future__ import annotations

from pathlib import Path

import torch

from imagefolder.generator.model import Generator

SHARE = 0.6  # of the free memory that a batch may use
MOST = 256  # beyond, a larger batch is no faster


def free_memory(device: torch.device | str) -> int:
    """Bytes that can still be allocated on the GPU, or in the machine or its control group, whichever is less."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 2**32)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(free, 0)


def sample_bytes(generator: Generator, top_k: int = 750) -> int:
    """Upper estimate of the memory that one image needs while sampling with guidance: cache, logits, activations,
    decoder."""
    config, sequence, decoder = generator.config, generator.transformer.sequence, generator.tokenizer.decoder.vit
    itemsize = generator.transformer.head.weight.element_size()
    largest = sequence.largest_block
    cache = 2 * 2 * config.depth * sequence.length * config.width * itemsize
    # Both passes, their combination, and the float64 tensors of top-k and top-p
    logits = largest * config.branches * (4 * config.codebook_size * 4 + 6 * 8 * (top_k or config.codebook_size))
    layer = 2 * largest * config.width * int(8 + 2 * config.mlp_ratio) * itemsize
    tokenizer = generator.tokenizer.config
    grid = (tokenizer.image_size // tokenizer.patch_size) ** 2
    width, positions = decoder.embed_dim, grid + tokenizer.latent_side**2 + 2
    pixels = positions * width * 16 * itemsize + 4 * 3 * 4 * tokenizer.image_size**2
    return cache + max(logits + layer, pixels)


def fitting_batch(generator: Generator, top_k: int = 750) -> int:
    """Batch size for sampling that fits in the free memory: 1..256."""
    free = free_memory(generator.transformer.head.weight.device)
    return max(1, min(MOST, int(SHARE * free / sample_bytes(generator, top_k))))
