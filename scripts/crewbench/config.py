"""The config file as a closed schema: what a study runs, on what, and how it is shown.

`load` reads it, checks it as a whole and either gives a `Config` or one `ConfigError` that lists every
problem. Field descriptions are the documentation: config/README.md and workflow/schemas/ come from them.
Light on purpose (pydantic and yaml): the Snakefile imports this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from crewbench.engines import ENGINES
from crewbench.modes import MODES
from crewbench.problems import ConfigError, Problem, did_you_mean, key_path, read_yaml, shown
from crewbench.quality import TIMES
from crewbench.start import STARTS
from crewbench.trial import AgentSpec, Cell, TaskSpec

# ---------------------------------------------------------------- types of values

T = TypeVar("T")


def _number(value: Any) -> Any:
    # YAML reads `yes` as true, and true is 1 in Python: a count of "yes" is a mistake, not a 1.
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "must be a number")
    return value


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) or value is None else [value]


def _unique(values: tuple[T, ...]) -> tuple[T, ...]:
    twice = sorted({str(v) for v in values if values.count(v) > 1})
    if twice:
        raise PydanticCustomError(
            "unique", "must not name anything twice: {twice}", {"twice": ", ".join(twice)}
        )
    return values


def _one_of(known: Mapping[str, Any]) -> Any:
    """A name from a registry, with the registry's names in the JSON schema and in the error."""

    def check(name: str) -> str:
        if name not in known:
            raise PydanticCustomError("one_of", "must be one of {expected}", {"expected": ", ".join(known)})
        return name

    return Annotated[str, AfterValidator(check), WithJsonSchema({"type": "string", "enum": list(known)})]


_ADDRESS = r"^([^:/\s]+:[0-9]+|auto)$"


def _address(text: str) -> str:
    if not re.match(_ADDRESS, text):
        raise PydanticCustomError("address", "must be host:port or auto")
    return text


Natural = Annotated[int, Field(ge=0), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_number)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
Repeats = Annotated[Count, Field(le=10_000)]
Timeout = Annotated[Positive, Field(le=7 * 24 * 3600)]  # what waits counts in milliseconds of 31 bits
Share = Annotated[float, Field(gt=0, le=1), BeforeValidator(_number)]
# A folded YAML block ends in a newline that no author meant.
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Address = Annotated[str, AfterValidator(_address), WithJsonSchema({"type": "string", "pattern": _ADDRESS})]
ModeName = _one_of(MODES)
Engine = _one_of(ENGINES)
Start = _one_of(STARTS)
Length = Literal["fixed", "natural"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


class _OrOne:
    """Tells the JSON schema that one value alone stands for a list of one."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        schema = handler(core)
        return {"anyOf": [schema["items"], schema]}


# An axis is a list without repetitions.
_AXIS = (Field(min_length=1), BeforeValidator(_listed), AfterValidator(_unique), _OrOne())
Counts = Annotated[tuple[Count, ...], *_AXIS]
Engines = Annotated[tuple[Engine, ...], *_AXIS]
Starts = Annotated[tuple[Start, ...], *_AXIS]
Slugs = Annotated[tuple[Slug, ...], *_AXIS]


# ---------------------------------------------------------------- sections


class Section(BaseModel):
    """Closed and frozen. `--config` gives nested values as strings: "null" stands for null there."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        optional = {
            name for name, field in cls.model_fields.items() if type(None) in get_args(field.annotation)
        }
        return {k: None if k in optional and v in ("null", "~", "") else v for k, v in data.items()}


