"""Exports of hand-made trees read back by other programs' readers: XML, GraphML, DOT, JSON."""

import io
import json
import re
import shutil
import subprocess
from xml.etree import ElementTree

import networkx as nx
import numpy as np
import pytest

from tests.support_inspect import big_tree, grow, library, open_store, right, small_tree, wrong
from treerl.inspect.export_graph import to_dot, to_graphml
from treerl.inspect.export_html import script_json, to_html
from treerl.inspect.export_layout import MOST_ROWS, shown_lines
from treerl.inspect.export_svg import DARK, PAPERS, tree_svg
from treerl.inspect.export_values import to_json
from treerl.inspect.shade import shade_of
from treerl.search.sampler import Finish
from treerl.search.tree import ROOT, Tree

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = 'a"b\\c</svg>]]>&lt;\x00\x1b[0m\n\udcff\ufffe{}|<>'


@pytest.fixture
def opened(tmp_path):
    store, ids = open_store(tmp_path, small_tree())
    with store:
        yield library(store).open(ids[0])


@pytest.fixture
def hostile(tmp_path):
    """A tree whose every text is made to break out of a file."""
    tree = Tree(list(b"2*3="), seed=1, max_completion_length=200)
    grow(tree, ROOT, "x\x00\x1b</text>\"'&\\", verdict=right(HOSTILE.replace("\udcff", "")))
    tree.recount()
    store, ids = open_store(tmp_path, tree, question='</svg>"\\\n&', run="r<&>")
    with store:
        opened = library(store).open(ids[0])
        opened.view.nodes[1].text = HOSTILE
        yield opened


def credit(opened, tmp_path, estimator="tree_value"):
    with open_store(tmp_path)[0] as store:
        return library(store).credit(opened, estimator)


def figure(opened, colour="q", **options):
    shade = shade_of(colour, opened.view, opened.tree)
    return tree_svg(opened.view, shade, title=opened.title, **options)


# SVG


def test_a_figure_has_every_span_its_mark_and_its_answer(opened):
    root = ElementTree.fromstring(figure(opened))
    texts = ["".join(t.itertext()) for t in root.iter(f"{SVG}text")]
    for part in ("2*3=", "3+3", "=6.", "=7.", "2+2+2", "9^9^9", "6", "7", "no answer", "timeout"):
        assert part in texts, part
    assert "truth 6 · 1 of 4 right · 6 spans · 19 tokens drawn" in texts
    assert any(text.startswith("q 0.50 · n 2") for text in texts)
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert sum(title.startswith("span ") for title in titles) == 5


def test_a_figure_keeps_within_its_box(opened):
    root = ElementTree.fromstring(figure(opened))
    width, height = (float(root.get(name)) for name in ("width", "height"))
    for box in root.iter(f"{SVG}rect"):
        if box.get("width") != "100%":
            assert (
                0 <= float(box.get("x")) <= float(box.get("x")) + float(box.get("width")) <= width
            )
            assert 0 <= float(box.get("y")) < height - 17


def test_tokens_of_one_colour_are_one_bar_of_it(opened):
    hot = [
        box.get("fill")
        for box in ElementTree.fromstring(figure(opened, "entropy")).iter(f"{SVG}rect")
    ]
    assert hot.count("#c9503c") == 1 + 1  # the bar of `=7.` at 1.5 nats, and the scale


def test_papers_differ_in_their_background(opened):
    assert 'height="100%" fill="#ffffff"' in figure(opened)
    assert DARK.back in figure(opened, paper=PAPERS["dark"])
    assert 'height="100%"' not in figure(opened, paper=PAPERS["none"])


def test_hostile_text_leaves_a_figure_well_formed(hostile):
    root = ElementTree.fromstring(figure(hostile))
    assert "</svg>" in "".join(root.itertext())
    assert len(list(root.iter(f"{SVG}circle"))) >= 1


def test_a_big_tree_is_elided_and_the_elided_is_counted(tmp_path):
    store, ids = open_store(tmp_path, big_tree(1000))
    with store:
        opened = library(store).open(ids[0])
    view = opened.view
    lines = shown_lines(view, whole=False, only_right=False)
    ends = sum(line.is_elision or not view.nodes[line.row].children for line in lines)
    assert ends <= MOST_ROWS
    hidden = sum(line.counts(view)[0] for line in lines if line.is_elision)
    assert sum(not line.is_elision for line in lines) + hidden == len(view.nodes)
    assert {row for row, node in view.nodes.items() if node.best} <= {line.row for line in lines}
    assert "branches beyond the" in figure(opened) or "of visits" in figure(opened)
    assert len(shown_lines(view, whole=True, only_right=False)) == len(view.nodes)


# GraphML and DOT


