"""One agent at a time on one GPU, each loading its own copy in round 0."""

from crewbench.deployment import Deployment, Step, Worker
from crewbench.modes import Mode, placement
from crewbench.trial import Cell


def deployment(cell: Cell) -> Deployment:
    return Deployment(
        workers=(Worker("worker", placement.group(cell, 0, cell.gpus), cell.engine),),
        steps=tuple(Step(f"agent{i}", "worker", i, "explain") for i in range(cell.agents)),
        lifetime="step",
    )


MODE = Mode(
    name="sequential",
    title="Sequential",
    idea="One agent after another on one GPU, each loading its own copy in round 0",
    rank=30,
    attempts=lambda cell: [deployment(cell)],
    unfit=placement.single_group,
    baseline=True,
    options=(placement.DEVICES_PER_COPY,),
)