class Model(Section):
    """The model that every agent uses."""

    kind: Literal["synthetic", "local", "hub"] = Field(
        "synthetic",
        description="synthetic: random weights made from `seed`; local: a directory; hub: a model id that is "
        "in the local Hugging Face cache (nothing is downloaded)",
    )
    name: Slug | None = Field(
        None, description="name shown in the report; null: taken from shape, path or repo"
    )
    shape: Literal["tiny", "mistral-7b"] = Field(
        "tiny", description="synthetic: layers and widths of the model"
    )
    seed: Natural = Field(0, description="synthetic: seed of the random weights")
    path: Text | None = Field(
        None, description="local: directory with config.json, safetensors and tokenizer"
    )
    repo: Text | None = Field(None, description="hub: id such as mistralai/Mistral-7B-Instruct-v0.3")
    revision: Text = Field("main", description="hub: branch, tag or commit")
    dtype: DType = Field(
        "auto", description="type of the weights in memory; auto: the checkpoint's own (tiny: float32)"
    )
    stage: Text | None = Field(
        None,
        description="directory on a disk of the node's own, such as $TMPDIR or /scratch/$USER (variables are "
        "the node's), where each node keeps a copy that its trials load; null: they load the checkpoint "
        "where it is",
    )

    @model_validator(mode="after")
    def _complete(self) -> Model:
        needed = {"local": "path", "hub": "repo"}.get(self.kind)
        if needed and getattr(self, needed) is None:
            raise PydanticCustomError(
                "incomplete", "needs `{needed}` when kind is {kind}", {"needed": needed, "kind": self.kind}
            )
        return self


class Generation(Section):
    """What a step generates."""

    length: Length = Field(
        "fixed",
        description="fixed: every step generates exactly output_tokens, so modes do equal work (timing); "
        "natural: up to output_tokens, ending where the model ends (quality)",
    )
    output_tokens: Count = Field(32, description="tokens that a step generates (natural: at most)")


class Devices(Section):
    """What a trial runs on: GPUs, or CPU slots with a simulated memory budget."""

    kind: Literal["auto", "gpu", "slots"] = Field(
        "auto", description="auto: GPUs where there are any, else CPU slots"
    )
    gpus: Count | None = Field(
        None, description="gpu: how many a host has; null: as many as this host shows (a cluster must say it)"
    )
    slots: Count = Field(8, description="CPU slots that take the place of GPUs")
    slot_memory_mib: Count = Field(56, description="simulated memory budget of a slot, MiB")
    memory_budget_gib: Positive | None = Field(
        None, description="gpu: memory left to a trial on each GPU, GiB; null: the GPU's own"
    )


class Sampler(Section):
    """The process that samples the devices during a trial."""

    hz: Annotated[float, Field(gt=0, le=1000), BeforeValidator(_number)] = Field(
        20.0, description="samples per second and device"
    )


class Timeouts(Section):
    """When a trial gives up on something and records a timeout."""

    load_s: Timeout = Field(600.0, description="seconds until a worker must be ready")
    step_s: Timeout = Field(600.0, description="seconds that one step may take")


class Crew(Section):
    """Who works, and on what."""

    agents: Text = Field("config/agents.yaml", description="CrewAI agents: name: {role, goal, backstory}")
    tasks: Text = Field("config/tasks.yaml", description="CrewAI tasks: name: {description, expected_output}")
    inputs: dict[str, str] = Field(
        default_factory=dict, description="values of {placeholders} in those texts"
    )


CONDITION = {"condition": True}


