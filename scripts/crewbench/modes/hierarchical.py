"""Agent 0 plans, the others work in parallel, agent 0 summarises; one worker per device."""

from crewbench.deployment import Deployment, Step, Worker
from crewbench.modes import Mode, placement
from crewbench.trial import Cell


def deployment(cell: Cell) -> Deployment:
    def worker(agent: int) -> str:
        return f"worker{agent % cell.gpus}"

    team = range(1, cell.agents)
    return Deployment(
        workers=tuple(
            Worker(f"worker{g}", (g,), cell.engine, concurrency=-(-cell.agents // cell.gpus))
            for g in range(cell.gpus)
        ),
        steps=(
            Step("plan", worker(0), 0, "plan"),
            *(Step(f"agent{i}", worker(i), i, "work", after=("plan",)) for i in team),
            Step("summary", worker(0), 0, "summarise", after=("plan", *(f"agent{i}" for i in team))),
        ),
    )


def unfit(cell: Cell) -> str | None:
    if cell.agents < 2:
        return "a leader needs at least one other agent"
    return placement.idle_gpus(cell)


MODE = Mode(
    name="hierarchical",
    title="Leader and workers",
    idea="A leader plans, the others work in parallel, the leader summarises; one model copy per GPU",
    rank=60,
    attempts=lambda cell: [deployment(cell)],
    unfit=unfit,
)
