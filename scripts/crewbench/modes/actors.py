"""As parallel, with Ray actors for processes: Ray keeps them, and starts one that dies again."""

from crewbench.modes import Mode, parallel, placement

MODE = Mode(
    name="actors",
    title="Actors",
    idea="As parallel, with a Ray actor for each agent; one that dies is started again",
    rank=80,
    attempts=lambda cell: [parallel.deployment(cell, cell.gpus, runner="actor")],
    unfit=placement.idle_gpus,
    options=(placement.DEVICES_PER_COPY,),
)
