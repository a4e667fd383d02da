"""The hash of the measuring code: blind to words, awake to statements, and complete."""

import ast
import shutil

import pytest

from crewbench import code_hash
from crewbench.code_hash import MODEL, SCRIPTS, TRIAL, UNMEASURED, files, statements

SOURCE = '''
"""A module."""


class A:
    """A class."""

    size = 1
    """A variable."""

    def f(self):
        """A function."""
        return 1  # one
'''


def test_comments_docstrings_and_layout_are_not_code():
    edited = SOURCE.replace("# one", "# uno").replace("A ", "One ").replace("\n\n    def", "\n\n\n    def")
    assert edited != SOURCE
    assert statements(edited) == statements(SOURCE)
    assert statements("def f():\n    'words'\n") == statements("def f():\n    'other words'\n")


@pytest.mark.parametrize(
    ("old", "new"), [("return 1", "return 2"), ("size = 1", "size = 2"), ("f(self", "g(self")]
)
def test_a_changed_statement_is_another_hash(old, new):
    assert statements(SOURCE.replace(old, new)) != statements(SOURCE)


def test_a_string_that_is_used_is_code():
    assert statements("x = 'a'") != statements("x = 'b'")


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(SCRIPTS, tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "scripts"


def test_the_hash_of_the_trial_sees_each_of_its_files(copy):
    before = code_hash.code_hash(TRIAL, copy)
    assert before == code_hash.code_hash(TRIAL)
    seen = set()
    for path in files(TRIAL, copy):
        text = path.read_text()
        path.write_text(text + "\n# a comment\n")
        assert code_hash.code_hash(TRIAL, copy) == before
        path.write_text(text + "\nADDED = 1\n")
        seen.add(code_hash.code_hash(TRIAL, copy))
        path.write_text(text)
    assert len(seen) == len(files(TRIAL, copy)) and before not in seen


def test_a_new_file_among_the_measuring_code_is_another_hash(copy):
    before = code_hash.code_hash(TRIAL, copy)
    (copy / "crewbench/execute/extra.py").write_text("X = 1\n")
    assert code_hash.code_hash(TRIAL, copy) != before


@pytest.mark.parametrize("name", ["figures.py", "tables.py", "config.py", "modes/shared.py"])
def test_what_does_not_measure_is_not_in_the_hash(copy, name):
    before = code_hash.code_hash(TRIAL, copy)
    path = copy / "crewbench" / name
    path.write_text(path.read_text() + "\nADDED = 1\n")
    assert code_hash.code_hash(TRIAL, copy) == before


def test_a_pattern_that_fits_nothing_is_an_error(copy):
    with pytest.raises(ValueError, match="crewbench/gone.py fits no file"):
        files(["crewbench/gone.py"], copy)


def imported(path):
    """The project's files that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "crewbench":
                place = SCRIPTS.joinpath(*name.split("."))
                yield from (p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file())
                parents = [SCRIPTS.joinpath(*name.split(".")[:n]) for n in range(1, name.count(".") + 1)]
                yield from (p / "__init__.py" for p in parents if (p / "__init__.py").is_file())


def closure(start):
    found, todo = set(), [start]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += imported(path)
    return found


def test_what_a_trial_imports_is_hashed_or_named_as_not_measuring():
    unmeasured = tuple(str(SCRIPTS / name) for name in UNMEASURED)
    hashed = set(files(TRIAL))
    unknown = {
        p for p in closure(SCRIPTS / "trial.py") if p not in hashed and not str(p).startswith(unmeasured)
    }
    assert {str(p.relative_to(SCRIPTS)) for p in unknown} == set()


def test_what_builds_the_model_is_hashed():
    hashed = set(files(MODEL))
    built = {p for p in closure(SCRIPTS / "model.py") if p.name != "__init__.py" or "checkpoint" in p.parts}
    assert built <= hashed


def test_what_is_named_as_not_measuring_exists():
    assert all((SCRIPTS / name).exists() and why for name, why in UNMEASURED.items())