class Variant(Section):
    """Options that a variant changes; null leaves what the rest of the file says.

    A `condition` sets the task or the machine; the others are ways to deploy, between which a reader chooses.
    """

    memory_mib: Count | None = Field(
        None, description="memory budget of each device, MiB", json_schema_extra=CONDITION
    )
    length: Length | None = Field(None, description="as generation.length", json_schema_extra=CONDITION)
    output_tokens: Count | None = Field(
        None, description="as generation.output_tokens", json_schema_extra=CONDITION
    )
    loader: Literal["transformers", "parallel"] | None = Field(
        None,
        description="how weights are read: transformers (from_pretrained, what null means) or parallel "
        "(many threads into pinned memory)",
    )
    cache_tokens: Count | None = Field(
        None, description="compiled: tokens that the static cache holds, prompt and output (null: 2048)"
    )
    cudnn_attention: bool | None = Field(
        None,
        description="eager, compiled: let torch choose cuDNN's attention, as it does by itself on Hopper "
        "(null: no for eager, where it makes a plan for each length and thread; yes for compiled)",
    )
    layout: Literal["tensor", "replicas"] | None = Field(
        None,
        description="served: tensor (one server over all GPUs, what null means) or replicas (one on each)",
    )
    clients: Literal["processes", "threads"] | None = Field(
        None,
        description="served: where the agents run, as processes forked once (what null means) or as threads",
    )
    port: Annotated[int, Field(ge=1, le=65535), BeforeValidator(_number)] | None = Field(
        None, description="served: the server's TCP port on the loopback (null: any free one)"
    )
    ray_address: Address | None = Field(
        None,
        description="actors: a Ray that runs on this host, as host:port, or auto for what RAY_ADDRESS says "
        "when the trial starts (null: each trial starts its own)",
    )
    hosts: Count | None = Field(
        None,
        description="actors: how many hosts of the Ray at ray_address a trial spans, with as many of its "
        "`gpus` on each, without a memory budget of GPUs (null: 1, the trial's own)",
    )
    prefix_cache: bool | None = Field(
        None,
        description="served: keep the KV cache of prompts seen before (null: no, so that every round does "
        "all its work)",
        json_schema_extra=CONDITION,
    )
    enforce_eager: bool | None = Field(None, description="vllm: start without compiling (null: no)")

    devices_per_copy: Count | None = Field(
        None,
        description="devices that each copy of the model is spread over, for a model too big for one "
        "(null: 1; `gpus` must be a multiple)",
    )

    allocation: Literal["trial", "attempt"] | None = Field(
        None,
        description="on a cluster, for a mode with several attempts: trial (one for all of them, what null "
        "means) or attempt (a larger one for each, asked for after the one before ran out of memory)",
    )

    @property
    def options(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


def conditions(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a variant's options that set the task or the machine."""
    fields = Variant.model_fields
    return {n: v for n, v in options.items() if n in fields and fields[n].json_schema_extra == CONDITION}


class Run(Section):
    """One entry of the matrix: the product of its lists. Cells that make no sense are skipped, with why."""

    mode: ModeName = Field(description="how the agents are deployed")
    gpus: Counts = Field((1,), description="numbers of devices")
    agents: Counts | None = Field(
        None, description="numbers of agents, from the top of crew.agents; null: all of them"
    )
    engine: Engines = Field(("eager",), description="what makes the tokens")
    start: Starts | None = Field(
        None,
        description="state before round 0: zygote (forked, imports done), process (new process, weights in "
        "the page cache), disk (new process, weights evicted from the page cache); null: zygote, or process "
        "where the mode starts servers or actors",
    )
    variant: Slugs = Field(("base",), description="names from `variants`")
    repeats: Repeats | None = Field(None, description="null: as `repeats` of the whole file")
    warm_rounds: Natural | None = Field(None, description="null: as `warm_rounds` of the whole file")


class Report(Section):
    """How results are shown. Changing it replots and reruns no trial."""

    title: Text = Field("Where should the models live?", description="title of results/report.html")
    palette: Literal["colorblind", "deep", "muted"] = Field(
        "colorblind", description="seaborn palette of the figures"
    )
    png_dpi: Annotated[int, Field(ge=1, le=600), BeforeValidator(_number)] = Field(
        120, description="dots per inch of the PNG figures"
    )


class Thresholds(Section):
    """What counts as good. Changing it rewrites the report and reruns no trial."""

    scaling_efficiency: Share = Field(
        0.5, description="speedup over GPUs or agents, over the ideal one, below which more do not pay"
    )
    deadline_s: Positive | None = Field(
        None,
        description="seconds that a round's makespan must stay within, warm where it was measured, else cold "
        "(null: latency is not judged)",
    )
    orchestration_share: Share = Field(
        0.2, description="share of a makespan above which framework and queue together are too much"
    )
    framework_ratio: Positive = Field(
        1.05, description="warm makespan over its replay without CrewAI that the framework should stay within"
    )
    idle_share: Share = Field(0.02, description="share of a makespan that may stay unexplained")
    logit_error: Positive = Field(
        TIMES,
        description="an engine whose logits are further from float32's than this many times the error of a "
        "plain forward in its own type differs (2: a bit of the mantissa more; docs/method.md)",
    )


class Study(Section):
    """When `make study`, which raises `repeats` by itself, has enough. Changing it reruns no trial."""

    half_width_pct: Positive = Field(
        5.0, description="half of a makespan's 95 % interval, in % of its estimate, that is narrow enough"
    )
    repeats_max: Repeats = Field(20, description="repeats at which it stops, however wide intervals are")


class Config(Section):
    """One study."""

    seed: Natural = Field(
        1, description="seed of the order of trials, and of the conversations that engines are checked on"
    )
    repeats: Repeats = Field(3, description="trials per cell")
    warm_rounds: Natural = Field(2, description="rounds after the cold one, on the same workers")
    replay: bool = Field(
        True,
        description="after each warm round, make its model calls once more without CrewAI and LangChain: the "
        "difference is what the framework costs",
    )
    exclusive: bool = Field(
        True, description="true: a trial has its host to itself; false: trials share a host by GPU"
    )
    threads_per_worker: Count = Field(1, description="CPU threads of torch in each worker")
    model: Model = Field(default_factory=Model, description="the model that every agent uses")
    generation: Generation = Field(default_factory=Generation, description="what a step generates")
    devices: Devices = Field(default_factory=Devices, description="what a trial runs on")
    sampler: Sampler = Field(default_factory=Sampler, description="sampling of the devices")
    timeouts: Timeouts = Field(default_factory=Timeouts, description="when to give up")
    crew: Crew = Field(default_factory=Crew, description="agents and tasks")
    variants: dict[Slug, Variant] = Field(
        default_factory=dict, description="name: options. `base` (no options) is always there"
    )
    runs: tuple[Run, ...] = Field(
        description="what to run, as a list (a list in a second --configfile replaces this one)"
    )
    report: Report = Field(default_factory=Report, description="how results are shown")
    thresholds: Thresholds = Field(default_factory=Thresholds, description="what counts as good")
    study: Study = Field(default_factory=Study, description="when `make study` has enough repeats")

    @model_validator(mode="before")
    @classmethod
    def _base(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("variants", {}), Mapping):
            return {**data, "variants": {"base": {}, **data.get("variants", {})}}
        return data


# ---------------------------------------------------------------- pydantic's errors in plain words


def _fields_at(loc: tuple[str | int, ...]) -> tuple[type[Section] | None, dict[str, str]]:
    """The section that holds the last key of `loc`, and every known key by its own last name."""
    section: Any = Config
    for part in loc[:-1]:
        if isinstance(part, int) or section is None:
            continue
        if section is Config and part == "variants":
            section = Variant
        elif section is Config and part == "runs":
            section = Run
        elif isinstance(section, type) and part in section.model_fields:
            kind = section.model_fields[part].annotation
            section = kind if isinstance(kind, type) and issubclass(kind, Section) else None
    elsewhere = {}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            elsewhere.update({key: f"{name}.{key}" for key in field.annotation.model_fields})
    return section, elsewhere


_PLAIN = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text (in quotes, if it looks like a number)",
    "string_too_short": "must not be empty",
    "too_short": "must have at least one entry",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of names to values",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "string_pattern_mismatch": "must be lower-case letters and digits, with single hyphens between",
}


def _problem(error: Mapping[str, Any]) -> Problem:
    """pydantic's error in the words of a person who edits YAML."""
    loc = tuple(p for p in error["loc"] if p != "[key]")
    kind, context, found = error["type"], error.get("ctx", {}), error["input"]
    key = key_path(loc) or "the file"
    if kind == "extra_forbidden":
        section, elsewhere = _fields_at(loc)
        name = str(loc[-1])
        known = list(section.model_fields) if section else []
        hint = did_you_mean(name, known)
        if not hint and name in elsewhere:
            hint = f"did you mean '{elsewhere[name]}'?"
        return Problem(key, "unknown key", None, hint or f"known here: {', '.join(known)}")
    if kind == "missing":
        right = "is missing"
        if loc[-1] == "mode":
            right += f": one of {', '.join(MODES)}"
        elif loc[-1] == "runs":
            right += ": a list of what to run, such as [{mode: shared}]"
        return Problem(key, right)
    if kind in ("literal_error", "one_of"):
        expected = str(context["expected"]).replace(" or ", ", ").replace("'", "")
        return Problem(
            key, f"must be one of {expected}", shown(found), did_you_mean(found, expected.split(", "))
        )
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        word = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
        name = next(n for n in word if n in context)
        limit = context[name]
        limit = int(limit) if float(limit).is_integer() else limit
        return Problem(key, f"must be {word[name]} {limit}", shown(found))
    if kind == "incomplete":
        return Problem(
            key_path((*loc, context["needed"])), f"is missing: model.kind {context['kind']} needs it"
        )
    return Problem(key, _PLAIN.get(kind, error["msg"]), shown(found))


def _only_follows(error: Mapping[str, Any]) -> bool:
    """pydantic calls a list too short when its entries are bad: they have been named already."""
    return error["type"] == "too_short" and len(error["input"]) > 0


# ---------------------------------------------------------------- the crew's files


class AgentEntry(Section):
    """An agent of agents.yaml."""

    role: Text
    goal: Text
    backstory: Text


class TaskEntry(Section):
    """A task of tasks.yaml."""

    description: Text
    expected_output: Text


@dataclass(frozen=True, slots=True)
class CrewTexts:
    """Agents in the order of their file, and tasks by name."""

    agents: tuple[AgentSpec, ...]
    tasks: dict[str, TaskSpec]


_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_\-]*)\}")


