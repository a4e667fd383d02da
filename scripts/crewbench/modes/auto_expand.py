"""Parallel on 1 GPU, then 2, and so on, until no agent runs out of memory."""

from crewbench.modes import Mode, parallel

MODE = Mode(
    name="auto_expand",
    title="Auto-expanded",
    idea="Parallel on one GPU; after an out-of-memory again with one more",
    rank=20,
    attempts=lambda cell: (parallel.deployment(cell, g) for g in range(1, cell.gpus + 1)),
    unfit=parallel.idle_gpus,
)
