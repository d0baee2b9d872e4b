from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from latprune.report import html_page, summary_text, write_html
from support.sample_record import sample_dict, sample_record

VOID = {"meta", "br", "img", "link", "input", "hr", "line", "rect", "circle", "path", "polyline"}


class Checker(HTMLParser):
    """Collects the text and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data + " "


def parse(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_is_whole_and_shows_the_result() -> None:
    checker = parse(html_page(sample_record()))
    text = re.sub(r"\s+", " ", checker.text)
    for expected in (
        "92.12 %",
        "93.39 %",
        "1.57 ms",
        "412.3K",
        "60.1M",
        "Budget met",
        "openvino on cpu",
        "layer1.3",
        "optimal",
        "4 min 52 s",
    ):
        assert expected in text, expected
    assert "12 of 16" in text and "removed" in text
    assert "1×3×32×32 float32" in text and "torch 2.13.0" in text and "group 'linear' stays whole" in text


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = html_page(sample_record())
    checker = parse(page)
    assert not [value for name, value in checker.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert "<script" not in page and "@import" not in page and "url(" not in page and "http://" not in page and "https://" not in page
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_names_from_the_model_are_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>"
    data = sample_dict()
    groups = [{"name": evil, "dense": 4, "kept": 2, "kind": "channels", "rows": 1, "blocks": []}]
    page = html_page(
        sample_record(
            model=data["model"] | {"name": evil},
            groups=groups,
            blocks=[evil],
            blocks_removed=[evil],
            notes=[evil],
            accuracies=[{"stage": evil, "accuracy": 0.5, "epoch": None}],
        )
    )
    assert "<img" not in page and "&lt;img" in page
    parse(page)


def test_a_bare_record_has_a_page_too() -> None:
    data = sample_dict()
    bare = {name: {"parameters": data[name]["parameters"], "macs": data[name]["macs"]} for name in ("dense", "pruned")}
    empty = dict.fromkeys(("groups", "blocks", "blocks_removed", "corrections", "accuracies", "stages", "notes", "verifications"), [])
    record = sample_record(**bare, **empty, solution=None, problem=None, predicted_ms=None, equality=None)
    text = parse(html_page(record)).text
    assert "Parameters" in text and "Latency, median" not in text
    assert "Parameters" in summary_text(record)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_any_number_of_accuracies_is_drawn(count: int) -> None:
    accuracies = [{"stage": "fine-tuned", "accuracy": 0.9, "epoch": float(index)} for index in range(count)]
    page = html_page(sample_record(accuracies=accuracies))
    assert page.count('class="dot"') == count and ">nan" not in page.lower() and '"nan' not in page.lower()


def test_an_over_budget_result_says_so() -> None:
    budget = {"text": "1ms", "resource": "latency", "value": 1.0, "unit": "ms", "limit": 1.0}
    record = sample_record(budget=budget)
    assert "Over budget" in parse(html_page(record)).text and "✗" in summary_text(record)


def test_writing_replaces_the_file_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    write_html(sample_record(), path)
    write_html(sample_record(notes=["second"]), path)
    assert "second" in path.read_text(encoding="utf-8")
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_the_terminal_summary_has_the_same_numbers_and_keeps_its_width() -> None:
    text = summary_text(sample_record(), width=90)
    for expected in ("92.12 %", "49.1 % of dense", "412.3K", "60.1M", "layer3.8", "exact, optimal", "fine-tune 215.0", "✓ Budget met"):
        assert expected in text, expected
    assert max(map(len, text.splitlines())) <= 90
    assert "\x1b" not in text


def test_a_block_of_the_models_own_code_is_shown_by_a_name() -> None:
    record = sample_record(blocks=["", "#2", "layer1.0"], blocks_removed=["", "#2"], groups=[])
    assert "blocks removed: (the model itself), (the model itself)#2 (2 of 3 removable)" in summary_text(record)
    assert '<ul class="chips"><li>(the model itself)</li><li>(the model itself)#2</li></ul>' in html_page(record)