def placeholders(*texts: str) -> set[str]:
    """The {names} in texts that CrewAI will fill in from the inputs."""
    return {name for text in texts for name in _PLACEHOLDER.findall(text)}


def _entries(path: Path, entry: type[Section], problems: list[Problem]) -> dict[str, Any]:
    try:
        data = read_yaml(path)
    except ConfigError as error:
        problems += [Problem(f"{path}: {p.key}", p.right, p.found, p.hint) for p in error.problems]
        return {}
    good: dict[str, Any] = {}
    for name, value in data.items():
        if str(name) in good:
            right = "stands there twice, as a number and as text: keep one of them"
            problems.append(Problem(f"{path}: {name}", right))
        if not str(name).strip():
            problems.append(Problem(str(path), "a name must not be empty", shown(name)))
        try:
            good[str(name)] = entry.model_validate(value)
        except ValidationError as error:
            for e in error.errors():
                key = f"{path}: {key_path((str(name), *e['loc']))}"
                if e["type"] == "extra_forbidden":
                    word = e["loc"][-1]
                    hint = did_you_mean(word, entry.model_fields)
                    if entry is TaskEntry and word == "agent":
                        hint = "the mode says which agent gets which task: remove it"
                    known = ", ".join(entry.model_fields)
                    problems.append(Problem(key, "unknown key", None, hint or f"known here: {known}"))
                else:
                    p = _problem({**e, "loc": (name, *e["loc"])})
                    problems.append(Problem(key, p.right, p.found, p.hint))
    if not data:
        problems.append(
            Problem(str(path), f"names nothing: give at least one, with {', '.join(entry.model_fields)}")
        )
    return good


