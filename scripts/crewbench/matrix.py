"""Config -> Matrix: every trial of a study with its Spec, its place in the order and what it needs.

`build` makes it, `manifest` turns it into the JSON that the scripts read, `read` takes it back. A Matrix
stores no Spec: `spec(trial_id)` rebuilds one from what its trials share and checks it against its hash.
Light on purpose: the Snakefile builds the matrix each time it is parsed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from crewbench import extras
from crewbench.attempts import following, kept
from crewbench.checkpoint.manifest import DTYPE_BYTES
from crewbench.config import (
    Config,
    CrewTexts,
    Model,
    check_model_dir,
    load,
    placeholders,
    read_crew,
)
from crewbench.deployment import Deployment, Worker
from crewbench.devices.inventory import DeviceError, NoDevices, NoDriver, list_devices
from crewbench.engines import ENGINES
from crewbench.estimate import estimate_s
from crewbench.extras import EXTRAS
from crewbench.modes import MODES
from crewbench.problems import ConfigError, Problem, read_yaml
from crewbench.quality import Check, conversations
from crewbench.records import canonical_json
from crewbench.runners import RUNNERS
from crewbench.trial import ALLOCATION, AgentSpec, Cell, Spec, TaskSpec

RESULTS = "results"
MANIFEST = f"{RESULTS}/matrix.json"
HOST = 100
"""All of a host, in the resource `host`: what an exclusive trial asks for."""


GENERAL_OPTIONS = {"memory_mib", "length", "output_tokens", ALLOCATION}
"""Variant options that mean something to every engine: the Spec holds what they say."""


USUAL_START = "zygote"
"""The start state of most runners when the config names none."""


class MatrixError(ValueError):
    """A manifest that does not agree with itself or with what was asked of it."""


# ---------------------------------------------------------------- devices and model of this study


@dataclass(frozen=True, slots=True)
class Devices:
    """What every trial of the study runs on. `memory_mib` None: the device's own memory."""

    kind: str  # "gpu" | "slot"
    count: int
    memory_mib: int | None


def _look() -> tuple[int, str]:
    """How many GPUs this process may use, and if none, why. ConfigError where the environment contradicts
    itself."""
    try:
        return len(list_devices("gpu")), ""
    except (NoDriver, NoDevices) as error:
        return 0, str(error)
    except DeviceError as error:
        raise ConfigError("the environment", [Problem("devices", str(error))]) from None


def resolve_devices(config: Config, gpus: int | None = None) -> Devices:
    """What the config's devices are on this machine; `gpus` is how many it has (None: look)."""
    wanted = config.devices
    slots = Devices("slot", wanted.slots, wanted.slot_memory_mib)
    if wanted.kind == "slots":
        return slots
    count, why = wanted.gpus, ""
    if wanted.kind == "auto" or count is None:
        here, why = _look() if gpus is None else (gpus, "no GPU is seen here: use kind slots or auto")
        if wanted.kind == "auto" and not here:
            return slots
        count = count or here
    if not count:
        right = f"{why}, or say in devices.gpus how many a host has"
        raise ConfigError("the config", [Problem("devices.kind", right, '"gpu"')])
    budget = wanted.memory_budget_gib
    return Devices("gpu", count, None if budget is None else round(budget * 1024))


# Rough sizes of the weights, MiB, and the type that `auto` means, for what is made by name.
_SHAPES = {"tiny": (16, "float32"), "mistral-7b": (13825, "bfloat16")}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model, and where rule `model` puts its manifest. `weights_mib` is rough and reserves memory."""

    model_id: str
    dir: str
    kind: str
    name: str
    dtype: str
    shape: str | None
    seed: int | None
    path: str | None
    repo: str | None
    revision: str | None
    weights_mib: int


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split()) or "model"


def _fingerprint(directory: Path) -> list[list[Any]]:
    """Names, sizes and times of a checkpoint's files: a changed checkpoint is another model."""
    files = sorted(p for p in directory.iterdir() if p.is_file() and not p.name.startswith("."))
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def _hub_snapshot(model: Model) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.repo, revision=model.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        right = (
            f"revision {model.revision!r} must be in the local Hugging Face cache: download it first, "
            "or set HF_HOME to where it is"
        )
    except HFValidationError as error:
        right = f"must be a hub id such as name/model: {error}"
    raise ConfigError("the config", [Problem("model.repo", right, json.dumps(model.repo))])


