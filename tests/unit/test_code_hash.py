"""The hash of the measuring code: blind to words, awake to statements, and complete."""

import shutil

import pytest

from crewbench import code_hash
from crewbench.code_hash import MODEL, QUALITY, SCRIPTS, TRIAL, UNMEASURED, files, imports, statements

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


@pytest.mark.parametrize("name", ["figures/starting.py", "tables/summary.py", "config.py", "modes/shared.py"])
def test_what_does_not_measure_is_not_in_the_hash(copy, name):
    before = code_hash.code_hash(TRIAL, copy)
    path = copy / "crewbench" / name
    path.write_text(path.read_text() + "\nADDED = 1\n")
    assert code_hash.code_hash(TRIAL, copy) == before


def test_a_pattern_that_fits_nothing_is_an_error(copy):
    with pytest.raises(ValueError, match="crewbench/gone.py fits no file"):
        files(["crewbench/gone.py"], copy)


def test_what_a_trial_imports_is_hashed_or_named_as_not_measuring():
    unmeasured = tuple(str(SCRIPTS / name) for name in UNMEASURED)
    hashed = set(files(TRIAL))
    unknown = {
        p for p in imports(SCRIPTS / "trial.py") if p not in hashed and not str(p).startswith(unmeasured)
    }
    assert {str(p.relative_to(SCRIPTS)) for p in unknown} == set()


def test_what_a_check_of_an_engine_imports_is_hashed_or_named_as_not_measuring():
    unmeasured = tuple(str(SCRIPTS / name) for name in UNMEASURED)
    hashed = set(files(QUALITY))
    assert SCRIPTS / "crewbench/quality.py" in hashed
    unknown = {
        p for p in imports(SCRIPTS / "quality.py") if p not in hashed and not str(p).startswith(unmeasured)
    }
    assert {str(p.relative_to(SCRIPTS)) for p in unknown} == set()


def test_what_builds_the_model_is_hashed():
    hashed = set(files(MODEL))
    built = {p for p in imports(SCRIPTS / "model.py") if p.name != "__init__.py" or "checkpoint" in p.parts}
    assert built <= hashed


def test_what_is_named_as_not_measuring_exists():
    assert all((SCRIPTS / name).exists() and why for name, why in UNMEASURED.items())


@pytest.mark.parametrize(
    ("script", "files_seen"),
    [
        ("tables", {"crewbench/tables/summary.py", "crewbench/tables/shown.py", "crewbench/records.py"}),
        ("figures", {"crewbench/figures/starting.py", "crewbench/tables/__init__.py"}),
        ("report", {"crewbench/report/__init__.py"}),
    ],
)
def test_a_script_is_hashed_with_all_that_it_imports(copy, script, files_seen):
    before = code_hash.script_hash(script, copy)
    for name in files_seen:
        path = copy / name
        text = path.read_text()
        path.write_text(text + "\n# a comment\n")
        assert code_hash.script_hash(script, copy) == before
        path.write_text(text + "\nADDED = 1\n")
        assert code_hash.script_hash(script, copy) != before
        path.write_text(text)


def test_the_reports_templates_are_hashed_with_it(copy):
    before = code_hash.script_hash("report", copy)
    template = next(p for p in (copy / "crewbench/report").rglob("*") if p.suffix not in (".py", ""))
    template.write_text(template.read_text() + "\n")
    assert code_hash.script_hash("report", copy) != before
    assert code_hash.script_hash("figures", copy) == code_hash.script_hash("figures")


def test_an_edited_figure_leaves_the_tables_alone(copy):
    before = code_hash.script_hash("tables", copy)
    path = copy / "crewbench/figures/starting.py"
    path.write_text(path.read_text() + "\nADDED = 1\n")
    assert code_hash.script_hash("tables", copy) == before
