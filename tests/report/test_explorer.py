"""The explorer page: whole, small, alone, and safe from the names in it. What its script does is tried in test_explorer_browser.py."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape

import pytest

from latprune.cli import main
from latprune.errors import InvalidArgumentError
from latprune.report import explorer, explorer_page, graph_html, result_html, tables_html, write_explorer
from latprune.report.explorer import LARGEST_PAGE, explorer_data, explorer_frame
from support.explored import X, elsewhere, exploration, made_up_tables, network
from support.sample_record import sample_record


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_needs_nothing_from_elsewhere_and_is_small():
    page = explorer_page(exploration("latency").record)
    assert len(page.encode()) < LARGEST_PAGE
    without_names = page.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in without_names and "https://" not in without_names and "@import" not in page and "url(" not in page
    assert not re.search(r"\b(src|href|srcset|action)=", page)
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page and 'aria-live="polite"' in page


def test_nothing_but_its_own_script_and_style_may_run():
    page = explorer_page(exploration("flops").record)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        assert "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy


def test_it_shows_the_points_and_how_to_take_one(tmp_path):
    record = exploration("flops").record
    path = write_explorer(record, tmp_path / "deep" / "see.html")
    data = data_of(path.read_text(encoding="utf-8"))
    assert [point["value"] for point in data["points"]] == [point.value for point in record.points]
    assert data["command"] == "latprune prune --model nets.py:net --input 1x1x32x32 --method-arg 'note=it'\"'\"'s'"
    assert data["file"] == str(tmp_path / "deep" / "see.json") and 'method="mdp"' in data["python"]
    assert "tensors" not in data["model"]


def test_names_from_the_model_stay_text():
    evil = "</script><img src=x onerror=alert(1)>"
    record = exploration("flops").record
    groups = (record.groups[0].model_copy(update={"name": evil}), *record.groups[1:])
    page = explorer_page(
        record.model_copy(update={"groups": groups, "model": record.model.model_copy(update={"name": evil}), "notes": (evil,)})
    )
    assert "<img" not in page and page.count("</script>") == 2
    assert data_of(page)["groups"][0]["name"] == evil
    assert "<img" not in explorer_frame(record.model_copy(update={"notes": (evil,)})).replace("&lt;", "")


def test_a_large_page_gets_coarser_staircases_and_then_an_error(monkeypatch):
    record = exploration("latency").record
    whole = len(explorer_page(record).encode())
    monkeypatch.setattr(explorer, "LARGEST_PAGE", whole - 1)
    smaller = data_of(explorer_page(record))
    before = data_of_record(record)
    for thin, full in zip(smaller["layers"], before["layers"], strict=True):
        for cost, other in zip(thin["costs"], full["costs"], strict=True):
            assert len(cost["values"]) <= 128 and all(set(a) <= set(b) for a, b in zip(cost["sizes"], other["sizes"], strict=True))
            assert [sizes[-1] for sizes in cost["sizes"]] == [sizes[-1] for sizes in other["sizes"]]
            assert cost["values"][-1] == other["values"][-1]
    monkeypatch.setattr(explorer, "LARGEST_PAGE", 20_000)
    with pytest.raises(InvalidArgumentError, match="fewer points"):
        explorer_page(record)


def test_a_block_of_the_models_own_code_has_a_name_on_the_page():
    record = exploration("flops").record
    rooted = record.model_copy(update={"blocks": (record.blocks[0].model_copy(update={"name": ""}), *record.blocks[1:])})
    assert data_of_record(rooted)["blocks"][0]["name"] == "(the model itself)"
    assert [block["name"] for block in data_of_record(rooted)["blocks"][1:]] == [block.name for block in record.blocks[1:]]


def data_of_record(record) -> dict:
    return explorer_data(record, file="explorer.json")


def test_a_notebook_gets_the_page_in_a_frame():
    frame = exploration("flops")._repr_html_()
    assert frame.startswith("<iframe") and 'sandbox="allow-scripts"' in frame
    inside = unescape(re.search(r'srcdoc="([^"]*)"', frame)[1])
    assert data_of(inside)["resource"] == "flops"


def test_results_graphs_and_tables_show_themselves():
    import latprune

    graph = latprune.trace(network(), X)
    shown = graph._repr_html_()
    assert shown == graph_html(graph) and "channel groups" in shown and all(name in shown for name in graph.groups)
    assert all(reason.reason[:20] in unescape(shown) for reason in graph.kept_whole)
    tables = made_up_tables()
    shown = tables._repr_html_()
    assert shown == tables_html(tables) and "widths on offer" in shown and "made up" not in shown
    record = sample_record()
    shown = latprune.Result(model=network(), record=record, example_inputs=X)._repr_html_()
    assert shown == result_html(record) and "Budget met" in shown
    evil = "<img src=x>"
    assert "<img" not in result_html(sample_record(model=record.model.model_dump() | {"name": evil}))
    for text in (graph_html(graph), tables_html(tables), result_html(record)):
        assert len(text) < 20_000 and "<script" not in text


def test_networks_for_another_target_stand_beside_it(tmp_path):
    record, other = exploration("latency").record, elsewhere().record
    page = explorer_page(record, beside=[other])
    data = data_of(page)
    (shown,) = data["others"]
    assert shown["name"] == str(other.target) and data["target_name"] == str(record.target)
    assert [point["widths"] for point in shown["points"]] == [list(point.widths) for point in other.points]
    assert len(page.encode()) < LARGEST_PAGE and "others" not in data_of(explorer_page(record))
    assert (
        exploration("latency").write_html(tmp_path / "both.html", beside=[elsewhere()]).read_text(encoding="utf-8").count("openvino on")
        >= 1
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resource": "flops"}, "by the same resource"),
        ({"target": None}, "onnxruntime on cpu.* twice"),
        ({"groups": None}, "'other' of"),
        ({"blocks": ()}, "other blocks"),
        ({"copies": 4}, "at most 3"),
    ],
)
def test_what_cannot_stand_beside_it_is_refused(change, words):
    record, other = exploration("latency").record, elsewhere().record
    if "target" in change:
        change = {"target": record.target}
    if "groups" in change:
        change = {"groups": (other.groups[0].model_copy(update={"name": "other"}), *other.groups[1:])}
    copies = change.pop("copies", 1)
    with pytest.raises(InvalidArgumentError, match=words):
        explorer_page(record, beside=[other.model_copy(update=change)] * copies)


def test_the_report_command_writes_explorations_beside_each_other(tmp_path, capsys):
    one, other = exploration("latency").save(tmp_path / "one.json"), elsewhere().save(tmp_path / "other.json")
    assert main(["report", str(one), "--beside", str(other), "-o", str(tmp_path / "both.html")]) == 0
    assert len(data_of((tmp_path / "both.html").read_text(encoding="utf-8"))["others"]) == 1
    assert main(["report", str(one)]) == 2
    assert ".html" in capsys.readouterr().err
