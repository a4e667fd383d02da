"""The page of compare.py in a real browser: it fits a phone, is quiet and asks for nothing."""

from dataclasses import replace

import pytest

from crewbench import compare
from crewbench.compare import Result
from crewbench.records import Status
from crewbench.report import comparing

pytestmark = pytest.mark.needs("chromium")

LONG = "w" * 4000
CELL = {"gpus": 2, "agents": 8, "engine": "eager", "start": "zygote", "variant": "base",
        "compile_cache": "none", "workload": "explain", "host": "box", "status": Status.OK}  # fmt: skip


def result(name: str, factor: float) -> Result:
    """Two modes, six repeats; names that are one long line."""
    trials = [
        {**CELL, "mode": mode, "repeat": r, "cold_s": s, "warm_s": s / 4, "device_name": "Made GPU"}
        for mode, seconds in (("parallel", 10.0), ("shared", 20.0 * factor))
        for r in range(1, 7)
        for s in (seconds + 0.1 * (r % 3),)
    ]
    return Result(name, trials, {"box": {"cpu": frozenset({"Two cores"}), LONG: frozenset({name})}})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    a, b = result("before", 1.0), replace(result(LONG, 1.3), config={LONG: LONG})
    path = tmp_path_factory.mktemp("compare") / "compare.html"
    path.write_text(comparing.page(a, b, compare.compare(a, b)), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_asks_for_nothing(look, page, width):
    shown, asked, said = look(page, width)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.locator("h1").inner_text() == "Regressed: B is worse in 1 of 2 cells."
    assert shown.locator("td.bad").count() == 2
    assert asked == [page.as_uri()] and said == []
