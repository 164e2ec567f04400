"""The report in a real browser: its views are linked, no network is asked, themes, print and phone are legible."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from report_records import NASTY, guide_record, probe_record, saved, write_context, write_embeddings

from conceptkit.report.page import write_page

AREA = "nuclear area as measured by automatic segmentation (µm²), mean over the patch"


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a probe and a guide run of three seeds, every name of which tries to be a script."""
    folder = tmp_path_factory.mktemp("report")
    nasty = {"study": NASTY, "group": NASTY, "synthetic": True, "notes": (NASTY,), "settings": {NASTY: [NASTY]}}
    probe = saved(probe_record(**nasty), folder / "probe")
    guide = saved(guide_record(seeds=(0, 1, 2), count=NASTY, **nasty), folder / "guide")
    write_embeddings(guide)
    write_context(guide)
    return write_page([probe, guide], folder / "report.html")


@pytest.fixture(scope="module")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every column of the probe's tables, long names of concepts, and 15 centers of long names."""
    folder = tmp_path_factory.mktemp("long")
    every = {"score_pixels": 0.3, "r2_above_baseline": -0.12, "score_random_concept": -0.11, "selectivity": 0.87}
    every |= {"score_shuffled": -0.01, "p": 0.001, "p_within": 0.001, "p_min": 0.001, "q": 0.0015, "icc": 0.84}
    every |= {"permuted": "groups", "cosine": 0.77, "auc": 0.77, "auc_low": 0.51, "auc_high": 0.93}
    rows = tuple(dataclasses.replace(row, **every) for row in probe_record(("count", AREA)).rows)
    probe = saved(probe_record(rows=rows), folder / "probe")
    guide = saved(guide_record(count=AREA), folder / "guide")
    write_embeddings(guide, n=300, centers=15, center_name="University Hospital of Somewhere, scanner {} (Söhne)")
    return write_page([probe, guide], folder / "report.html")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium to open the page in (apt-get install chromium)")
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


IN_PAGE = """
var alerted = 0; window.alert = () => { alerted += 1; };
const $ = (selector, at = document) => at.querySelector(selector);
const all = (selector, at = document) => [...at.querySelectorAll(selector)];
const root = $(".browser"), patches = JSON.parse($("script", root).textContent);
const count = () => Number($("[role=status]", root).textContent.split(" ")[0]);
const button = words => all("button", root).find(b => b.textContent.startsWith(words));
const choose = (label, value) => {
  const s = all("label", root).find(l => l.textContent.startsWith(label)).querySelector("select");
  s.value = value; s.dispatchEvent(new Event("change")); };
const names = () => all(".patches li .unseen", root).map(e => e.textContent.trim());
const number = name => patches.numbers.find(n => n.name == name).values;
const ids = (name, down) => patches.ids.map((id, i) => [id, number(name)[i]]).filter(p => p[1] != null)
  .sort((a, b) => down ? b[1] - a[1] : a[1] - b[1]).map(p => p[0]);
const box = (canvas, x, y) => { canvas.scrollIntoView({ block: "center" }); const b = canvas.getBoundingClientRect();
  return [b.x + x * b.width, b.y + y * b.height]; };
"""