def read_crew(crew: Crew, root: Path = Path()) -> tuple[CrewTexts, list[Problem]]:
    """The texts of agents and tasks, as far as their files are good, and what is wrong with them."""
    problems: list[Problem] = []
    agents = _entries(root / crew.agents, AgentEntry, problems)
    tasks = _entries(root / crew.tasks, TaskEntry, problems)
    texts = CrewTexts(
        tuple(AgentSpec(n, a.role, a.goal, a.backstory) for n, a in agents.items()),
        {n: TaskSpec(n, t.description, t.expected_output) for n, t in tasks.items()},
    )
    for path, group in ((crew.agents, texts.agents), (crew.tasks, texts.tasks.values())):
        for item in group:
            values = [getattr(item, f) for f in item.__slots__ if f != "name"]
            for name in sorted(placeholders(*values) - set(crew.inputs)):
                hint = did_you_mean(name, crew.inputs) or f"add `{name}` to crew.inputs"
                problems.append(
                    Problem(f"{path}: {item.name}", f"uses {{{name}}}, which crew.inputs lacks", None, hint)
                )
    return texts, problems


# ---------------------------------------------------------------- checks across sections


def _check_variants(config: Config, runs: Mapping[int, Run], root: Path) -> Iterator[Problem]:
    if config.variants["base"].options:
        yield Problem(
            "variants.base",
            "must have no options: base is what nothing varies",
            shown(config.variants["base"].options),
        )
    for i, run in runs.items():
        for name in run.variant:
            if name not in config.variants:
                yield Problem(
                    f"runs[{i}].variant",
                    f"must be one of {', '.join(config.variants)} (see variants)",
                    shown(name),
                    did_you_mean(name, config.variants),
                )


