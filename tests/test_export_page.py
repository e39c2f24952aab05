"""The HTML page of a tree in a real browser, opened from disk: folding, finding, details, hostile text."""

import pytest

from tests.support_chromium import CHROMIUM, WITHOUT, Page
from tests.support_inspect import big_tree, grow, library, open_store, right, small_tree, wrong
from treerl.inspect.export_html import to_html
from treerl.search.sampler import Finish
from treerl.search.tree import ROOT, Tree

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=WITHOUT),
]
HOSTILE = (
    "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with Page(tmp_path_factory.mktemp("browser")) as page:
        yield page


def written(folder, tree, estimator="tree_value", **options):
    store, ids = open_store(folder, tree, **options)
    with store:
        shelf = library(store)
        opened = shelf.open(ids[0])
        text = to_html(opened, [shelf.credit(opened, estimator)])
    file = folder / "tree.html"
    file.write_text(text, encoding="utf-8")
    return file


def rows(page):
    return page.js("[...document.querySelectorAll('.row')].map((r) => r.textContent)")


def chosen(page):
    return page.js("document.querySelector('#detail h2').textContent")


def test_every_span_has_a_line_and_nothing_is_asked_of_the_network(page, tmp_path):
    page.open(written(tmp_path, small_tree()))
    shown = rows(page)
    assert len(shown) == 6
    assert [mark for line in shown for mark in "◆◇▲○●" if mark in line] == list("●●◆◇▲○")
    assert any(line.endswith("=6.→ 6") for line in shown)
    assert page.js("document.getElementById('figures').textContent").startswith(
        "truth 6 · 1/4 right · 6 spans"
    )
    assert page.complaints() == []


def test_a_click_chooses_a_span_and_shows_its_tokens(page, tmp_path):
    page.open(written(tmp_path, small_tree()))
    page.click(".row:nth-child(3) .words")
    assert chosen(page) == "◆ span 2"
    detail = page.js("document.getElementById('detail').textContent")
    for part in ("scored, reward 1", 'parsed "6"', "tiny version 3", "temperature 1"):
        assert part in detail, part
    tokens = page.js(
        "[...document.querySelectorAll('.token')].map((t) => [t.textContent, t.title])"
    )
    assert [text for text, _ in tokens] == ["=", "6", "."]
    assert "entropy 0.25\nlogprob -0.5\nadvantage tree_value" in tokens[0][1]


def test_heat_colours_tokens_by_what_is_asked_for(page, tmp_path):
    file = written(tmp_path, small_tree())
    colour = "getComputedStyle(document.querySelector('.token')).backgroundColor"
    page.open(file, "#row=3&heat=entropy")
    assert page.js(colour) == "rgb(201, 80, 60)"  # 1.5 of 2 nats: level 4 of 0 to 5
    page.open(file, "#row=2&heat=entropy")
    assert page.js(colour) == "rgba(0, 0, 0, 0)"  # .25 nats: level 0


def test_folding_hides_what_is_below_and_counts_it(page, tmp_path):
    page.open(written(tmp_path, small_tree()))
    page.click(".row:nth-child(2) .fold")
    shown = rows(page)
    assert len(shown) == 4
    assert "⊞ 2 spans, 1/2 right" in shown[1]
    page.click("#open")
    assert len(rows(page)) == 6
    page.click("#close")
    assert page.js("document.getElementById('shown').textContent") == "4 spans of 6 shown"


def test_keys_move_fold_and_go_to_right_leaves(page, tmp_path):
    page.open(written(tmp_path, small_tree()))
    page.key("n", text="n")
    assert chosen(page) == "◆ span 2"
    page.key("ArrowDown")
    assert chosen(page) == "◇ span 3"
    page.key("ArrowLeft")
    assert chosen(page) == "● span 1"
    page.key("ArrowLeft")
    assert len(rows(page)) == 4
    page.key("c", text="c")
    assert any("… 2 branches without a right leaf (2 spans)" in line for line in rows(page))


def test_finding_marks_hits_and_enter_goes_to_the_next(page, tmp_path):
    page.open(written(tmp_path, small_tree()))
    page.key("/", text="/")
    page.type("2+2")
    assert page.js("document.getElementById('hits').textContent") == "1 hit"
    page.key("Enter", text="\r")
    assert chosen(page) == "▲ span 4"
    assert page.js("document.querySelectorAll('.row.found').length") == 1
    assert "row=4" in page.js("location.hash")


def test_the_address_brings_back_what_was_seen(page, tmp_path):
    page.open(written(tmp_path, small_tree()), "#row=5&colour=advantage+tree_value&find=9&right=0")
    assert chosen(page) == "○ span 5"
    assert page.js("document.getElementById('colour').value") == "advantage tree_value"
    assert page.js("document.querySelector('#titles').textContent").endswith("tree_valuespan")


def test_hostile_text_is_shown_and_never_obeyed(page, tmp_path):
    tree = Tree(list(HOSTILE.encode()), seed=1, max_completion_length=400)
    bad = grow(tree, ROOT, HOSTILE + "\x00\x1b[31m\u202egnirts", Finish.CUT)
    grow(tree, bad, "<!--<script>" + HOSTILE, verdict=right(HOSTILE, rule=HOSTILE))
    grow(tree, bad, "]]>\u2028&lt;b&gt;", verdict=wrong("<b>6</b>"))
    tree.recount()
    file = written(tmp_path, tree, question=HOSTILE, run=HOSTILE)
    page.open(file, "#row=2&find=%3Cscript%3E")
    assert HOSTILE in page.js("document.getElementById('question').textContent")
    assert HOSTILE in page.js("document.getElementById('detail').textContent")
    assert page.js("document.title") != "taken"
    assert page.js("document.querySelectorAll('img, script').length") == 2
    assert page.js("document.querySelectorAll('b').length") == 0
    assert any("␀␛[31m�gnirts" in line for line in rows(page))
    assert page.complaints() == []


def test_a_tree_of_five_thousand_spans_draws_only_what_is_seen(page, tmp_path):
    page.open(written(tmp_path, big_tree(5000)))
    assert page.js("document.getElementById('shown').textContent") == "5,000 spans of 5,000 shown"
    assert 20 < len(rows(page)) < 80
    page.js("document.getElementById('tree').scrollTop = 60000")
    page.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    first = page.js("Number(document.querySelector('.row').dataset.index)")
    assert 2400 < first <= 2500
    page.key("n", text="n")
    assert chosen(page).startswith("◆")
    assert 20 < len(rows(page)) < 80
