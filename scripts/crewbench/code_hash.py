"""A hash of the code that can change a measurement, for rule `trial`'s params.

Snakemake does not track imported modules. This hashes the syntax tree of each file below without its
docstrings, so an edited comment or docstring reruns nothing and an edited statement reruns every trial.
What a mode does is hashed by the Deployments that it makes (matrix.deployments8), so an edited mode reruns
that mode alone.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent

TRIAL = (
    "trial.py",
    "crewbench/crews.py",
    "crewbench/deployment.py",
    "crewbench/records.py",
    "crewbench/start.py",
    "crewbench/trial.py",
    "crewbench/checkpoint/files.py",
    "crewbench/checkpoint/footprint.py",
    "crewbench/checkpoint/manifest.py",
    "crewbench/devices/**/*.py",
    "crewbench/engines/**/*.py",
    "crewbench/execute/**/*.py",
)
"""What runs in a trial. A test follows the imports of scripts/trial.py and compares."""

UNMEASURED = {
    "crewbench/__init__.py": "a version number",
    "crewbench/checkpoint/__init__.py": "holds nothing",
    "crewbench/config.py": "its effect is the Spec, which names the trial's directory",
    "crewbench/matrix.py": "the same",
    "crewbench/problems.py": "words for what is wrong with a config",
    "crewbench/modes/": "its effect is the Deployments, which are hashed by themselves",
    "crewbench/provenance.py": "describes the machine after the work, beside the measurement",
}
"""What a trial imports that cannot change a measurement, and why."""

MODEL = (
    "model.py",
    "crewbench/checkpoint/**/*.py",
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
    total = hashlib.sha256()
    for path in files(patterns, scripts):
        total.update(
            f"{path.relative_to(scripts)}\0{statements(path.read_text(encoding='utf-8'))}\0".encode()
        )
    return total.hexdigest()[:16]


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