def _check_devices(config: Config, runs: Mapping[int, Run], root: Path) -> Iterator[Problem]:
    budget = config.devices.memory_budget_gib
    if config.devices.kind == "slots" and budget is not None:
        yield Problem(
            "devices.memory_budget_gib",
            "is for GPUs, and devices.kind is slots: say slot_memory_mib, set kind: gpu, or make it null",
            shown(budget),
        )
    have = {"slots": config.devices.slots, "gpu": config.devices.gpus}.get(config.devices.kind)
    key = {"slots": "devices.slots", "gpu": "devices.gpus"}.get(config.devices.kind)
    if have is None:
        return
    for i, run in runs.items():
        # A variant over several hosts has them of each; the matrix looks at every cell by itself.
        known = (config.variants[name] for name in run.variant if name in config.variants)
        if max(run.gpus) > have * max((variant.hosts or 1 for variant in known), default=1):
            yield Problem(
                f"runs[{i}].gpus",
                f"must be at most {have}, the number in {key}: lower it or raise {key}",
                str(max(run.gpus)),
            )


_OF_KIND = {"path": ("local", None), "repo": ("hub", None), "revision": ("hub", "main")}
"""Keys of `model` that one kind reads, and what they are when nobody says anything. `shape` and `seed` are
not among them: config.yaml says such things below each study that is laid over it."""


def _check_model(config: Config, runs: Mapping[int, Run], root: Path) -> Iterator[Problem]:
    for name, (kind, unsaid) in _OF_KIND.items():
        said = getattr(config.model, name)
        if config.model.kind != kind and said != unsaid:
            right = f"is for kind {kind}, and model.kind is {config.model.kind}: set kind: {kind}, "
            right += "or make it null" if unsaid is None else f"or make it {unsaid}"
            yield Problem(f"model.{name}", right, shown(said))
    if config.model.kind == "local":
        yield from check_model_dir("model.path", root / Path(config.model.path).expanduser())


