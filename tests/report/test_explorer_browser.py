"""The explorer in a browser: moves, keys, typing, a phone's width, both colour schemes; nothing asked of the network, no complaint.

It needs Chromium on the path (or in ``LATPRUNE_BROWSER``) and skips where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import chromium
from latprune.export.record import LatencyRecord
from latprune.report import write_explorer
from support.explored import elsewhere, exploration

pytestmark = pytest.mark.skipif(chromium.browser_path() is None, reason="no Chromium on the path, and LATPRUNE_BROWSER names none")


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Page]:
    with chromium.open_page() as page:
        yield page


def measured(record):
    """The record with a measured network and accuracies, as ``--measure`` gives them."""
    dense = LatencyRecord(ms=2.0, low=1.98, high=2.02, runs=100)
    small = LatencyRecord(ms=1.0, low=0.98, high=1.02, runs=100, ratio=0.5, ratio_low=0.49, ratio_high=0.51)
    points = list(record.points)
    points[5] = points[5].model_copy(update={"latency": small, "accuracy": 0.4, "recovered_accuracy": 0.8})
    return record.model_copy(update={"points": tuple(points), "dense": record.dense.model_copy(update={"latency": dense, "accuracy": 0.9})})


@pytest.fixture
def page(browser: chromium.Page, tmp_path: Path) -> Iterator[chromium.Page]:
    browser.problems.clear()
    browser.requests.clear()
    browser.size(1280, 900)
    browser.go(write_explorer(measured(exploration("latency").record), tmp_path / "explorer.html", file="run/explorer.json"))
    yield browser
    browser.run("new Promise((done) => setTimeout(done, 400))")
    assert browser.problems == [] and browser.requests == []


def place(page: chromium.Page) -> int:
    return int(page.run("document.getElementById('slider').value"))


def text(page: chromium.Page, selector: str) -> str:
    return page.run(f"document.querySelector({json.dumps(selector)}).textContent")


def shown_widths(page: chromium.Page) -> list[str]:
    return page.run("[...document.querySelectorAll('#widths .number')].map((node) => node.textContent)")


def expected_widths(record, index: int) -> list[str]:
    point = record.points[index]
    removed = set(point.removed)
    return [
        "removed" if removed & set(group.blocks) else f"{width * group.rows} of {group.dense * group.rows}"
        for group, width in zip(record.groups, point.widths, strict=True)
    ]


def test_keys_move_along_the_frontier(page):
    record = exploration("latency").record
    page.run("document.getElementById('slider').focus()")
    start = place(page)
    page.press("ArrowRight")
    assert place(page) == start + 1 and shown_widths(page) == expected_widths(record, start + 1)
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    assert place(page) == start - 1 and shown_widths(page) == expected_widths(record, start - 1)
    page.press("Home")
    assert place(page) == 0 and shown_widths(page) == expected_widths(record, 0)
    page.press("End")
    assert place(page) == len(record.points) - 1
    assert text(page, "#typed") == "" and page.run("document.getElementById('typed').value") == "100%"


def test_a_click_on_the_curve_and_the_buttons_move_too(page):
    page.click("#trade svg")
    middle = place(page)
    share = exploration("latency").record.points[middle].value / exploration("latency").record.dense.value
    assert 0.4 < share < 0.6
    page.click("#more")
    assert place(page) == middle + 1
    page.click("#less")
    page.click("#less")
    assert place(page) == middle - 1


def type_in(page: chromium.Page, words: str) -> None:
    page.give("typed", words)


def test_a_typed_budget_finds_the_network_that_a_pick_finds(page):
    found = exploration("latency")
    names = [group.name for group in found.record.groups]
    for words in ("63%", "80 %", f"{found.record.dense.value * 0.7:.6f}ms", "41"):
        type_in(page, words)
        point = found.record.points[place(page)]
        budget = words if words.endswith("s") else words.strip(" %") + "%"
        assert found.pick(budget).widths == dict(zip(names, point.widths, strict=True))
    before = place(page)
    for words, said in (("fast", "Not a budget"), ("0.001%", "Below what can be reached"), ("5G", "Not a budget")):
        type_in(page, words)
        assert said in text(page, "#summary") and place(page) == before
        assert page.run("document.getElementById('typed').getAttribute('aria-invalid')") == "true"
    type_in(page, "63%")
    assert page.run("document.getElementById('typed').hasAttribute('aria-invalid')") is False


def test_the_command_leads_to_the_network_that_is_shown(page):
    found = exploration("latency")
    names = [group.name for group in found.record.groups]
    for index in range(len(found.record.points)):
        page.give("slider", index)
        command = text(page, "#command")
        pick = command.split("--pick ")[1].split(" ")[0]
        picked = found.pick(pick)
        assert picked.widths == dict(zip(names, found.record.points[index].widths, strict=True))
        assert "--explore run/explorer.json" in command and f'found.pick("{pick}")' in text(page, "#python")
    page.click("#copy-command")
    page.run("new Promise((done) => setTimeout(done, 100))")
    assert text(page, "#copy-command") in ("Copied", "Selected: press Ctrl+C")


def test_figures_are_those_of_the_record(page):
    record = exploration("latency").record
    type_in(page, "50%")
    point = record.points[place(page)]
    tiles = text(page, "#tiles")
    assert f"{point.value:.3f}\u00a0ms" in tiles and f"95\u00a0%: {point.low:.3f}\u00a0–\u00a0{point.high:.3f}" in tiles
    assert f"{100 * point.gain / record.dense.gain:.1f}\u00a0%" in tiles
    assert f"{point.macs / 1e6:.2f}M" in tiles or f"{point.macs / 1e6:.1f}M" in tiles
    gone = page.run("[...document.querySelectorAll('.unit.gone figcaption')].map((node) => node.textContent)")
    assert sorted(gone) == sorted(record.blocks[block].name for block in point.removed)
    assert "40.00\u00a0%" in text(page, "#measured") and "80.00\u00a0%" in text(page, "#measured")
    assert "recovered without training" in text(page, "#trade-legend")
    assert page.run("['right', 'again'].map((kind) => document.querySelectorAll(`#trade .${kind}`).length)") == [1, 1]
    assert page.run("document.querySelectorAll('#trade .clock').length") == 1


def test_a_layer_s_staircase_stands_where_its_table_says(page):
    record = exploration("latency").record
    index = next(number for number, layer in enumerate(record.layers) if layer.name == "layer2.1.conv2")
    type_in(page, "100%")
    page.give("layer", index, "change")
    (cost,) = record.layers[index].costs
    assert f"{cost.values[-1]:.3f}\u00a0ms, dense {cost.values[-1]:.3f}\u00a0ms" in text(page, "#stairs-said")
    page.click(f"[data-layer='{index - 1}']")
    assert record.layers[index - 1].name in text(page, "#stairs-said")


def test_a_screen_reader_hears_where_it_stands(page):
    page.run("document.getElementById('slider').focus()")
    page.press("ArrowRight")
    page.run("new Promise((done) => setTimeout(done, 500))")
    heard = text(page, "#said")
    assert "of dense" in heard and heard == page.run("document.getElementById('slider').getAttribute('aria-valuetext')")
    unnamed = page.run(
        "[...document.querySelectorAll('button, input, select, svg, pre')].filter((node) => !(node.getAttribute('aria-label')"
        " || node.labels?.length || node.textContent.trim())).length"
    )
    assert unnamed == 0


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_both_colour_schemes(page, dark, tmp_path):
    page.size(375, 800, phone=True, dark=dark)
    page.run("new Promise((done) => setTimeout(done, 100))")
    assert page.run("document.documentElement.scrollWidth") <= 375
    wide = page.run(
        "[...document.querySelectorAll('main *')].filter((node) => node.getBoundingClientRect().right > 376 "
        "&& !node.closest('pre, .scroll, .unseen')).map((node) => node.className.baseVal ?? node.className)"
    )
    assert wide == []
    colours = page.run("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    light = [sum(int(part) for part in colour[4:-1].split(",")) for colour in colours]
    assert (light[0] < light[1]) == dark


def test_counted_networks_have_a_page_of_their_own_words(page, tmp_path):
    page.go(write_explorer(exploration("flops").record, tmp_path / "flops.html"))
    assert "multiply-adds" in text(page, "#summary") and page.run("document.getElementById('measured-card').hidden") is True
    type_in(page, "1M")
    assert exploration("flops").record.points[place(page)].value <= 1e6


def test_another_target_stands_beside_it(browser, tmp_path):
    browser.problems.clear()
    browser.size(1280, 900)
    browser.go(write_explorer(exploration("latency").record, tmp_path / "both.html", beside=[elsewhere().record]))
    rows = browser.run("[...document.querySelectorAll('#beside tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))")
    (own, other) = rows
    assert own[0].startswith("onnxruntime") and other[0].startswith("openvino") and other[-1] != ""
    before = other
    browser.run("document.getElementById('slider').focus()")
    for _ in range(4):
        browser.press("ArrowLeft")
    after = browser.run("[...document.querySelectorAll('#beside tbody tr')][1].textContent")
    assert after != "".join(before)
    assert browser.run("document.querySelectorAll('#trade .beside-0').length") == 1
    assert browser.run("document.querySelectorAll('#widths .beside-0').length") == len(elsewhere().record.groups)
    assert browser.problems == []
