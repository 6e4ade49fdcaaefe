"""The order in which images are seen: for training a pure function of (seed, step), so no loader state needs saving."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from imagefolder.data.images import Key
from imagefolder.data.loading import Batches
from imagefolder.errors import InputError


@dataclass(frozen=True)
class Shard:
    """Which part of every global batch a process works on, and in how many pieces (gradient accumulation).

    The process `rank` of `world` takes samples rank, rank + world, ... of the global batch, in order.
    """

    rank: int = 0
    world: int = 1
    pieces: int = 1


WHOLE = Shard()


def pieces_per_process(batch_size: int, processes: int, micro_batch: int) -> int:
    """In how many pieces a process works through its share of a batch, none larger than `micro_batch` (0: any).

    Raises:
        InputError: shares or pieces would not be equally large.
    """
    pieces = -(-batch_size // (processes * micro_batch)) if micro_batch else 1
    _require_equal_pieces(batch_size, processes, pieces)
    return pieces


def _require_equal_pieces(batch_size: int, processes: int, pieces: int) -> None:
    if batch_size % (processes * pieces):
        raise InputError(
            f"batch_size {batch_size} does not divide into {processes} processes x {pieces} pieces; choose another "
            "number of processes or micro-batch"
        )


class BatchOrder:
    """Which images each training step sees: `shard.pieces` lists of keys per step.

    Every epoch is a new permutation; a batch may span two epochs, so that none is short. `seed`: any integer.
    """

    def __init__(self, size: int, batch_size: int, seed: int, start: int, stop: int, shard: Shard) -> None:
        _require_equal_pieces(batch_size, shard.world, shard.pieces)
        self.size, self.batch_size, self.seed, self.start, self.stop = size, batch_size, seed, start, stop
        self.shard = shard

    def __len__(self) -> int:
        return (self.stop - self.start) * self.shard.pieces

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator()
        epoch, order = -1, []
        for step in range(self.start, self.stop):
            keys = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.size != epoch:
                    epoch = position // self.size
                    generator.manual_seed((self.seed * 1_000_003 + epoch) % 2**63)  # more bits torch does not take
                    order = torch.randperm(self.size, generator=generator).tolist()
                keys.append((epoch, order[position % self.size]))
            mine = keys[self.shard.rank :: self.shard.world]
            piece = len(mine) // self.shard.pieces
            yield from (mine[at : at + piece] for at in range(0, len(mine), piece))


def training_batches(
    images: Dataset, batch_size: int, seed: int, start: int, stop: int, shard: Shard = WHOLE
) -> DataLoader:
    """This process's batches of the training steps start..stop-1, `shard.pieces` per step.

    Raises:
        InputError: here or from the iterator, where images cannot be read.
    """
    order = BatchOrder(len(images), batch_size, seed, start, stop, shard)
    return Batches(images, order, pin_memory=torch.cuda.is_available())


def ordered_batches(images: Dataset, batch_size: int, indices: range | None = None) -> DataLoader:
    """All images once, or those of `indices`, in order. Errors as of `training_batches`."""
    keys = [(0, i) for i in (range(len(images)) if indices is None else indices)]
    return Batches(images, [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)])