def own_dtype(directory: Path) -> str:
    """The type a checkpoint says its weights have. ConfigError where it does not say."""
    try:
        said = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        name = str(said.get("dtype") or said.get("torch_dtype") or "").removeprefix("torch.")
    except (OSError, ValueError, AttributeError):
        name = ""
    if not name:
        right = f"must be given: {directory / 'config.json'} does not say which type the weights have"
        raise ConfigError("the config", [Problem("model.dtype", right, '"auto"')])
    return name


def resolve_model(model: Model, root: Path = Path()) -> ModelInfo:
    """What identifies the model. ConfigError when its directory or cache entry is not there."""
    if model.kind == "synthetic":
        weights_mib, own = _SHAPES[model.shape]
        dtype = own if model.dtype == "auto" else model.dtype
        name, directory = f"synthetic-{model.shape}", None
        identity: dict[str, Any] = {"shape": model.shape, "seed": model.seed}
    else:
        if model.kind == "local":
            directory = (root / Path(model.path).expanduser()).resolve()
            key, name, identity = "model.path", directory.name, {"path": str(directory)}
        else:
            directory = _hub_snapshot(model)
            key, name = "model.repo", model.repo.rsplit("/", 1)[-1]
            identity = {"repo": model.repo, "commit": directory.name}
        problems = list(check_model_dir(key, directory))
        if problems:
            raise ConfigError("the config", problems)
        files = _fingerprint(directory)
        identity["files"] = files
        weights_mib = sum(size for n, size, _ in files if n.endswith(".safetensors")) >> 20
        dtype = own_dtype(directory) if model.dtype == "auto" else model.dtype
    identity |= {"kind": model.kind, "dtype": dtype}
    model_id = f"{_slug(name)}-{hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:8]}"
    synthetic, hub = model.kind == "synthetic", model.kind == "hub"
    return ModelInfo(
        model_id=model_id,
        dir=f"{RESULTS}/models/{model_id}",
        kind=model.kind,
        name=model.name or name,
        dtype=dtype,
        shape=model.shape if synthetic else None,
        seed=model.seed if synthetic else None,
        path=str(directory) if model.kind == "local" else None,
        repo=model.repo if hub else None,
        revision=directory.name if hub else None,
        weights_mib=max(1, weights_mib),
    )


# ---------------------------------------------------------------- cells


@dataclass(frozen=True, slots=True)
class Skip:
    """A cell that makes no sense, and why."""

    cell: Cell
    reason: str


@dataclass(frozen=True, slots=True)
class Trial:
    """One line of the matrix."""

    trial_id: str
    spec8: str
    cell: Cell
    repeat: int
    warm_rounds: int
    priority: int

    @property
    def dir(self) -> str:
        return f"{RESULTS}/trials/{self.trial_id}/{self.spec8}"


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the trials of one cell share."""

    agents: tuple[AgentSpec, ...]
    tasks: tuple[TaskSpec, ...]
    inputs: dict[str, str]
    attempts: tuple[Deployment, ...]


def skip_reason(cell: Cell, device_kind: str, memory_mib: int | None = None) -> str | None:
    """Why this cell makes no sense on such devices, or None. `memory_mib`: the study's budget of each."""
    engine, mode = ENGINES[cell.engine], MODES[cell.mode]
    strange = cell.options.keys() - GENERAL_OPTIONS - set(engine.options) - set(mode.options)
    of_modes = strange & {option for m in MODES.values() for option in m.options}
    if of_modes:
        return f"mode {cell.mode} has no option {', '.join(sorted(of_modes))}"
    if reason := mode.unfit(cell):
        return reason
    if device_kind not in engine.device_kinds:
        return f"engine {cell.engine} needs a GPU"
    attempts = list(mode.attempts(cell))
    if cell.allocation_each and len(attempts) == 1:
        return "it has one attempt, and an allocation for each attempt is the same as one for the trial"
    workers = [worker for deployment in attempts for worker in deployment.workers]
    runners = {w.runner: RUNNERS[w.runner] for w in workers}
    for name, runner in runners.items():
        if name not in engine.runners:
            return f"mode {cell.mode} has {runner.title}, and engine {cell.engine} cannot be held so"
        if cell.start not in runner.starts:
            return f"{runner.title}: start may be {' or '.join(runner.starts)}, not {cell.start}"
        for option, why in runner.one_worker_options:
            if option in cell.options and any(_held_by(name, deployment) > 1 for deployment in attempts):
                return f"{option} is for one worker: {why}"
    if strange := strange.difference(*(runner.options for runner in runners.values())):
        return f"engine {cell.engine} has no option {', '.join(sorted(strange))}"
    budget = device_kind == "gpu" and cell.options.get("memory_mib", memory_mib) is not None
    if reason := _not_over_hosts(cell, workers, budget):
        return reason
    if engine.no_threads and any(w.concurrency > 1 for w in workers):
        return f"engine {cell.engine} runs one step at a time on one copy: {engine.no_threads}"
    if any(len(w.devices) > 1 for w in workers):
        if engine.one_device:
            return f"engine {cell.engine} keeps a copy on one device: {engine.one_device}"
        for option, value, why in engine.one_device_options:
            if cell.options.get(option) == value:
                return f"{option} {value} keeps a copy on one device: {why}"
    return None


