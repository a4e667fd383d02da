"""The pinned environment: complete, exact, and the same for pip and conda."""

import ast
import importlib.util
import sys
from importlib.metadata import packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILES = (
    *("requirements.txt", "requirements-serving.txt", "requirements-ray.txt"),
    *("requirements-slurm.txt", "requirements-vllm.txt", "requirements-dev.txt"),
)


def pins(path):
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r ")]


@pytest.fixture
def lock(root):
    spec = importlib.util.spec_from_file_location("lock", root / "envs/lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", FILES)
def test_every_requirement_is_pinned_exactly_and_to_no_private_build(root, name):
    found = pins(root / "envs" / name)
    assert found
    for pin in found:
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "*" not in specifier.version and "+" not in specifier.version
        assert pin.url is None


def test_the_lock_files_are_what_make_lock_writes(root, lock):
    for name, text in lock.texts().items():
        assert (root / "envs" / name).read_text() == text


def test_every_import_of_the_project_is_a_direct_requirement(root):
    named = {
        canonicalize_name(pin.name)
        for name in (
            "requirements.in",
            "requirements-serving.in",
            "requirements-ray.in",
            "requirements-slurm.in",
            "requirements-dev.in",
        )
        for pin in pins(root / "envs" / name)
    }
    # These come with a direct requirement and are only used together with it.
    named |= {"pydantic-core", "packaging", "jsonschema", "crewai-core", "markupsafe"}
    named |= {"snakemake-interface-executor-plugins"}
    folders = [root / "scripts", root / "tests", root / "envs", root / "bench"]
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    own = {path.stem for path in sources} | {"crewbench"}
    providers = packages_distributions()
    missing = set()
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            for module in (m.split(".")[0] for m in modules):
                if module in sys.stdlib_module_names or module in own:
                    continue
                if not {canonicalize_name(d) for d in providers.get(module, [module])} & named:
                    missing.add(f"{module} in {path.relative_to(root)}")
    assert missing == set()


def test_the_conda_file_wraps_the_pinned_requirements(root):
    data = yaml.safe_load((root / "envs/crewbench.yaml").read_text())
    assert data["channels"] == ["conda-forge", "nodefaults"]
    (pip,) = [d for d in data["dependencies"] if isinstance(d, dict)]
    assert pip == {"pip": ["-r requirements.txt"]}
    assert "python =3.11" in data["dependencies"]


def test_every_rule_names_the_conda_file(root):
    rules = [path.read_text() for path in (root / "workflow/rules").glob("*.smk")]
    assert sum(text.count("\nrule ") for text in rules) == 6
    for text in rules:
        assert text.count("\nrule ") == text.count('"../../envs/crewbench.yaml"')
