"""Every figure in the README stands in a committed file, and its table of modes is the registry's."""

import csv
import re

import pytest

from crewbench.modes import MODES

REFERENCE = "results/reference/2x-h200-core"


@pytest.fixture
def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def summary(root):
    with open(root / REFERENCE / "tables/summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {(r["mode"], r["gpus"], r["variant"], r["metric"], r["baseline"]): r for r in rows}


def table(readme, first_header):
    """The rows of the Markdown table whose header begins so, as lists of cells."""
    lines = readme.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_header} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])


def shown(row):
    def three(text):
        value = float(text)
        digits = 3 - len(str(int(abs(value)))) if value >= 1 else 3
        return f"{value:.{max(0, digits)}f}"

    return f"{three(row['estimate'])} [{three(row['low'])}, {three(row['high'])}]"


def test_the_modes_are_those_of_the_registry(readme):
    rows = [r for r in table(readme, "mode") if len(r) == 3]
    assert [(r[0], r[1]) for r in rows] == [(f"`{m.name}`", m.idea) for m in MODES.values()]


def test_the_measured_table_says_what_the_reference_study_holds(readme, summary):
    rows = table(readme[readme.index("## What broke first") :], "mode")
    assert len(rows) == 8
    for cells in rows:
        mode = re.search(r"`(\w+)`", cells[0])[1]
        budget = re.search(r"(\d+) GiB", cells[0])
        key = (mode, cells[1], f"budget-{budget[1]}gib" if budget else "base")
        cold, warm, speed = (summary[*key, m, ""] for m in ("cold_s", "warm_s", "warm_tokens_per_s"))
        assert cells[2] == f"{cold['ok']} of {cold['trials']}"
        if cold["ok"] == "0":
            assert cells[3] == "out of memory" and cold["oom"] == cold["trials"]
            continue
        assert cells[3:5] == [shown(cold), shown(warm)]
        assert cells[5] == shown(speed).split(" ")[0]


def test_the_speed_up_in_the_text_is_the_reference_studys(readme, summary):
    (row,) = (
        r for key, r in summary.items() if key[:4] == ("parallel", "1", "base", "speedup_cold") and key[4]
    )
    assert shown(row).replace(" [", " × [") in " ".join(readme.split())


def test_every_link_to_a_file_leads_somewhere(readme, root):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert len(targets) > 8
    assert [t for t in targets if not (root / t).exists()] == []
