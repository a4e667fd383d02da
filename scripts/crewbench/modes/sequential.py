"""One agent at a time on one GPU, each loading its own copy in round 0."""

from crewbench.deployment import Deployment, Step, Worker
from crewbench.modes import Mode
from crewbench.trial import Cell


def deployment(cell: Cell) -> Deployment:
    return Deployment(
        workers=(Worker("worker", (0,), cell.engine),),
        steps=tuple(Step(f"agent{i}", "worker", i, "explain") for i in range(cell.agents)),
        lifetime="step",
    )


def single_gpu(cell: Cell) -> str | None:
    return None if cell.gpus == 1 else f"runs on one GPU, not on {cell.gpus}"


MODE = Mode(
    name="sequential",
    title="Sequential",
    idea="One agent after another on one GPU, each loading its own copy in round 0",
    rank=30,
    attempts=lambda cell: [deployment(cell)],
    unfit=single_gpu,
    baseline=True,
)
