"""Hashes of code for the rules' params: Snakemake does not track imported modules.

A file counts by its syntax tree without docstrings, so an edited comment or docstring reruns nothing and an
edited statement reruns what it can change. For trials that is a list, TRIAL; what a mode does is hashed by
the Deployments that it makes (matrix.deployments8), so an edited mode reruns that mode alone. For tables,
figures and the report it is all that their script imports.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent

TRIAL = (
    "trial.py",
    "crewbench/crews.py",
    "crewbench/deployment.py",
    "crewbench/extras.py",
    "crewbench/records.py",
    "crewbench/runners.py",
    "crewbench/start.py",
    "crewbench/trial.py",
    "crewbench/checkpoint/files.py",
    "crewbench/checkpoint/footprint.py",
    "crewbench/checkpoint/manifest.py",
    "crewbench/checkpoint/stage.py",
    "crewbench/devices/**/*.py",
    "crewbench/engines/**/*.py",
    "crewbench/execute/**/*.py",
    "crewbench/watch.py",
)
"""What runs in a trial. A test follows the imports of scripts/trial.py and compares."""

QUALITY = (
    "quality.py",
    "crewbench/crews.py",
    "crewbench/deployment.py",
    "crewbench/extras.py",
    "crewbench/observation.py",
    "crewbench/quality.py",
    "crewbench/records.py",
    "crewbench/runners.py",
    "crewbench/start.py",
    "crewbench/trial.py",
    "crewbench/checkpoint/files.py",
    "crewbench/checkpoint/manifest.py",
    "crewbench/devices/**/*.py",
    "crewbench/engines/**/*.py",
    "crewbench/execute/__init__.py",
    "crewbench/execute/clients.py",
    "crewbench/execute/guardian.py",
    "crewbench/execute/keeper.py",
    "crewbench/execute/made.py",
    "crewbench/execute/preload.py",
    "crewbench/execute/process.py",
    "crewbench/execute/server.py",
    "crewbench/execute/setup.py",
    "crewbench/execute/surroundings.py",
    "crewbench/execute/worker.py",
    "crewbench/watch.py",
)
"""What runs in a check of an engine. Another test does the same for scripts/quality.py."""

UNMEASURED = {
    "crewbench/__init__.py": "a version number",
    "crewbench/attempts.py": "which attempt is next in an allocation of its own, not what it does",
    "crewbench/checkpoint/__init__.py": "holds nothing",
    "crewbench/config.py": "its effect is the Spec, which names the trial's directory",
    "crewbench/matrix.py": "the same",
    "crewbench/estimate.py": "what is told and reserved before a trial runs",
    "crewbench/inert.py": "how a message reads in a log",
    "crewbench/quality.py": "what is checked beside the trials; its own rule hashes it",
    "crewbench/problems.py": "words for what is wrong with a config",
    "crewbench/modes/": "its effect is the Deployments, which are hashed by themselves",
    "crewbench/provenance.py": "describes the machine after the work, beside the measurement",
}
"""What a trial imports that cannot change a measurement, and why."""

MODEL = (
    "model.py",
    "crewbench/checkpoint/**/*.py",
    "crewbench/devices/procfs.py",
    "crewbench/watch.py",
)
"""What makes a checkpoint."""


def files(patterns: Iterable[str], scripts: Path = SCRIPTS) -> list[Path]:
    """The files of those patterns, sorted. ValueError for a pattern that no file fits."""
    found: set[Path] = set()
    for pattern in patterns:
        some = [p for p in scripts.glob(pattern) if p.is_file()]
        if not some:
            raise ValueError(f"{pattern} fits no file in {scripts}: correct it in crewbench/code_hash.py")
        found.update(some)
    return sorted(found)


def code_hash(patterns: Iterable[str], scripts: Path = SCRIPTS) -> str:
    """Sixteen hex digits over what the files say in code. SyntaxError for a file that is not Python."""
    return _hash(files(patterns, scripts), scripts)


def script_hash(name: str, scripts: Path = SCRIPTS) -> str:
    """The same over a script, all of the project that it imports, and what lies beside an imported
    package's code (templates, style sheets)."""
    code = imports(scripts / f"{name}.py", scripts)
    packages = {p.parent for p in code if p.name == "__init__.py" and p.parent.name == name}
    beside = {p for d in packages for p in d.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    return _hash(sorted(code | beside), scripts)


def _hash(paths: Iterable[Path], scripts: Path) -> str:
    total = hashlib.sha256()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        said = statements(text) if path.suffix == ".py" else text
        total.update(f"{path.relative_to(scripts)}\0{said}\0".encode())
    return total.hexdigest()[:16]


def imports(start: Path, scripts: Path = SCRIPTS) -> set[Path]:
    """A file of the project and all others that it imports, directly or not, anywhere in their code."""
    found: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += _imported(path, scripts)
    return found


def _imported(path: Path, scripts: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            words = name.split(".")
            if words[0] == "crewbench":
                places = [scripts.joinpath(*words[:n]) for n in range(1, len(words) + 1)]
                candidates = [*(p / "__init__.py" for p in places), places[-1].with_suffix(".py")]
                yield from (p for p in candidates if p.is_file())


@cache
def statements(source: str) -> str:
    """A module's syntax tree as text, without docstrings, comments or places."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        # A string that stands alone does nothing: a docstring, of a variable too.
        if isinstance(body, list):
            node.body = [s for s in body if not _is_string(s)]
    return ast.dump(tree)


def _is_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
