"""The report in a real browser: it fits, it is quiet, it asks for nothing, and every section can be seen."""

import re
import struct
from pathlib import Path

import pytest

import made_trials
from crewbench import figures, report, tables
from crewbench.records import Status
from crewbench.trial import Cell

pytestmark = pytest.mark.needs("chromium")

SECTIONS = [
    "answers",
    "verdict",
    "headline",
    "figures",
    "costs",
    "fits",
    "timelines",
    "failures",
    "trust",
    "outputs",
    "environment",
    "glossary",
]
WIDTHS = [1280, 390]
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    """Every mode three times, with a failure, a taint, and text that would run if it could."""
    root = tmp_path_factory.mktemp("report")
    nasty = "<script>console.error('ran')</script><img src='http://127.0.0.1:9/x'>" + "w" * 5000
    lines = []
    for repeat in (1, 2, 3):
        for cell in [
            *made_trials.study_cells(),
            Cell("parallel", 2, agents=8, engine="eager", start="zygote"),
        ]:
            fail = (1, "agent3", Status.ERROR, nasty) if cell.mode == "shared" and repeat == 2 else None
            lines.append(
                made_trials.make_trial(
                    root / "trials",
                    cell,
                    repeat,
                    fail=fail,
                    taints=[nasty] if repeat == 1 else [],
                    texts={"product_manager": nasty},
                )  # fmt: skip
            )
    return page_of(lines, root)


@pytest.fixture(scope="module")
def gpus(tmp_path_factory) -> Path:
    """Two engines on GPUs whose memory bandwidth is known, from every start state."""
    root = tmp_path_factory.mktemp("gpus")
    return page_of(made_trials.gpu_study(root / "trials"), root)


@pytest.fixture(scope="module")
def clients(tmp_path_factory) -> Path:
    """Replays, an agent alone, a server."""
    root = tmp_path_factory.mktemp("clients")
    return page_of(made_trials.client_study(root / "trials"), root)


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Path:
    """Long names and large numbers: servers of two engines on a GPU of 143,771 MiB, one checked."""
    root = tmp_path_factory.mktemp("servers")
    checks = [made_trials.make_check(root / "quality", "transformers-serve", logit_error=0.5)]
    return page_of(made_trials.server_study(root / "trials"), root, checks)


def page_of(lines: list[dict[str, str]], root: Path, checks: list[dict] | tuple = ()) -> Path:
    manifest = tables.read_manifest(made_trials.write_manifest(root, lines, checks=checks))
    built = tables.build(manifest)
    figures.write(figures.Study(built, {}), root / "figures", png_dpi=40)
    page = root / "report.html"
    page.write_text(report.build(manifest, built, root / "figures"), encoding="utf-8")
    return page


@pytest.fixture
def opened(look, html):
    """Opens a study's page: the first one's, if no other is named."""
    return lambda width, scheme="light", scripts=True, file=html: look(file, width, scheme, scripts)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_is_quiet_and_asks_for_nothing(opened, html, width):
    page, asked, said = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate(OPEN_ALL)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert asked == [html.as_uri()]
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_picture_of_the_whole_page_is_kept_for_whoever_looks(opened, root, width, scheme):
    page, _, _ = opened(width, scheme)
    kept = root / f"build/screenshots/report-{width}-{scheme}.png"
    kept.parent.mkdir(parents=True, exist_ok=True)
    png = page.screenshot(path=kept, full_page=True)
    # Width and height, big-endian, behind the signature and the first chunk's head (PNG, 11.2.2).
    drawn = struct.unpack(">II", png[16:24])
    assert drawn == (width, page.evaluate("document.documentElement.scrollHeight"))


@pytest.mark.parametrize("width", WIDTHS)
def test_every_section_can_be_seen(opened, width):
    page, _, _ = opened(width)
    assert [s.get_attribute("id") for s in page.locator("section").all()] == SECTIONS
    for section in SECTIONS:
        assert page.locator(f"#{section} h2").is_visible()
        assert page.locator(f"#{section}").bounding_box()["height"] > 60