def _not_over_hosts(cell: Cell, workers: Sequence[Worker], budget: bool) -> str | None:
    """Why these workers do not fit on the hosts that the cell spans, or None. `budget`: of GPUs' memory."""
    if cell.hosts == 1:
        return None
    if budget:
        return f"a memory budget of GPUs is kept on one host, not on {cell.hosts}"
    if "ray_address" not in cell.options:
        return f"{cell.hosts} hosts need ray_address: a Ray of the trial's own is on one host"
    if cell.gpus % cell.hosts:
        return f"{cell.gpus} GPUs cannot be divided over {cell.hosts} hosts"
    each = cell.gpus // cell.hosts
    if any(len({device // each for device in worker.devices}) > 1 for worker in workers):
        return f"a copy would lie on two hosts: each has {each} of the GPUs"
    return None


def _held_by(runner: str, deployment: Deployment) -> int:
    """How many of a Deployment's workers a runner holds."""
    return sum(worker.runner == runner for worker in deployment.workers)


def usual_start(cell: Cell) -> str:
    """The start state of a cell whose config names none: what its runner brings about usually."""
    if MODES[cell.mode].unfit(cell):
        return cell.start
    first = next(iter(MODES[cell.mode].attempts(cell))).workers[0]
    return RUNNERS[first.runner].starts[0]


# ---------------------------------------------------------------- the matrix


@dataclass(slots=True)
class Matrix:
    """A study's trials in the order in which they should run, and what they share."""

    config: Config
    crew: CrewTexts
    model: ModelInfo
    devices: Devices
    trials: dict[str, Trial] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)
    _plans: dict[str, _Plan] = field(default_factory=dict)
    _estimates: dict[tuple[str, int], float] = field(default_factory=dict)
    _checks: dict[str, Check] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials.values())

    def _plan(self, cell: Cell) -> _Plan:
        key = cell.trial_id(0)
        if key not in self._plans:
            attempts = tuple(MODES[cell.mode].attempts(cell))
            names = dict.fromkeys(step.task for d in attempts for step in d.steps)
            agents = self.crew.agents[: cell.agents]
            tasks = tuple(self.crew.tasks[name] for name in names)
            texts = [t for a in agents for t in (a.role, a.goal, a.backstory)]
            texts += [t for task in tasks for t in (task.description, task.expected_output)]
            used = placeholders(*texts)
            inputs = {k: v for k, v in self.config.crew.inputs.items() if k in used}
            self._plans[key] = _Plan(agents, tasks, inputs, attempts)
        return self._plans[key]

    def _spec(self, cell: Cell, repeat: int, warm_rounds: int) -> Spec:
        plan, config, options = self._plan(cell), self.config, cell.options
        return Spec(
            cell=cell,
            repeat=repeat,
            warm_rounds=warm_rounds,
            exclusive=config.exclusive,
            model_dir=self.model.dir,
            dtype=self.model.dtype,
            output_length=options.get("length", config.generation.length),
            output_tokens=options.get("output_tokens", config.generation.output_tokens),
            device_kind=self.devices.kind,
            device_count=self.devices.count if self.devices.kind == "slot" else cell.gpus // cell.hosts,
            memory_mib=options.get("memory_mib", self.devices.memory_mib),
            sampler_hz=config.sampler.hz,
            load_timeout_s=config.timeouts.load_s,
            step_timeout_s=config.timeouts.step_s,
            threads_per_worker=config.threads_per_worker,
            agents=plan.agents,
            tasks=plan.tasks,
            inputs=plan.inputs,
            replay=config.replay,
            staged=config.model.stage is not None,
        )

    def trial(self, trial_id: str, spec8: str | None = None) -> Trial:
        """MatrixError when the matrix has no such trial, or not with that hash."""
        found = self.trials.get(trial_id)
        if found is None:
            raise MatrixError(
                f"no trial {trial_id!r} in this matrix of {len(self)} trials: ids are in {MANIFEST}"
            )
        if spec8 not in (None, found.spec8):
            raise MatrixError(
                f"{trial_id} is {found.spec8} with this config, not {spec8}: ask for {found.dir}"
            )
        return found

    def spec(self, trial_id: str) -> Spec:
        """The trial's Spec, rebuilt. MatrixError when it is not the one that the matrix was made with."""
        trial = self.trial(trial_id)
        spec = self._spec(trial.cell, trial.repeat, trial.warm_rounds)
        if spec.spec8 != trial.spec8:
            raise MatrixError(
                f"{trial_id}: the manifest says {trial.spec8}, its config gives {spec.spec8}: "
                "it was written by another version; run the workflow again"
            )
        return spec

    def attempts(self, trial_id: str) -> tuple[Deployment, ...]:
        """The Deployments that the trial will try, in order."""
        return self._plan(self.trial(trial_id).cell).attempts

    def _check(self, cell: Cell) -> Check:
        """What is checked of the cell's engine: the same for all cells whose engine computes alike."""
        key = cell.trial_id(0)
        if key not in self._checks:
            config, attempts = self.config, self._plan(cell).attempts
            task = next(iter(self.crew.tasks.values()))
            self._checks[key] = Check(
                engine=cell.engine,
                options={n: cell.options[n] for n in ENGINES[cell.engine].options if n in cell.options},
                devices=max(len(w.devices) for deployment in attempts for w in deployment.workers),
                model_dir=self.model.dir,
                dtype=self.model.dtype,
                device_kind=self.devices.kind,
                exclusive=config.exclusive,
                threads=config.threads_per_worker,
                load_timeout_s=config.timeouts.load_s,
                step_timeout_s=config.timeouts.step_s,
                conversations=conversations(self.crew.agents, task, config.crew.inputs, config.seed),
            )
        return self._checks[key]

    @property
    def checks(self) -> dict[str, Check]:
        """What is checked of the study's engines, by check_id, in the order of the trials."""
        found = (self._check(trial.cell) for trial in self)
        return {check.check_id: check for check in found}

    def check(self, check_id: str, spec8: str | None = None) -> Check:
        """MatrixError when no trial's engine is checked so, or not with that hash."""
        found = self.checks.get(check_id)
        if found is None:
            raise MatrixError(f"no check {check_id!r} in this matrix: it has {', '.join(self.checks)}")
        if spec8 not in (None, found.spec8):
            raise MatrixError(f"{check_id} is {found.spec8} with this config, not {spec8}")
        return found

    def check_resources(self, check_id: str) -> dict[str, int]:
        """What the workflow reserves for a check, as `resources` does for a trial."""
        check = self.check(check_id)
        exact_mib = 4 * self.model.weights_mib // DTYPE_BYTES.get(check.dtype, 1)
        return {
            "gpu": check.devices,
            "host": HOST if check.exclusive else 1,
            "mem_mb": 3000 + (2 * exact_mib if check.device_kind == "slot" else 4096),
            "runtime": 15 + math.ceil((check.load_timeout_s + check.step_timeout_s) / 20),
            "cores": check.threads,
        }

    def estimated_s(self, trial_id: str) -> float:
        """Rough seconds, for the order of packed trials and to tell a user: never a result."""
        trial = self.trial(trial_id)
        cell, options = trial.cell, trial.cell.options
        key = (cell.trial_id(0), trial.warm_rounds)
        if key not in self._estimates:
            self._estimates[key] = estimate_s(
                cell,
                self._plan(cell).attempts,
                device_kind=self.devices.kind,
                warm_rounds=trial.warm_rounds,
                tokens=options.get("output_tokens", self.config.generation.output_tokens),
                weights_mib=self.model.weights_mib,
                memory_mib=options.get("memory_mib", self.devices.memory_mib),
                cores=len(os.sched_getaffinity(0)),
            )
        return self._estimates[key]

    def deployments8(self, trial_id: str) -> str:
        """Eight hex digits that change when, and only when, the trial's mode makes other Deployments."""
        return hashlib.sha256(repr(self.attempts(trial_id)).encode()).hexdigest()[:8]

    def kept_dir(self, trial_id: str, code: str) -> str:
        """Where a trial whose attempts have an allocation each keeps those that are over: by all that they
        were measured with, so that no other code or config ever joins them."""
        return f"{RESULTS}/allocations/{trial_id}/{self.trial(trial_id).spec8}-{code}"

    def gpus_next(self, trial_id: str, code: str, root: Path = Path()) -> int:
        """How many devices the trial's next allocation needs: the cell's, or its attempt's that follows the
        kept ones; the last one's of these where they only wait to be joined."""
        trial, attempts = self.trial(trial_id), self.attempts(trial_id)
        if not trial.cell.allocation_each:
            return trial.cell.gpus
        before = kept(root / self.kept_dir(trial_id, code))
        number = following(before, len(attempts)) or len(before)
        return len(attempts[number - 1].devices)

    @property
    def further_allocations(self) -> int:
        """How many allocations a trial may ask for after its first, at most."""
        attempts = (len(self.attempts(t.trial_id)) for t in self if t.cell.allocation_each)
        return max(attempts, default=1) - 1

    def resources(self, trial_id: str) -> dict[str, int]:
        """What the workflow reserves for a trial: gpu (devices), host (of 100), mem_mb (of the host's memory,
        the weights in the page cache among it: a cluster counts that too), runtime (minutes, generous: a
        worker that is never ready and a step that hangs end by the trial's own timeouts), cores."""
        trial, timeouts = self.trial(trial_id), self.config.timeouts
        plan, slots = self._plan(trial.cell), self.devices.kind == "slot"
        usual_s = self.estimated_s(trial_id)
        copies = max(len(d.workers) for d in plan.attempts)
        per_copy = 900 + (2 * self.model.weights_mib if slots else 512)
        # What an engine compiles may be made by a worker that starts before the clock.
        starts = 1 + ENGINES[trial.cell.engine].compile_cache
        return {
            "gpu": trial.cell.gpus // trial.cell.hosts,
            "host": HOST if self.config.exclusive else 1,
            "mem_mb": 1500 + self.model.weights_mib + copies * per_copy,
            "runtime": 15
            + math.ceil(max(5 * usual_s, usual_s + starts * (timeouts.load_s + timeouts.step_s)) / 60),
            "cores": max(1, copies * self.config.threads_per_worker),
        }

    @property
    def max_gpus(self) -> int:
        return max(t.cell.gpus // t.cell.hosts for t in self)

    def manifest(self) -> dict[str, Any]:
        """What the scripts read: plain JSON, from which `read` makes an equal Matrix."""
        return {
            "format": 1,
            "config": self.config.model_dump(mode="json"),
            "crew": {
                "agents": [asdict(a) for a in self.crew.agents],
                "tasks": [asdict(t) for t in self.crew.tasks.values()],
            },
            "model": asdict(self.model),
            "devices": asdict(self.devices),
            "trials": [
                {
                    "trial_id": t.trial_id,
                    "spec8": t.spec8,
                    "dir": t.dir,
                    "priority": t.priority,
                    **_cell_row(t.cell),
                    "repeat": t.repeat,
                    "warm_rounds": t.warm_rounds,
                    "check_id": self._check(t.cell).check_id,
                }
                for t in self
            ],
            "checks": [
                {
                    "check_id": c.check_id,
                    "spec8": c.spec8,
                    "dir": f"{RESULTS}/{c.place}",
                    **{name: getattr(c, name) for name in ("engine", "options", "devices", "dtype")},
                }
                for c in self.checks.values()
            ],
            "skipped": [{**_cell_row(s.cell), "reason": s.reason} for s in self.skipped],
        }

    def wanted(self) -> dict[str, Any]:
        """The part of the manifest that the tables are made from."""
        manifest = self.manifest()
        return {name: manifest[name] for name in ("trials", "checks", "skipped")}


def _cell_row(cell: Cell) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in cell.__slots__}


def _cell(row: Mapping[str, Any]) -> Cell:
    return Cell(**{name: row[name] for name in Cell.__slots__})


def digest(value: Any) -> str:
    """Sixteen hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def write(matrix: Matrix, path: str | Path = MANIFEST) -> None:
    """Leave the manifest at `path`, whole or not at all, and untouched where it says the same already."""
    path, text = Path(path), json.dumps(matrix.manifest(), indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def read(path: str | Path = MANIFEST) -> Matrix:
    """The Matrix of a manifest. MatrixError when the file is missing, half-written or not one of ours."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        matrix = Matrix(
            config=Config.model_validate(data["config"]),
            crew=CrewTexts(
                tuple(AgentSpec(**a) for a in data["crew"]["agents"]),
                {t["name"]: TaskSpec(**t) for t in data["crew"]["tasks"]},
            ),
            model=ModelInfo(**data["model"]),
            devices=Devices(**data["devices"]),
        )
        for row in data["trials"]:
            trial = Trial(
                row["trial_id"], row["spec8"], _cell(row), row["repeat"], row["warm_rounds"], row["priority"]
            )
            matrix.trials[trial.trial_id] = trial
        matrix.skipped += [Skip(_cell(row), row["reason"]) for row in data["skipped"]]
    except FileNotFoundError:
        raise MatrixError(f"{path} is missing: run the workflow, which writes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MatrixError(
            f"{path} is not a whole manifest ({error}): delete it and run the workflow"
        ) from error
    return matrix