def drag(browser: Browser, canvas: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    points = [browser.value(f"box({canvas}, {x}, {y})") for x, y in (start, end)]
    browser.mouse("mousePressed", *points[0])
    for share in (0.5, 1):
        browser.call(
            "Input.dispatchMouseEvent",
            type="mouseMoved",
            button="left",
            buttons=1,
            x=points[0][0] + share * (points[1][0] - points[0][0]),
            y=points[0][1] + share * (points[1][1] - points[0][1]),
        )
    browser.mouse("mouseReleased", *points[1])


def test_every_view_filters_the_same_patches_and_no_network_is_asked(whole_page: Path, browser: Browser) -> None:
    for domain in ("Page", "Runtime", "Network", "Log"):
        browser.call(f"{domain}.enable")
    open_page(browser, whole_page)
    browser.value(IN_PAGE + "0")
    assert browser.value("document.querySelector('h1').textContent") == NASTY
    assert browser.value("count()") == 120

    # sorting: by a value, and the patches that guiding changed most at both ends
    choose_lowest = "choose('Sort by', 'count'); choose('Order', 'up'); names()"
    assert browser.value(f"{choose_lowest}.slice(0, 20)") == browser.value("ids('count').slice(0, 20)")
    change = "change of P(tumor), guided, seed 0"
    browser.value("button('What guided').click()")
    assert browser.value("names()[0]") == browser.value(f"ids({json.dumps(change)})[0]")
    assert browser.value("names()[24]") == browser.value(f"ids({json.dumps(change)}, true)[0]")
    browser.value("button('Where guided').click()")
    error = json.dumps("error of P(tumor), guided, seed 0")
    assert browser.value("names().includes(" + f"ids({error})[0])")

    # a click on a class, a histogram, a map and a table row each filter all views
    browser.value("button('tumor').click()")
    tumors = browser.value("count()")
    assert tumors == browser.value("patches.classes[0].codes.filter(c => c == 1).length")
    histogram = "all('.histogram', root).find(f => f.firstChild.textContent == 'count')"
    drag(browser, f"$('canvas', {histogram})", (0.02, 0.5), (0.45, 0.5))
    both = browser.value("count()")
    assert 0 < both < tumors
    assert browser.value("count()") == browser.value(
        "number('count').filter((v, i) => v != null && patches.classes[0].codes[i] == 1"
        f" && v <= Number(all('input', {histogram})[1].value)).length"
    )
    browser.value("button('Show all').click()")
    assert browser.value("count()") == 120
    drag(browser, "all('.spaces canvas', root)[0]", (0.0, 0.0), (0.5, 1.0))
    half = browser.value("patches.spaces[0].xy.filter((x, i) => i % 2 == 0).filter(x => x <= 500).length")
    assert abs(browser.value("count()") - half) <= 3  # points that the box's edge cuts
    point = browser.value("box(all('.spaces canvas', root)[0], 0.5, 0.5)")
    for kind in ("mousePressed", "mouseReleased"):
        browser.mouse(kind, *point)
    assert browser.value("count()") == 24  # the nearest ones
    card = browser.value("$('.detail', root).textContent")
    assert "patient" in card
    assert NASTY in card  # the name of a concept, as text
    assert browser.wait("$('.detail img', root).naturalWidth") == 48
    rows = "all('table', root.closest('section')).flatMap(t => all('button.link', t))"
    assert browser.value(f"{rows}.length") > 0
    browser.value(f"{rows}[0].click()")
    assert browser.value("count()") == 120

    assert browser.value("alerted") == 0
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [u[:40] for u in asked if not u.startswith("data:")] == [whole_page.as_uri()[:40]]
    said = [e["params"]["entry"]["text"] for e in browser.events if e["method"] == "Log.entryAdded"]
    assert said == []
    assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]


def test_the_policy_refuses_what_is_not_ours(whole_page: Path, browser: Browser) -> None:
    open_page(browser, whole_page)
    script = "const s = document.createElement('script'); s.append('window.ran = 1'); document.body.append(s);"
    for code, outcome in (
        ("document.body.innerHTML = '<b>x</b>';", "TypeError"),  # trusted types
        ("document.body.setAttribute('onclick', 'window.ran = 1');", "TypeError"),
        (script, "TypeError"),
    ):
        found = browser.value(f"(() => {{ try {{ {code} return window.ran; }} catch (e) {{ return e.name; }} }})()")
        assert found in (outcome, None), code
    assert browser.value("window.ran === undefined")
    # a page without the policy does run it: the control
    browser.call("Page.navigate", url="data:text/html,<body>plain</body>")
    browser.wait("document.body != null && document.body.textContent == 'plain'")
    assert browser.value(f"(() => {{ {script} return window.ran; }})()") == 1


def test_tables_sort_filter_and_copy_what_is_shown(whole_page: Path, browser: Browser) -> None:
    open_page(browser, whole_page)
    browser.value(
        "var copied = ''; document.execCommand = () => { copied = document.activeElement.value; };"
        "Object.defineProperty(navigator, 'clipboard', { value: undefined });"
        "const table = document.querySelector('.table'), column = k => [...table.querySelectorAll('tbody tr')]"
        ".filter(r => !r.hidden).map(r => r.cells[k].dataset.v ?? r.cells[k].firstChild.textContent);"
        "const head = words => [...table.querySelectorAll('th[scope=col]')].findIndex(h => h.textContent == words); 0"
    )
    browser.value("table.querySelectorAll('th[scope=col] button')[head('held out')].click()")
    scores = [float(v) for v in browser.value("column(head('held out'))")]
    assert scores == sorted(scores)
    assert len(scores) > 10
    assert (
        browser.value("table.querySelectorAll('th[scope=col]')[head('held out')].getAttribute('aria-sort')")
        == "ascending"
    )
    browser.value("const f = table.querySelector('input'); f.value = 'mixed10'; f.dispatchEvent(new Event('input')); 0")
    assert set(browser.value("column(0)")) == {"mixed10"}
    n = browser.value("column(0).length")
    for name, first, each in (("CSV", "layer,", "mixed10,"), ("LaTeX", "% needs", "mixed10 &")):
        browser.value(f"[...table.querySelectorAll('button')].find(b => b.textContent == 'Copy {name}').click()")
        text = browser.wait("copied")
        assert text.startswith(first)
        assert sum(line.startswith(each) for line in text.splitlines()) == n
        browser.value("copied = ''; 0")


