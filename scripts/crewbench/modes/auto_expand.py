"""Parallel on 1 GPU (or group of GPUs), then 2, and so on, until no agent runs out of memory."""

from collections.abc import Iterator

from crewbench.deployment import Deployment
from crewbench.modes import Mode, parallel, placement
from crewbench.trial import Cell


def attempts(cell: Cell) -> Iterator[Deployment]:
    each = placement.per_copy(cell)
    return (parallel.deployment(cell, gpus) for gpus in range(each, cell.gpus + 1, each))


MODE = Mode(
    name="auto_expand",
    title="Auto-expanded",
    idea="Parallel on one GPU; after an out-of-memory again with one more",
    rank=20,
    attempts=attempts,
    unfit=placement.idle_gpus,
    options=(placement.DEVICES_PER_COPY,),
)