# ---------------------------------------------------------------- building


def plan(
    config: Mapping[str, Any],
    files: Sequence[str | Path] = (),
    limit: int | None = None,
    gpus: int | None = None,
) -> Matrix:
    """The Matrix of the mapping that Snakemake made of `files` and `--config`, with `--resources gpu=limit`.

    The files are read again for what Snakemake does not tell: a key given twice. ConfigError lists every
    problem that it finds.
    """
    for path in files:
        if Path(path).suffix != ".json":
            read_yaml(path)
    matrix = build(load(config), gpus=gpus)
    check_limit(matrix, limit)
    check_extras(matrix)
    return matrix


def build(config: Config, root: str | Path = ".", gpus: int | None = None) -> Matrix:
    """Every trial of the study, in the order in which they should run.

    `gpus` is how many GPUs this machine has (None: look). ConfigError when a run asks for more devices
    than there are, two runs make the same cell, or nothing is left to run.
    """
    crew, problems = read_crew(config.crew, Path(root))
    if problems:
        raise ConfigError("the config", problems)
    matrix = Matrix(config, crew, resolve_model(config.model, Path(root)), resolve_devices(config, gpus))
    cells = _cells(matrix)
    for cell, repeats, warm_rounds in cells:
        spec = _SpecOfRepeat(matrix._spec(cell, 0, warm_rounds))
        for repeat in range(1, repeats + 1):
            trial_id = cell.trial_id(repeat)
            matrix.trials[trial_id] = Trial(trial_id, spec.spec8(repeat), cell, repeat, warm_rounds, 0)
    matrix.trials = _in_order(matrix)
    return matrix


