"""A chain on one worker: each agent's context is what the agents before it wrote."""

from crewbench.deployment import Deployment, Step, Worker
from crewbench.modes import Mode, placement
from crewbench.trial import Cell


def deployment(cell: Cell) -> Deployment:
    names = [f"agent{i}" for i in range(cell.agents)]
    return Deployment(
        workers=(Worker("worker", placement.group(cell, 0, cell.gpus), cell.engine),),
        steps=tuple(
            Step(name, "worker", i, "contribute", after=tuple(names[:i])) for i, name in enumerate(names)
        ),
    )


MODE = Mode(
    name="cooperative",
    title="Cooperative chain",
    idea="One agent after another on one worker, each reading all outputs before it",
    rank=50,
    attempts=lambda cell: [deployment(cell)],
    unfit=placement.single_group,
    options=(placement.DEVICES_PER_COPY,),
)
