"""The reference reports that are committed, as a reader of the repository opens them."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("chromium")

REPORTS = sorted((Path(__file__).parents[2] / "results/reference").glob("*/report.html"))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.parent.name)
def test_a_reference_report_fits_asks_for_nothing_and_has_no_fault_that_axe_knows(look, report, width):
    from axe_playwright_python.sync_playwright import Axe

    page, asked, said = look(report, width)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert asked == [report.as_uri()] and said == []


def test_there_are_reference_reports():
    assert len(REPORTS) >= 3
