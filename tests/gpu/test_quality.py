"""Engines on a real GPU compute what the checkpoint says: the tiny checkpoint, by the script itself.

For a big one: `scripts/quality.py --model DIR --engine compiled --out DIR` prints the same in one line.
"""

import json
import sys

import pytest

from crewbench import quality
from crewbench.quality import FLOOR, Agreement
from made_study import SCRIPTS, run

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    spec = '{"kind": "synthetic", "shape": "tiny", "seed": 0, "dtype": "bfloat16", "model_id": "tiny"}'
    run(sys.executable, SCRIPTS / "model.py", "--spec", spec, "--out", place, cwd=place)
    return place


def checked(model, out, engine, dtype, options="{}"):
    words = ("--engine", engine, "--dtype", dtype, "--options", options)
    done = run(sys.executable, SCRIPTS / "quality.py", "--model", model, "--out", out, *words, cwd=out)
    record = json.loads((out / quality.RECORD).read_text())
    assert record["devices"][0]["kind"] == "gpu"
    return quality.judge(record), quality.Numbers(**record["numbers"]), done.stdout


@pytest.mark.parametrize(
    ("engine", "options"),
    [("eager", "{}"), ("eager", '{"loader": "parallel"}'), ("compiled", '{"cache_tokens": 1024}')],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_engine_is_no_further_from_float32_than_its_type_explains(model, tmp_path, engine, options, dtype):
    judgement, numbers, said = checked(model, tmp_path, engine, dtype, options)
    assert judgement.agreement == Agreement.AGREES, said
    assert numbers.plain_logit_error > 10 * FLOOR, "the type's own error is seen"
    assert numbers.own_gap <= FLOOR


def test_float32_on_a_gpu_is_float32_and_not_tf32(model, tmp_path):
    judgement, numbers, said = checked(model, tmp_path, "eager", "float32")
    assert judgement.agreement == Agreement.AGREES, said
    assert max(numbers.logit_error, numbers.plain_logit_error) < FLOOR
