"""What is generated from the models is in step with them."""

import json

import pytest
import yaml
from jsonschema import Draft202012Validator

import schema
from crewbench.config import load

CONFIGS = ("config.yaml", "mistral-7b.yaml", "mistral-7b-synthetic.yaml")


@pytest.fixture(scope="module")
def validator():
    return Draft202012Validator(schema.schemas()["config.schema.json"])


@pytest.mark.parametrize("path", schema.texts(), ids=lambda path: path.name)
def test_the_file_is_what_make_schema_writes(path):
    assert path.read_text(encoding="utf-8") == schema.texts()[path]


def test_the_schemas_are_valid_schemas():
    for made in schema.schemas().values():
        Draft202012Validator.check_schema(made)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_editor_accepts_the_shipped_configs(root, validator, name):
    data = yaml.safe_load((root / "config" / name).read_text())
    assert [e.message for e in validator.iter_errors(data)] == []


@pytest.mark.parametrize(("name", "made"), [("agents", "agents.schema.json"), ("tasks", "tasks.schema.json")])
def test_an_editor_accepts_the_shipped_crew(root, name, made):
    data = yaml.safe_load((root / f"config/{name}.yaml").read_text())
    assert [e.message for e in Draft202012Validator(schema.schemas()[made]).iter_errors(data)] == []


@pytest.mark.parametrize(
    "data",
    [
        {"runs": [{"mode": "shared", "gpu": 1}]},
        {"runs": [{"mode": "fast"}]},
        {"runs": [{"mode": "shared"}], "modle": {}},
        {"runs": [{"mode": "shared"}], "repeats": 0},
        {"runs": [{"mode": "shared"}], "model": {"shape": "small"}},
        {"runs": [{"mode": "shared"}], "variants": {"a": {"memory": 1}}},
        {"runs": [{"mode": "shared"}], "variants": {"A b": {}}},
        {},
    ],
)
def test_an_editor_refuses_what_loading_refuses(root, validator, data):
    assert list(validator.iter_errors(data))
    with pytest.raises(ValueError):
        load(data, root)


def _objects(node):
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield node
        for value in node.values():
            yield from _objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from _objects(value)


def test_every_schema_is_closed_at_every_level():
    for made in schema.schemas().values():
        assert all("additionalProperties" in found for found in _objects(made)), json.dumps(made)[:200]


def test_every_key_is_described_in_the_reference():
    text = schema.readme()
    for made in schema.schemas()["config.schema.json"]["$defs"].values():
        for name, field in made["properties"].items():
            assert field.get("description"), name
            assert f".{name}`" in text