def test_the_answers_are_on_the_first_screen(opened):
    page, _, _ = opened(1280)
    for name in ("breaks", "recommendation", "cold", "warm", "devices", "failed"):
        box = page.locator(f"#answer-{name} .answer").bounding_box()
        assert box["y"] + box["height"] <= 800, name


@pytest.mark.parametrize(("width", "shown", "hidden"), [(1280, "wide", "narrow"), (390, "narrow", "wide")])
def test_each_width_has_its_own_drawing(opened, width, shown, hidden):
    page, _, _ = opened(width)
    drawings = page.locator(f"figure .{shown} svg")
    assert drawings.count() == 16
    assert page.locator(f"figure .{hidden} svg").first.is_hidden()
    for drawing in drawings.all():
        box = drawing.bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= width


def test_text_in_figures_is_large_enough_on_a_phone(opened):
    page, _, _ = opened(390)
    smallest = page.evaluate(
        """Math.min(...[...document.querySelectorAll('.narrow svg')].flatMap(svg => {
             const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
             return [...svg.querySelectorAll('text')].map(
               t => parseFloat(getComputedStyle(t).fontSize) * scale);
           }))"""
    )
    assert smallest >= 8


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("study", ["html", "gpus", "clients", "servers"])
def test_no_text_of_a_figure_is_cut_off(opened, width, study, request):
    page, _, _ = opened(width, file=request.getfixturevalue(study))
    cut = page.evaluate(
        """[...document.querySelectorAll('figure svg')].filter(s => s.checkVisibility()).flatMap(svg => {
             const frame = svg.getBoundingClientRect();
             return [...svg.querySelectorAll('text')].filter(t => {
               const box = t.getBoundingClientRect();
               return box.left < frame.left - 1 || box.right > frame.right + 1 ||
                      box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
             }).map(t => t.closest('figure').id + ': ' + t.textContent);
           })"""
    )
    assert cut == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("study", "figures"),
    [
        ("gpus", ["starts", "engines", "breakeven", "stages_disk", "stages_resident"]),
        ("clients", ["framework", "interference", "breakeven", "chain"]),
        ("servers", ["framework", "breakeven", "stages_resident"]),
    ],
)
def test_no_two_texts_of_a_figure_of_rows_lie_on_each_other(opened, request, study, figures, width):
    page, _, _ = opened(width, file=request.getfixturevalue(study))
    meet = page.evaluate(
        """names => [...document.querySelectorAll(names.map(n => `#figure-${n} svg`).join())]
             .filter(s => s.checkVisibility()).flatMap(svg => {
               const texts = [...svg.querySelectorAll('text')].map(
                 t => [t.textContent, t.getBoundingClientRect()]);
               return texts.flatMap(([one, a], i) => texts.slice(i + 1).filter(([_, b]) =>
                 a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3
               ).map(([other]) => `${one} / ${other}`));
             })""",
        figures,
    )
    assert meet == []


def test_dark_is_dark_and_figures_follow(opened):
    colours = {}
    for scheme in ("light", "dark"):
        page, _, _ = opened(1280, scheme)
        colours[scheme] = page.evaluate(
            """[getComputedStyle(document.body).backgroundColor,
                getComputedStyle(document.querySelector('#figure-cold_warm .wide text')).fill]"""
        )
    luminance = {s: [sum(map(int, c[4:-1].split(","))) for c in both] for s, both in colours.items()}
    assert luminance["light"][0] > 600 > 150 > luminance["dark"][0]
    assert luminance["light"][1] < 300 < 450 < luminance["dark"][1]


def test_the_page_is_whole_without_scripts(opened, html):
    page, asked, _ = opened(390, scripts=False)
    assert page.locator("#answer-cold .answer").is_visible()
    page.locator("#outputs summary").first.click()
    assert page.locator("#outputs dd").first.is_visible()
    assert asked == [html.as_uri()]


ROWS = """column => [...document.querySelectorAll('#headline tbody')[0].rows].slice(1).map(
             row => row.cells[column].firstChild.textContent)"""
