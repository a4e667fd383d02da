"""One copy of the model, shared by all agents as threads."""

from crewbench.deployment import Deployment, Step, Worker
from crewbench.modes import Mode, placement
from crewbench.trial import Cell


def deployment(cell: Cell) -> Deployment:
    return Deployment(
        workers=(
            Worker("worker", placement.group(cell, 0, cell.gpus), cell.engine, concurrency=cell.agents),
        ),
        steps=tuple(Step(f"agent{i}", "worker", i, "explain") for i in range(cell.agents)),
    )


MODE = Mode(
    name="shared",
    title="Shared",
    idea="One model copy on one GPU, shared by all agents as threads",
    rank=40,
    attempts=lambda cell: [deployment(cell)],
    unfit=placement.single_group,
    options=(placement.DEVICES_PER_COPY,),
)
