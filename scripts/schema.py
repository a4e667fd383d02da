"""Write what is made from the config's models: the JSON schemas for editors, and config/README.md.

python scripts/schema.py            write them
python scripts/schema.py --check    fail when a file is not what it would write
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from crewbench.config import AgentEntry, Config, Section, TaskEntry
from crewbench.engines import ENGINES
from crewbench.modes import MODES
from crewbench.start import STARTS

ROOT = Path(__file__).resolve().parent.parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"

INTRODUCTION = """# Every key of a config

<!-- Made by `make schema` from scripts/crewbench/config.py: edit that file. -->

A study is one YAML file. `config.yaml` is the embedded one; lay another over it with
`snakemake --cores all --configfile config/mistral-7b.yaml`, or change one value with
`--config repeats=5 'generation={output_tokens: 64}'`. Mappings are merged, so a second file says only what
differs; lists are replaced, which is why `runs` is a list. A file with mistakes starts no job: every problem
is listed at once, with its key, what was found and what would be right.

| file | what it is |
|---|---|
| `config.yaml` | the embedded study: six modes on CPU slots, a tiny synthetic model, minutes |
| `mistral-7b.yaml` | the eight-agent study on GPUs, with local weights |
| `mistral-7b-synthetic.yaml` | the same shapes with random weights |
| `agents.yaml`, `tasks.yaml` | the crew's texts, in CrewAI's own convention |

What a trial reads is hashed into the name of its directory: a changed value reruns the trials that read it,
and switching it back reruns nothing. `report` and `thresholds` are read by no trial.

An editor that knows JSON schema (for YAML: the first line
`# yaml-language-server: $schema=../workflow/schemas/config.schema.json`) completes and checks as you type.
"""


def schemas() -> dict[str, dict[str, Any]]:
    """File name -> JSON schema. Closed at every level, as the models are."""
    made = {
        "config.schema.json": (Config.model_json_schema(), "A crewbench study"),
        "agents.schema.json": (TypeAdapter(dict[str, AgentEntry]).json_schema(), "CrewAI agents"),
        "tasks.schema.json": (TypeAdapter(dict[str, TaskEntry]).json_schema(), "CrewAI tasks"),
    }
    for schema, _ in made.values():
        _close(schema)
    return {name: {"$schema": DIALECT, **schema, "title": title} for name, (schema, title) in made.items()}


def _close(schema: Any) -> None:
    """pydantic leaves a mapping open beside the names that its pattern allows."""
    if isinstance(schema, dict):
        if "patternProperties" in schema:
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close(value)


def _type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema's type in a few words."""
    if "$ref" in schema:
        return _type(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    if "anyOf" in schema:
        one, *more = schema["anyOf"]
        if more and more[0].get("items") == one:
            return " or ".join(
                [f"{_type(one, definitions)} (or a list)", *(_type(s, definitions) for s in more[1:])]
            )
        return " or ".join(_type(s, definitions) for s in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{v}`" for v in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_type(schema['items'], definitions)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping of name to {_type(schema['additionalProperties'], definitions)}"
    words = {"integer": "whole number", "string": "text", "boolean": "true or false", "null": "null"}
    limits = [
        f"{sign} {schema[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in schema
    ]
    return " ".join([words.get(kind, str(kind)), ", ".join(limits)]).strip()


def _rows(prefix: str, section: type[Section], definitions: dict[str, Any]) -> Iterator[str]:
    schema = definitions[section.__name__] if section is not Config else Config.model_json_schema()
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            continue
        if section is Config and name in ("runs", "variants"):
            continue
        default = "required" if field.is_required() else f"`{_default(field)}`"
        kind = _type(schema["properties"][name], definitions).replace("|", "\\|")
        yield f"| `{prefix}{name}` | {kind} | {default} | {field.description} |"


def _names(options: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in options)


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def readme() -> str:
    """config/README.md: one table of keys per section, from the fields' descriptions."""
    definitions = Config.model_json_schema()["$defs"]
    parts = [INTRODUCTION]

    def table(title: str, about: str, prefix: str, section: type[Section]) -> None:
        head = "| key | value | default | meaning |\n|---|---|---|---|\n"
        rows = "\n".join(_rows(prefix, section, definitions))
        parts.append(f"## {title}\n\n{about}\n\n{head}{rows}\n")

    table("The study", "At the top of the file.", "", Config)
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            table(f"`{name}`", field.annotation.__doc__ or "", f"{name}.", field.annotation)
        elif name == "variants":
            from crewbench.config import Variant

            about = "Names for options that a run can ask for: `variants: {name: {option: value}}`. "
            table(
                "`variants`",
                about + "`base` has no options and is always there.",
                "variants.NAME.",
                Variant,
            )
        elif name == "runs":
            from crewbench.config import Run

            about = (Run.__doc__ or "") + " One value alone stands for a list of one."
            table("`runs`", about, "runs[].", Run)
    modes = "\n".join(f"| `{m.name}` | {m.title} | {m.idea} | {_names(m.options)} |" for m in MODES.values())
    parts.append(f"## Modes\n\n| mode | title | idea | its options |\n|---|---|---|---|\n{modes}\n")
    engines = "\n".join(f"| `{n}` | {e.title} | {_names(e.options)} |" for n, e in ENGINES.items())
    parts.append(f"## Engines\n\n| engine | what it is | its options |\n|---|---|---|\n{engines}\n")
    starts = "\n".join(f"| `{s.name}` | {s.title} |" for s in STARTS.values())
    parts.append(f"## Start states\n\n| start | round 0 begins with |\n|---|---|\n{starts}\n")
    return "\n".join(parts)


def texts() -> dict[Path, str]:
    """Every file that is made from the models, with what it should say."""
    folder = ROOT / "workflow/schemas"
    made = {folder / n: json.dumps(s, indent=2, ensure_ascii=False) + "\n" for n, s in schemas().items()}
    return {**made, ROOT / "config/README.md": readme()}


def main() -> int:
    check, stale = "--check" in sys.argv[1:], []
    for path, text in texts().items():
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
    if stale:
        print(f"{', '.join(stale)}: not in step with the models; run `make schema`", file=sys.stderr)
    return len(stale) > 0


if __name__ == "__main__":
    sys.exit(main())