COLD = 3
"""The column of cold makespans in the headline table."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_fault_in_contrast_names_or_structure(opened, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page, _, _ = opened(width, scheme)
    page.evaluate(OPEN_ALL)
    found = Axe().run(page).response
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]] == []
    assert {"color-contrast", "button-name", "svg-img-alt"} <= {p["id"] for p in found["passes"]}


@pytest.mark.parametrize("key", [None, "Enter"])
def test_a_table_is_sorted_by_a_heading_down_up_and_back(opened, key):
    page, _, said = opened(1280)
    heading = page.locator("#headline thead th").nth(COLD)
    button = heading.locator("button")
    first = page.evaluate(ROWS, COLD)
    known = sorted((text for text in first if text != "–"), key=float)
    missing = [text for text in first if text == "–"]
    assert missing and first != known + missing

    def press():
        button.click() if key is None else button.press(key)
        return heading.get_attribute("aria-sort"), page.evaluate(ROWS, COLD)

    assert press() == ("ascending", known + missing)
    assert press() == ("descending", known[::-1] + missing)
    assert press() == (None, first)
    assert page.locator("#headline tbody .group").first.is_visible()
    assert said == []


@pytest.mark.parametrize("key", [None, "Space"])
def test_a_mode_that_is_switched_off_leaves_every_table_and_figure(opened, key):
    page, _, said = opened(1280)
    button = page.get_by_role("button", name="Shared")
    row = page.locator("#headline th[data-mode=shared]").first
    curtain = page.locator("#figure-cold_warm .wide .curtain[data-mode=shared] path")
    timeline = page.locator("#figure-timeline_shared")
    assert row.is_visible() and timeline.is_visible()
    assert curtain.evaluate("e => getComputedStyle(e).fill") == "none"
    button.click() if key is None else button.press(key)
    assert button.get_attribute("aria-pressed") == "false"
    assert row.is_hidden() and timeline.is_hidden()
    assert curtain.evaluate("e => getComputedStyle(e).fill") != "none"
    assert page.locator("#headline th[data-mode=sequential]").first.is_visible()
    assert page.locator("fieldset.modes output").inner_text() == "5 of 6 modes shown"
    page.get_by_role("button", name="All", exact=True).click()
    assert row.is_visible() and timeline.is_visible()
    assert said == []


def test_a_point_says_what_it_is_when_pointed_at(opened):
    page, _, _ = opened(1280)
    # The last of a row's points is on top of the others.
    point = page.locator("#figure-cold_warm .wide g:has(> .says)").first.locator(".says").last
    point.scroll_into_view_if_needed()
    # What scrolling says comes with the next frame, and would hide what the point says.
    page.evaluate("new Promise(next => requestAnimationFrame(() => requestAnimationFrame(next)))")
    point.hover()
    tip = page.locator(".tip")
    assert tip.is_visible()
    assert re.fullmatch(r"cold [\d.]+ s, repeat \d", tip.inner_text())
    page.locator("h1").hover()
    assert tip.is_hidden()


def test_a_drawing_that_stands_alone_holds_the_words_of_its_points(html):
    drawing = (html.parent / "figures/cold_warm.svg").read_text()
    assert re.search(r'<use class="says"[^>]*><title>cold [\d.]+ s, repeat 1</title></use>', drawing)


def test_without_scripts_nothing_is_shown_that_needs_them(opened):
    page, _, _ = opened(1280, scripts=False)
    assert page.locator("fieldset.modes").is_hidden()
    assert page.locator("thead button").count() == 0


def test_the_page_runs_its_own_script_and_no_other(opened):
    page, _, said = opened(1280)
    page.evaluate("""() => { const s = document.createElement('script');
                            s.textContent = 'window.ran = 1'; document.body.append(s); }""")
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in line for line in said)


def test_tables_are_scrolled_by_keyboard_inside_their_frame(opened):
    page, _, _ = opened(390)
    frame = page.locator("#headline .scroll").first
    frame.focus()
    assert frame.evaluate("e => document.activeElement === e && e.scrollWidth > e.clientWidth")
