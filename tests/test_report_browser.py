"""The report in a real browser: what hovering shows, that nothing is asked of a network, and that it fits a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from report_records import NASTY, guide_record, probe_record, saved, write_context, write_embeddings

from conceptkit.report.page import write_page


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


def test_on_a_phone_the_page_does_not_scroll_sideways(whole_page: Path, browser: Browser) -> None:
    size = {"width": 360, "height": 780, "deviceScaleFactor": 2, "mobile": True}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    browser.call("Page.navigate", url=whole_page.as_uri())
    browser.wait("typeof Bokeh != 'undefined' && [...Bokeh.index].length >= 4")
    assert browser.value("document.documentElement.scrollWidth") <= 360
