"""The only place that builds CrewAI's Agent, Task and Crew.

Import it only where an agent runs: CrewAI takes seconds to import and writes files where it is told to
(`prepare` must run before that import).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crewbench.trial import AgentSpec, TaskSpec

if TYPE_CHECKING:
    from crewai import BaseLLM

OFFLINE = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_TRACKING": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OTEL_SDK_DISABLED": "true",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""The environment in which neither CrewAI nor Transformers reaches for the network."""


def isolate(storage: Path) -> None:
    """Give this process a CrewAI storage of its own, and CrewAI a lock that does not leave the process.

    CrewAI guards its task log with a file lock that is polled every 0.25 s when taken. With storage of
    its own, a process shares that log with nobody, so an in-process lock guards the same thing.
    """
    storage.mkdir(parents=True, exist_ok=True)
    os.environ["CREWAI_STORAGE_DIR"] = str(storage)
    from crewai_core.lock_store import set_lock_backend

    locks: dict[str, threading.RLock] = {}
    guard = threading.Lock()

    def lock(name: str, timeout: float = 0) -> threading.RLock:
        with guard:
            return locks.setdefault(name, threading.RLock())

    set_lock_backend(lock)


def run_task(
    agent: AgentSpec,
    task: TaskSpec,
    context: Sequence[tuple[AgentSpec, TaskSpec, str]],
    llm: BaseLLM,
    inputs: dict[str, str],
) -> str:
    """Let one agent do one task as a crew of its own; `context` is what the agents before it wrote.

    Returns the task's raw text. Raises what the model raised.
    """
    from crewai import Agent, Crew, Process, Task
    from crewai.tasks.task_output import TaskOutput

    def build(spec: AgentSpec) -> Agent:
        return Agent(
            role=spec.role,
            goal=spec.goal,
            backstory=spec.backstory,
            llm=llm,
            allow_delegation=False,
            max_retry_limit=0,
            verbose=False,
        )

    earlier = []
    for who, what, text in context:
        done = Task(description=what.description, expected_output=what.expected_output, agent=build(who))
        done.output = TaskOutput(description=what.description, raw=text, agent=who.role)
        earlier.append(done)
    doer = build(agent)
    job = Task(
        description=task.description,
        expected_output=task.expected_output,
        agent=doer,
        context=earlier or None,
    )
    crew = Crew(agents=[doer], tasks=[job], process=Process.sequential, verbose=False, memory=False)
    return crew.kickoff(inputs=inputs or None).raw