def check_model_dir(key: str, path: Path) -> Iterator[Problem]:
    """What keeps a directory from being a checkpoint that an agent can use. Reads headers, no weights."""
    from crewbench.checkpoint.files import CheckpointError
    from crewbench.checkpoint.manifest import check

    if not path.is_dir():
        right = "must be an existing directory: put the checkpoint there, or correct the path"
        yield Problem(key, right, shown(str(path)))
        return
    try:
        check(path)
    except CheckpointError as error:
        yield Problem(key, str(error))


def tasks_of(cell: Cell) -> dict[str, int]:
    """The task names that a cell's steps use, each with the first agent that gets it."""
    found: dict[str, int] = {}
    for deployment in MODES[cell.mode].attempts(cell):
        for step in deployment.steps:
            found.setdefault(step.task, step.agent)
    return found


def _check_crew(config: Config, runs: Mapping[int, Run], root: Path) -> Iterator[Problem]:
    texts, problems = read_crew(config.crew, root)
    yield from problems
    if any(str(root / config.crew.agents) in p.key for p in problems):
        return
    missing: dict[str, str] = {}
    for i, run in runs.items():
        for n in run.agents or ():
            if n > len(texts.agents):
                yield Problem(
                    f"runs[{i}].agents",
                    f"must be at most {len(texts.agents)}, the number in {config.crew.agents}: "
                    "lower it or add agents",
                    str(n),
                )
        size = min(max(run.agents or (len(texts.agents),)), len(texts.agents))
        if not size:
            continue
        cell = Cell(run.mode, 1, size, run.engine[0], (run.start or ("zygote",))[0])
        if MODES[run.mode].unfit(cell) is None:
            for name, agent in tasks_of(cell).items():
                if name not in texts.tasks:
                    missing.setdefault(name, f"mode {run.mode} gives it to agent {texts.agents[agent].name}")
    for name, why in missing.items():
        yield Problem(
            f"{config.crew.tasks}: {name}", f"task is missing: {why}", None, did_you_mean(name, texts.tasks)
        )


_CHECKS = (
    ({"variants"}, _check_variants),
    ({"devices"}, _check_devices),
    ({"model"}, _check_model),
    ({"crew"}, _check_crew),
)


def load(source: str | Path | Mapping[str, Any], root: str | Path = ".") -> Config:
    """Reads a config file, or takes the mapping that Snakemake read. Paths in it are relative to `root`.

    Raises ConfigError with every problem of the file, of its crew files and between its sections.
    """
    name = "the config" if isinstance(source, Mapping) else str(source)
    data = dict(source) if isinstance(source, Mapping) else read_yaml(source)
    problems: list[Problem] = []
    bad: set[tuple[str | int, ...]] = set()
    try:
        config = Config.model_validate(data)
        runs = dict(enumerate(config.runs))
    except ValidationError as error:
        errors = [e for e in error.errors(include_url=False) if not _only_follows(e)]
        problems += [_problem(e) for e in errors]
        bad = {e["loc"] for e in errors}
        config, runs = _what_is_good(data, bad)
    if not runs and not bad:
        problems.append(Problem("runs", "must have at least one entry, or there are 0 trials", "[]"))
    sections = {loc[0] for loc in bad if loc}
    for needs, check in _CHECKS:
        if not needs & sections:
            problems += check(config, runs, Path(root))
    if problems:
        raise ConfigError(name, problems)
    return config


def _what_is_good(data: Mapping[str, Any], bad: set[tuple[str | int, ...]]) -> tuple[Config, dict[int, Run]]:
    """The config without its bad sections and runs, so that the other checks can still speak."""
    sections = {loc[0] for loc in bad if loc}
    runs = data.get("runs")
    runs = list(runs) if isinstance(runs, (list, tuple)) else []
    bad_runs = {loc[1] for loc in bad if loc[:1] == ("runs",) and len(loc) > 1}
    good_runs = {i: Run.model_validate(r) for i, r in enumerate(runs) if i not in bad_runs}
    good = {k: v for k, v in data.items() if k in Config.model_fields and k not in sections and k != "runs"}
    return Config.model_validate({**good, "runs": []}), good_runs
