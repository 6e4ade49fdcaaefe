"""The order in which images are seen: in training a pure function of (seed, step), so no loader state is saved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from imagefolder.data.batches import Batches
from imagefolder.data.images import BatchSource, Key
from imagefolder.errors import InputError


@dataclass(frozen=True)
class BatchPart:
    """The part of every global batch that a process works on, and in how many pieces (gradient accumulation).

    Process `rank` of `world` takes samples rank, rank + world, ... of the global batch, in order.
    """

    rank: int = 0
    world: int = 1
    pieces: int = 1


WHOLE = BatchPart()


def pieces_per_process(batch_size: int, processes: int, micro_batch: int) -> int:
    """The number of pieces of a process's share of a batch, none larger than `micro_batch` (0: no limit).

    Raises:
        InputError: shares or pieces would differ in size.
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
    """Which of `size` images the steps start..stop-1 see: `part.pieces` lists of keys per step.

    Every epoch is a new permutation; a batch may span two epochs, so that none is short. `seed`: any integer.
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int, start: int, stop: int, part: BatchPart = WHOLE
    ) -> None:
        _require_equal_pieces(batch_size, part.world, part.pieces)
        self.size, self.batch_size, self.seed, self.start, self.stop = size, batch_size, seed, start, stop
        self.part = part

    def __len__(self) -> int:
        return (self.stop - self.start) * self.part.pieces

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator()
        epoch, order = -1, []
        for step in range(self.start, self.stop):
            keys = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.size != epoch:
                    epoch = position // self.size
                    generator.manual_seed((self.seed * 1_000_003 + epoch) % 2**63)  # torch takes no more bits
                    order = torch.randperm(self.size, generator=generator).tolist()
                keys.append((epoch, order[position % self.size]))
            mine = keys[self.part.rank :: self.part.world]
            piece = len(mine) // self.part.pieces
            yield from (mine[at : at + piece] for at in range(0, len(mine), piece))


def training_batches(
    source: BatchSource, batch_size: int, seed: int, start: int, stop: int, *, part: BatchPart = WHOLE
) -> Batches:
    """This process's batches of the training steps start..stop-1, `part.pieces` per step.

    Raises:
        InputError: here or from the iterator, if images cannot be read.
    """
    order = BatchOrder(len(source), batch_size, seed=seed, start=start, stop=stop, part=part)
    return Batches(source, order, pin_memory=torch.cuda.is_available())


def ordered_batches(source: BatchSource, batch_size: int, indices: range | None = None) -> Batches:
    """All images once, or those of `indices`, in order. Errors as in `training_batches`."""
    keys = [(0, i) for i in (range(len(source)) if indices is None else indices)]
    return Batches(source, [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)])