class _SpecOfRepeat:
    """The hashes of a cell's repeats: only one number differs, so the long text is made once."""

    def __init__(self, spec: Spec) -> None:
        text = canonical_json({**asdict(spec), "repeat": "\0"})
        self._before, self._after = text.split(canonical_json("\0"))

    def spec8(self, repeat: int) -> str:
        return hashlib.sha256(f"{self._before}{repeat}{self._after}".encode()).hexdigest()[:8]


def _cells(matrix: Matrix) -> list[tuple[Cell, int, int]]:
    """The cells to run with their repeats and warm rounds; those that make no sense go to `skipped`."""
    config, everyone = matrix.config, len(matrix.crew.agents)
    problems: list[Problem] = []
    found: dict[str, tuple[int, Cell, int, int]] = {}
    for i, run in enumerate(config.runs):
        repeats = config.repeats if run.repeats is None else run.repeats
        warm_rounds = config.warm_rounds if run.warm_rounds is None else run.warm_rounds
        too_many = False
        for gpus, agents, engine, start, variant in product(
            run.gpus, run.agents or (everyone,), run.engine, run.start or (None,), run.variant
        ):
            options = config.variants[variant].options
            cell = Cell(run.mode, gpus, agents, engine, start or USUAL_START, variant, options)
            if start is None:
                cell = replace(cell, start=usual_start(cell))
            reason = skip_reason(cell, matrix.devices.kind, matrix.devices.memory_mib)
            if reason is not None:
                matrix.skipped.append(Skip(cell, reason))
                continue
            too_many |= gpus // cell.hosts > matrix.devices.count
            key = cell.trial_id(0)
            if key in found:
                where = f"runs[{i}]"
                right = f"makes the same cell as runs[{found[key][0]}] ({key[:-4]}): keep one of them"
                problems.append(Problem(where, right))
            found[key] = (i, cell, repeats, warm_rounds)
        if too_many:
            problems.append(_too_many(i, max(run.gpus), matrix.devices))
    if not found and not problems:
        reasons = "; ".join(sorted({s.reason for s in matrix.skipped}))
        problems.append(Problem("runs", f"leave 0 trials: every cell is skipped ({reasons})"))
    if problems:
        raise ConfigError("the config", problems)
    return [(cell, repeats, warm_rounds) for _, cell, repeats, warm_rounds in found.values()]