def test_graphml_reads_back_with_types_and_without_the_unknown(opened, tmp_path):
    text = to_graphml(opened, [credit(opened, tmp_path)])
    graph = nx.read_graphml(io.BytesIO(text.encode()), node_type=int)
    assert sorted(graph.edges) == [(0, 1), (0, 4), (0, 5), (1, 2), (1, 3)]
    leaf = graph.nodes[2]
    assert leaf["reward"] == 1.0
    assert leaf["best"] is True
    assert leaf["visits"] == 1
    assert (leaf["text"], leaf["answer"], leaf["finish"], leaf["origin"]) == (
        "=6.",
        "6",
        "stop",
        "entropy",
    )
    assert isinstance(leaf["advantage_tree_value"], float)
    assert "prior" not in leaf
    assert "reward" not in graph.nodes[1]
    assert "answer" not in graph.nodes[4]
    assert graph.graph["question"] == "2*3="
    assert not any(
        isinstance(v, float) and np.isnan(v) for row in graph for v in graph.nodes[row].values()
    )


def test_graphml_holds_hostile_text(hostile):
    graph = nx.read_graphml(io.BytesIO(to_graphml(hostile).encode()), node_type=int)
    assert graph.nodes[1]["text"] == HOSTILE.translate(
        {0: "�", 0x1B: "�", 0xDCFF: "�", 0xFFFE: "�"}
    )


DOT_LINE = re.compile(
    r'  (?:(\d+) \[((?:\w+="(?:[^"\\]|\\.)*"(?:, )?)*)\]|(\d+) -> (\d+)|treerl_\w+="(?:[^"\\]|\\.)*");'
)
ATTRIBUTE = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def test_dot_has_a_node_a_span_and_an_edge_a_branch(opened, tmp_path):
    lines = to_dot(opened, [credit(opened, tmp_path)]).splitlines()
    assert lines[0] == "digraph tree {"
    assert lines[-1] == "}"
    found = [DOT_LINE.fullmatch(line) for line in lines[1:-1] if "rankdir" not in line]
    assert all(found)
    edges = {(int(m[3]), int(m[4])) for m in found if m[3]}
    assert edges == {(0, 1), (0, 4), (0, 5), (1, 2), (1, 3)}
    columns = {int(m[1]): dict(ATTRIBUTE.findall(m[2])) for m in found if m[1]}
    assert columns[2]["label"] == r"◆ q 1.00 n 1 → 6\n=6."
    assert columns[2]["reward"] == "1.0"
    assert "nan" not in {value for row in columns.values() for value in row.values()}


def test_dot_quotes_hostile_text(hostile):
    lines = to_dot(hostile).splitlines()
    assert all(DOT_LINE.fullmatch(line) for line in lines[1:-1] if "rankdir" not in line)


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz: apt-get install graphviz")
def test_graphviz_draws_the_dot_file(hostile):
    done = subprocess.run(
        ["dot", "-Tplain"],
        input=to_dot(hostile).encode("utf-8", "replace"),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert done.stdout.startswith(b"graph 1")


# JSON and the page


def test_json_has_every_token_and_null_where_nothing_is_known(opened, tmp_path):
    values = json.loads(to_json(opened, [credit(opened, tmp_path)]), parse_constant=pytest.fail)
    assert values["format"] == "treerl tree 1"
    assert values["header"]["run"] == "handmade"
    assert values["header"]["tree_seed"] == "1"
    nodes = {node["row"]: node for node in values["nodes"]}
    assert nodes[2]["columns"]["text"] == ["=", "6", "."]
    assert nodes[2]["columns"]["entropy"] == [0.25] * 3
    assert len(nodes[2]["columns"]["advantage tree_value"]) == 3
    assert nodes[5]["columns"]["advantage tree_value"] == [None] * 5
    assert nodes[2]["draw"]["policy"] == "tiny"
    assert nodes[2]["draw"]["judgements"][0]["verifier"] == "number"


def test_no_data_can_end_the_element_it_stands_in():
    text = script_json({"a": "</script><!--&\u2028\udcff"})
    assert set("<>&\u2028") & set(text) == set()
    assert text.isascii()
    assert json.loads(text) == {"a": "</script><!--&\u2028\udcff"}


def test_the_page_carries_its_data_and_nothing_to_load(hostile):
    page = to_html(hostile)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[
        1
    ]
    values = json.loads(data)
    assert values["tree"]["nodes"][1]["text"] == HOSTILE
    assert page.count("<script") == 2
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?://", page)
    assert "default-src 'none'" in page


def test_leaves_without_text_and_trees_without_leaves_are_drawn(tmp_path):
    empty = Tree(list(b"q"), seed=1, max_completion_length=9)
    chain = Tree(list(b"q"), seed=2, max_completion_length=90)
    node = ROOT
    for _ in range(8):
        node = grow(chain, node, "step ", Finish.CUT)
    grow(chain, node, "\x00", verdict=wrong(None))
    store, ids = open_store(tmp_path, empty, chain)
    with store:
        for tree in ids:
            opened = library(store).open(tree)
            ElementTree.fromstring(figure(opened))
            assert to_html(opened)
            assert to_dot(opened)
            assert to_graphml(opened)
