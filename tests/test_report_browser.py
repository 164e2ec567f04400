"""The report in a real browser: hovering shows a patch, no network is asked, themes, print and phone are legible."""

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
const deep = root => [...root.querySelectorAll("*")].flatMap(e => e.shadowRoot ? [e, ...deep(e.shadowRoot)] : [e]);
const plots = () => [...Bokeh.index].filter(v => v.model.renderers);
const shown = () => plots().map(v => v.model.renderers.filter(r => r.visible).length);
const middle = e => { const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; };
function point(row) {
  const view = plots()[0], data = view.model.renderers[0].data_source.data;
  view.el.scrollIntoView();
  const box = view.canvas_view.events_el.getBoundingClientRect();
  return [box.x + view.frame.x_scale.compute(data.x0_0[row]), box.y + view.frame.y_scale.compute(data.y0_0[row])];
}
const tips = () => deep(document).filter(e => e.tagName == "B" && e.isConnected && e.offsetWidth > 0
  && e.parentElement.textContent.includes("label"));
const tip = id => { const b = tips().find(b => b.textContent == id); return b && b.parentElement; };
var alerted = 0; window.alert = () => { alerted += 1; };
"""


def test_a_browser_shows_the_patch_and_asks_no_network(whole_page: Path, browser: Browser) -> None:
    for domain in ("Page", "Runtime", "Network", "Log"):
        browser.call(f"{domain}.enable")
    browser.call("Page.navigate", url=whole_page.as_uri())
    # two layers of two networks by class, one by center too, and the tools' icons once all is drawn
    browser.wait("typeof Bokeh != 'undefined' && [...Bokeh.index].filter(v => v.model.renderers).length == 6")
    browser.value(IN_PAGE + "0")
    browser.wait("plots().every(v => v.is_idle !== false) && document.readyState == 'complete'")
    assert browser.value("document.querySelector('h1').textContent") == NASTY

    x, y = browser.value("point(10)")
    for step in (6, 3, 0):
        browser.mouse("mouseMoved", x + step, y)
    name = f"{NASTY}-10"
    card = browser.wait(f"(() => {{ const t = tip({json.dumps(name)}); return t && t.textContent; }})()")
    assert "label" in card
    for shown in ("group patient10", "count ", "center C"):  # its patient, and its concept values
        assert shown in card, card
    assert browser.wait(f"tip({json.dumps(name)}).querySelector('img').naturalWidth") == 48

    assert browser.value("shown()") == [2, 2, 2, 2, 3, 3]
    legend = "deep(document).filter(e => e.classList.contains('bk-item') && e.offsetWidth > 0)[0]"
    x, y = browser.value(f"middle({legend})")
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        browser.mouse(kind, x, y)
    browser.wait("JSON.stringify(shown()) == '[1,1,2,2,3,3]'")  # hidden in both networks, the other colouring untouched

    assert browser.value("alerted") == 0
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [u[:40] for u in asked if not u.startswith(("data:", "blob:"))] == [whole_page.as_uri()[:40]]
    said = [e["params"]["entry"]["text"] for e in browser.events if e["method"] == "Log.entryAdded"]
    assert said == []
    calls = [e["params"]["type"] for e in browser.events if e["method"] == "Runtime.consoleAPICalled"]
    assert not {"error", "warning", "assert"} & set(calls)
    assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]


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
    browser.wait("document.readyState == 'complete' && typeof Bokeh != 'undefined' && [...Bokeh.index].length >= 4")
    browser.value(LOOKS + "0")


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_either_theme(whole_page: Path, browser: Browser, dark: bool) -> None:
    browser.look(dark=dark)
    open_page(browser, whole_page)
    assert browser.value("light(ground(document.body)) < 0.1") is dark
    faint = f"texts().filter(e => contrast(e) < {READABLE}).map(e => e.tagName + ' ' + e.textContent.slice(0, 40))"
    assert browser.value(faint) == []
    for kind in ("td", "thead th", ".caption", ".banner strong", "figcaption", "dd"):  # they are among what was asked
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
        # the interactive plots take a new width a moment after the page does
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