def _too_many(run: int, asked: int, devices: Devices) -> Problem:
    if devices.kind == "slot":
        right = f"must be at most {devices.count}, the number of CPU slots: lower it or raise devices.slots"
    else:
        right = f"must be at most {devices.count}, the number of GPUs: lower it, or say devices.gpus"
    return Problem(f"runs[{run}].gpus", right, str(asked))


def _in_order(matrix: Matrix) -> dict[str, Trial]:
    """Trials with their priority, first to run first. Whole repeats are blocks, so that a drift of the
    machine meets all cells alike; inside one, exclusive trials come in an order drawn from the seed (the
    same for a trial whatever else is in the matrix) and packed ones by GPUs x estimated time."""
    seed, exclusive = matrix.config.seed, matrix.config.exclusive

    def place(t: Trial) -> tuple[Any, ...]:
        drawn = hashlib.sha256(f"{seed}:{t.trial_id}".encode()).hexdigest()
        size = 0.0 if exclusive else -t.cell.gpus * matrix.estimated_s(t.trial_id)
        return (t.repeat, size, drawn)

    ordered = sorted(matrix, key=place)
    n = len(ordered)
    return {
        t.trial_id: Trial(t.trial_id, t.spec8, t.cell, t.repeat, t.warm_rounds, n - i)
        for i, t in enumerate(ordered)
    }


