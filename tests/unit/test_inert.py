"""Text of models and programs is inert wherever it is shown: tables, CSV, figures, page, logs."""

import csv
import re
import unicodedata
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

import made_trials
from crewbench import figures, inert, quality, report, tables
from crewbench.execute.run import log_line
from crewbench.records import Status
from crewbench.trial import Cell

NASTY = {
    "product_manager": "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>",
    "system_architect": '=HYPERLINK("http://127.0.0.1:9")',
    "ai_researcher": "\u200b\u061c=1+1",
    "data_engineer": "a\x00b\x1b[31mc\u202ed\ud800e\U000e0041f",
    "backend_developer": "m" * 1_000_000,
    "frontend_developer": "{{ 7 * 7 }} {% raw %} $\\frac{$ ]]> <!-- --> &#x3c;b&#x3e;",
    "security_specialist": "\uff1d1+1",
    "devops_engineer": "\r\n@SUM(1)",
}
ERRORS = ["\ud800</script><b onclick=x>", "-1+cmd|' /C calc'!A0", "\x1b]0;title\x07" + "n" * 1_000_000]
CELL = Cell("shared", 1, agents=8, engine="eager", start="zygote")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A study in which every agent says something nasty and every trial fails and is tainted with it."""
    root = tmp_path_factory.mktemp("nasty")
    lines = [
        made_trials.make_trial(
            root / "trials",
            CELL,
            repeat,
            warm_rounds=1,
            fail=(1, "agent3", Status.ERROR, error),
            taints=[error],
            texts=NASTY,
            order=repeat,
        )
        for repeat, error in enumerate(ERRORS, start=1)
    ]
    manifest = made_trials.write_manifest(root, lines)
    listed = tables.read_manifest(manifest)
    tables.write(tables.build(listed), root / "tables")
    loaded = tables.load(root / "tables")
    figures.write(figures.Study(loaded, {}), root / "figures", png_dpi=40)
    (root / "report.html").write_text(report.build(listed, loaded, root / "figures"), encoding="utf-8")
    return root


def unseen(text: str) -> set[str]:
    """Characters that nobody sees and that change how the rest is read; a page and CSV need line ends."""
    return {
        c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\r\t\u200c\u200d"
    }


def cells(results: Path) -> list[tuple[str, str]]:
    found = []
    for path in sorted((results / "tables").glob("*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            found += [(path.name, cell) for row in csv.reader(file) for cell in row]
    return found


def number(text: str) -> bool:
    return re.fullmatch(r"-?(\d[\d.]*(e[-+]?\d+)?|inf)", text) is not None


def test_no_cell_of_a_table_is_a_formula(results):
    risky = [c for c in cells(results) if re.match(inert.FORMULA, c[1]) and not number(c[1])]
    assert risky == []
    said = [text for name, text in cells(results) if name == "outputs.csv"]
    assert '\'=HYPERLINK("http://127.0.0.1:9")' in said
    assert "'=1+1" in said
    assert "'\uff1d1+1" in said
    assert "'@SUM(1)" in said


def test_no_table_holds_a_character_that_nobody_sees(results):
    assert [c for c in cells(results) if unseen(c[1])] == []


def test_no_cell_of_a_table_is_long(results):
    assert max(len(text) for _, text in cells(results)) < 2000


class Elements(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_shows_text_as_text(results):
    html = (results / "report.html").read_text(encoding="utf-8")
    elements = Elements(html).found
    assert {"img", "b", "iframe", "object", "form"}.isdisjoint(tag for tag, _ in elements)
    assert not [name for _, attrs in elements for name in attrs if name.startswith("on")]
    assert "alert(1)" in html and "<script>alert" not in html
    assert "{{ 7 * 7 }}" in html
    assert unseen(html) == set()
    assert "m" * 600 not in html and "n" * 600 not in html


def test_every_figure_stays_xml_with_nothing_that_runs(results):
    drawings = sorted((results / "figures").glob("*.svg"))
    assert drawings
    for path in drawings:
        text = path.read_text(encoding="utf-8")
        tags = {element.tag.rsplit("}", 1)[-1] for element in ET.fromstring(text).iter()}
        assert {"script", "img", "image", "foreignObject"}.isdisjoint(tags), path.name
        assert unseen(text) == set(), path.name


def test_the_raw_file_of_a_trial_takes_half_a_character(tmp_path):
    made_trials.make_trial(tmp_path, CELL, 1, fail=(1, "agent3", Status.ERROR, "\ud800"))
    (file,) = tmp_path.rglob("agents.csv")
    assert "\\ud800" in file.read_text(encoding="utf-8")


def test_what_cannot_be_read_is_quoted_without_what_it_holds(tmp_path):
    error = tables.TableError(["agents.csv: line 2 is \x1b[2J" + "x" * 1_000_000])
    assert unseen(str(error)) == set()
    assert len(str(error)) < 1200


# Logs ----------------------------------------------------------------------------------------------


def test_a_servers_log_cannot_write_over_a_terminal():
    assert inert.lines("10 %\r20 %\r\n\x1b[2Jdone\n") == "10 %\n20 %\n[2Jdone\n"


def test_a_workers_message_is_one_line_of_the_trials_log():
    line = log_line(
        1.5, 1, 0, "worker0 failed: \x1b[2J\n[   9.000] attempt 9 round 9: forged" + "x" * 1_000_000
    )
    assert "\n" not in line and unseen(line) == set()
    assert line.startswith("[   1.500] attempt 1 round 0: worker0 failed: [2J ")
    assert len(line) < 2100


def test_the_line_of_a_check_is_one_line():
    record = {"check_id": "eager__d1", "numbers": None, "unseen": "", "error": "broke\n\x1b[2J" + "x" * 9999}
    line = quality.words({**record, "status": Status.ERROR})
    assert "\n" not in line and unseen(line) == set()
    assert len(line) < 1000
