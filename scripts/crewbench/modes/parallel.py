"""One worker and one copy of the model per agent; agent i on device (or group) i mod g."""

from crewbench.deployment import Deployment, Step, Worker
from crewbench.modes import Mode, placement
from crewbench.trial import Cell


def deployment(cell: Cell, gpus: int, runner: str = "process") -> Deployment:
    agents = range(cell.agents)
    return Deployment(
        workers=tuple(
            Worker(f"worker{i}", placement.group(cell, i, gpus), cell.engine, runner) for i in agents
        ),
        steps=tuple(Step(f"agent{i}", f"worker{i}", i, "explain") for i in agents),
    )


MODE = Mode(
    name="parallel",
    title="Parallel",
    idea="One process and one model copy per agent, spread over the GPUs",
    rank=10,
    attempts=lambda cell: [deployment(cell, cell.gpus)],
    unfit=placement.idle_gpus,
    options=(placement.DEVICES_PER_COPY,),
)