def check_extras(matrix: Matrix, root: Path = Path()) -> None:
    """ConfigError when a trial that is still to run needs packages that are not installed here."""
    lacking: dict[str, str] = {}
    for trial in matrix:
        runners = {w.runner for d in matrix.attempts(trial.trial_id) for w in d.workers}
        needs = {f"engine {trial.cell.engine}": ENGINES[trial.cell.engine].extra}
        needs |= {f"mode {trial.cell.mode}": RUNNERS[name].extra for name in runners}
        for what, extra in needs.items():
            if extra and what not in lacking and extras.missing(extra):
                if not (root / trial.dir / "trial.json").exists():
                    lacking[what] = extra
    if lacking:
        right = "needs packages that are not installed: run `{}`"
        raise ConfigError(
            "the config",
            [Problem(what, right.format(EXTRAS[extra].install)) for what, extra in lacking.items()],
        )


def check_limit(matrix: Matrix, limit: int | None) -> None:
    """ConfigError when a trial needs more devices than `--resources gpu=` allows: Snakemake would
    silently run it with fewer."""
    over = sorted(
        {t.cell.trial_id(0)[:-4] for t in matrix if limit is not None and t.cell.gpus // t.cell.hosts > limit}
    )
    if over:
        shown = ", ".join(over[:3]) + (f" and {len(over) - 3} more" if len(over) > 3 else "")
        right = f"must be at least {matrix.max_gpus} for {shown}: raise it, or take fewer gpus in runs"
        raise ConfigError("the command line", [Problem("--resources gpu", right, str(limit))])
