"""What items work with: the device, the models at their size for it, and processes of their own."""

from __future__ import annotations

import copy
import multiprocessing
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import imagefolder
from imagefolder.environment import describe
from imagefolder.errors import InputError
from imagefolder.generator.graphs import release
from imagefolder.generator.model import Generator
from imagefolder.tokenizer.model import Tokenizer
from tests.gpu.item import Needs

RELEASED = ("VAR-d17-MSVR10P2-4096", "MSVR10P2-4096")
MINI = ("VAR-mini-MSVR3P2-256", "mini-MSVR3P2-256")
DRY_BATCHES = {1: 1, 8: 2, 64: 3, 256: 4}
LOGITS_STD = 3.0  # about that of trained models
MARGIN = 3.0  # seconds before an item's end at which its processes are ended, so that it can say so


class Lab:
    """One device. On a CPU, everything is tiny (dry mode).

    Raises:
        InputError: torch does not find the device.
    """

    def __init__(self, device: str, output: Path) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("torch finds no CUDA device here; --device cpu is a dry mode")
        self.device, self.output, self.dry = torch.device(device), output, device == "cpu"
        self.machine = describe()
        self.item, self.deadline = "", 0.0  # of the item that runs
        self.names = MINI if self.dry else RELEASED
        # A forked process has everything imported, but cannot use CUDA once this one did
        self.context: Any = multiprocessing.get_context("fork" if self.dry else "spawn")
        self._generators: dict[torch.dtype, Generator] = {}

    @property
    def seconds_left(self) -> float:
        """That processes of an item may take."""
        return self.deadline - time.monotonic() - MARGIN

    def require_cuda(self) -> None:
        """End an item here in dry mode: what follows only a GPU can do."""
        if self.dry:
            raise Needs("CUDA")

    def batch(self, released: int) -> int:
        """A number of images, or a small one in dry mode."""
        return DRY_BATCHES[released] if self.dry else released

    def generator(self, dtype: torch.dtype) -> Generator:
        """The generator with its tokenizer; the same random weights in every dtype, and on every machine."""
        if dtype not in self._generators:
            if dtype == torch.float32:
                made = lively_generator(*self.names).to(self.device)
            else:
                full = self.generator(torch.float32)
                made = copy.deepcopy(full).to(dtype)
                made.tokenizer.quantizer = copy.deepcopy(full.tokenizer.quantizer)  # it computes in float32
            self._generators[dtype] = made
        return self._generators[dtype]

    def tokenizer(self, dtype: torch.dtype) -> Tokenizer:
        return self.generator(dtype).tokenizer

    def images(self, batch: int) -> torch.Tensor:
        """Smooth images float32 (B, 3, H, W) in [-1, 1], the same everywhere."""
        side = self.tokenizer(torch.float32).config.image_size
        coarse = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
        images = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
        return images.clamp(-1, 1).to(self.device)

    def labels(self, batch: int) -> torch.Tensor:
        """Classes int64 (B,)."""
        return torch.arange(batch, device=self.device) % self.generator(torch.float32).config.num_classes

    def empty_cache(self) -> None:
        """Give back what is cached on the GPU, and the generators' graphs; elsewhere, nothing."""
        for generator in self._generators.values():
            release(generator)
        if not self.dry:
            torch.cuda.empty_cache()


def lively_generator(generator: str, tokenizer: str) -> Generator:
    """A generator on the CPU whose class, layers and tokens all matter, as in a trained one.

    As initialised for a training, layers add nearly nothing and logits are nearly equal: rounding would decide tokens.
    """
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that weights are random
        model = imagefolder.load_generator(generator, imagefolder.load_tokenizer(tokenizer))
    transformer, width = model.transformer, model.config.width
    with torch.no_grad():
        transformer.class_embed.weight.normal_()
        for layer in transformer.layers:
            layer.ada.weight.normal_(std=(1 / (3 * width)) ** 0.5)
        transformer.head.weight.normal_(std=LOGITS_STD * width**-0.5)
    return model