def test_axe_finds_nothing_serious(whole_page: Path, browser: Browser) -> None:
    axe = pytest.importorskip("axe_core_python")
    code = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    for width, dark in ((1280, False), (390, True)):
        browser.look(width=width, dark=dark, mobile=width < 600)
        open_page(browser, whole_page)
        browser.call("Runtime.evaluate", expression=code)
        serious = (
            "axe.run({ resultTypes: ['violations'] }).then(r => r.violations.filter(v =>"
            " ['serious', 'critical'].includes(v.impact)).map(v => v.id + ': ' + v.nodes[0].html.slice(0, 200)))"
        )
        assert browser.promised(serious) == []
        browser.value("document.querySelector('.patch').replaceChildren(); document.querySelector('img').alt = ''; 0")
        assert any("button-name" in one for one in browser.promised(serious))  # the control: a button without a name


LOOKS = """
const seen = e => { const b = e.getBoundingClientRect(); return b.width > 0 && b.height > 0; };
const parse = text => { const v = text.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = c => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * linear(c[i] / 255), 0);
function ground(e) {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c[3] > 0) return c;
  }
  return [255, 255, 255, 1];
}
function contrast(e) {
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}
const own = e => [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
const texts = () => [...document.body.querySelectorAll("*")].filter(
  e => own(e) && seen(e) && !["SCRIPT", "STYLE"].includes(e.tagName));
"""
"""Contrast by WCAG 2: of every element that has text of its own, against the nearest ground behind it"""

READABLE = 4.5
"""What WCAG 2 asks of text at level AA"""


def open_page(browser: Browser, page: Path) -> None:
    browser.call("Page.navigate", url=page.as_uri())
    browser.wait("document.readyState == 'complete' && document.querySelector('.browser .patches') != null")
    browser.value(LOOKS + "0")


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_either_theme(whole_page: Path, browser: Browser, dark: bool) -> None:
    browser.look(dark=dark)
    open_page(browser, whole_page)
    assert browser.value("light(ground(document.body)) < 0.1") is dark
    faint = f"texts().filter(e => contrast(e) < {READABLE}).map(e => e.tagName + ' ' + e.textContent.slice(0, 40))"
    assert browser.value(faint) == []
    for kind in (
        "td",
        "thead th button",
        ".caption",
        ".banner strong",
        "figcaption",
        "dd",
    ):  # they are among what was asked
        assert browser.value(f"texts().some(e => e.matches({json.dumps(kind)}))"), kind
    # figures keep the white ground that their dark letters and lines were chosen on
    assert browser.value("[...document.querySelectorAll('.card img')].every(e => light(ground(e)) > 0.95)")
    browser.value("document.querySelector('td').style.color = getComputedStyle(document.body).backgroundColor")
    assert browser.value(faint) != []  # what cannot be read would be found


@pytest.mark.parametrize("page", ["whole_page", "long_page"])
def test_in_print_nothing_is_cut_off_and_plots_give_way_to_pictures(
    page: str, browser: Browser, request: pytest.FixtureRequest
) -> None:
    browser.call("Emulation.setEmulatedMedia", media="print")
    paper = {"width": 700, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # A4 within margins, in CSS pixels
    browser.call("Emulation.setDeviceMetricsOverride", **paper)
    open_page(browser, request.getfixturevalue(page))
    cut = """[...document.querySelectorAll("body *")].filter(e => seen(e) && e.getBoundingClientRect().right > 701)
      .map(e => e.tagName + " " + e.textContent.trim().slice(0, 40))"""
    assert browser.value(cut) == []
    hidden = """[...document.querySelectorAll("main *")].filter(e => seen(e) && e.tagName != "IMG"
      && getComputedStyle(e).overflowX != "visible").map(e => e.tagName + " " + e.className)"""
    assert browser.value(hidden) == []  # paper does not scroll
    assert browser.value("[...document.querySelectorAll('.interactive')].filter(seen).length") == 0
    assert browser.value("[...document.querySelectorAll('.static img')].filter(seen).length") == 3
    assert browser.value(f"texts().filter(e => contrast(e) < {READABLE}).length") == 0


@pytest.mark.parametrize("page", ["whole_page", "long_page"])
def test_on_a_phone_only_tables_and_wide_figures_scroll_sideways(
    page: str, browser: Browser, request: pytest.FixtureRequest
) -> None:
    browser.look(width=390, mobile=True)
    open_page(browser, request.getfixturevalue(page))
    for width in (390, 360):
        browser.look(width=width, mobile=True)
        browser.wait(f"document.documentElement.scrollWidth <= {width}")
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert browser.value(f"{wide}.length") > 0
    # each can be scrolled, by keys too, and has its shade at the edge beyond which it goes on
    assert browser.value(f"""{wide}.every(e => getComputedStyle(e).overflowX == "auto" && e.tabIndex == 0
      && getComputedStyle(e).backgroundAttachment.split(", ").join() == "local,local,scroll,scroll")""")


def test_on_a_screen_the_usual_tables_show_all_their_columns(whole_page: Path, browser: Browser) -> None:
    browser.look(width=1200)
    open_page(browser, whole_page)
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert browser.value(f"{wide}.map(e => e.getAttribute('aria-label'))") == []
