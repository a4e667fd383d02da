"""What is wrong with a file a person wrote: where, what was found, what would be right.

Holds the YAML reader too, because YAML itself keeps the last of two equal keys and says nothing.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: where, what was found there (None: nothing), what would be right."""

    key: str
    right: str
    found: str | None = None
    hint: str = ""

    def __str__(self) -> str:
        found = f"found {self.found}; " if self.found is not None else ""
        return f"{self.key}: {found}{self.right}{f'; {self.hint}' if self.hint else ''}"


class ConfigError(ValueError):
    """A config that cannot be run. Its text lists every problem, one a line."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        n = len(self.problems)
        lines = "\n".join(f"  {p}" for p in self.problems)
        super().__init__(f"{source} has {n} problem{'s' if n != 1 else ''}:\n{lines}")


def key_path(parts: Iterable[str | int]) -> str:
    """runs, 2, mode -> runs[2].mode"""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice: YAML itself keeps the last and says nothing."""


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = True) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        try:
            if key in seen:
                loader.duplicates.append((key, seen[key], line))
            seen.setdefault(key, line)
        except TypeError:
            raise yaml.constructor.ConstructorError(
                None, None, "a list or mapping cannot be a key", key_node.start_mark
            ) from None
    loader.flatten_mapping(node)
    return yaml.constructor.SafeConstructor.construct_mapping(loader, node, deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. ConfigError with the line for broken YAML, and one problem for each
    key that is given twice in one place."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            str(path), [Problem("the file", f"does not exist in {path.parent.resolve()}")]
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            str(path), [Problem("the file", f"cannot be read as UTF-8 text: {error}")]
        ) from None
    loader = _Loader(text)
    loader.duplicates = []
    try:
        data = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "the file"
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        began = getattr(error, "context_mark", None)
        if began and mark and began.line != mark.line:
            what += f" ({error.context} that begins on line {began.line + 1})"
        line = text.splitlines()[mark.line].strip() if mark and mark.line < len(text.splitlines()) else None
        raise ConfigError(
            str(path), [Problem(where, f"is not YAML: {what}", shown(line) if line else None)]
        ) from None
    finally:
        loader.dispose()
    if loader.duplicates:
        raise ConfigError(
            str(path),
            [
                Problem(f"line {line}", f"key {key!r} stands on line {first} already: keep one of them")
                for key, first, line in sorted(loader.duplicates, key=lambda d: d[2])
            ],
        )
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(
            str(path), [Problem("the file", "must be a mapping of keys to values", shown(data))]
        )
    return data


@contextmanager
def or_exit() -> Iterator[None]:
    """Ends the program with the problems as its only words: a traceback would bury them."""
    try:
        yield
    except ConfigError as error:
        sys.exit(str(error))
