"""A cache as the inspector reads it: problems, provenance, verdicts, credit, ratios; what it cannot have."""

import numpy as np
import pytest

from tests.support_inspect import (
    decode,
    drifted,
    grow,
    library,
    open_store,
    put,
    shown_tree,
    small_tree,
    span,
    text_of,
    wrong,
)
from treerl.credit.assign import NEEDS_SIGNALS
from treerl.errors import ConfigError, StoreError
from treerl.inspect.compare import compare, render_comparison
from treerl.inspect.detail import render_detail
from treerl.inspect.forest import arrange, problem_items
from treerl.inspect.heat import heat_of
from treerl.inspect.library import ESTIMATORS, credit_settings
from treerl.inspect.shade import Credit
from treerl.inspect.siblings import best_end, best_sibling, render_family, render_pair
from treerl.inspect.text import fit, token_texts, visible
from treerl.search.sampler import Finish
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict


@pytest.fixture
def opened(tmp_path):
    store, ids = open_store(tmp_path, small_tree())
    with store:
        yield library(store, drifted).open(ids[0])


def words(text):
    """The words of a renderable, wherever its lines break."""
    return " ".join(text_of(text, 200).split())


def cached_tree():
    """A leaf of version 3 that was the second draw in the store, and one drawn by version 5."""
    tree = Tree(list(b"2*3="), seed=9, max_completion_length=40)
    tree.graft(ROOT, span("=6.", Finish.STOP, version=3), source=2)
    grow(tree, ROOT, "=8.", verdict=wrong("8"), version=5)
    return tree


# The forest


def test_problems_come_newest_first_with_their_figures(tmp_path):
    store, _ = open_store(tmp_path, small_tree(), small_tree(), question="first")
    with store:
        put(store, shown_tree(), run="later", question="second")
        items = problem_items(library(store), None, 10)
        assert [item.question for item in items] == ["second", "first"]
        assert [(item.trees, item.right, item.leaves) for item in items] == [(1, 1, 18), (2, 2, 8)]
        assert items[1].entropy == pytest.approx(np.nanmean(small_tree().tokens.entropy), abs=1e-6)
        assert [item.question for item in problem_items(library(store), None, 1)] == ["second"]
        shelf = library(store)
        assert len(problem_items(shelf, shelf.run_id("handmade"), 10)) == 1


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("", ["b", "a"]),
        ("rate<0.2", ["b"]),
        ("rate>=0.25", ["a"]),
        ("trees=2", ["a"]),
        ("A", ["a"]),
        ("trees>1 b", []),
    ],
)
def test_the_forest_is_filtered(tmp_path, where, kept):
    store, _ = open_store(tmp_path, small_tree(), small_tree(), question="a")
    with store:
        put(store, shown_tree(), run="later", question="b")
        items = problem_items(library(store), None, 10)
    assert [i.question for i in arrange(items, where=where, sort="newest")] == kept


def test_the_forest_is_sorted(tmp_path):
    store, _ = open_store(tmp_path, small_tree(), small_tree(), question="a")
    with store:
        put(store, shown_tree(), run="later", question="b")
        items = problem_items(library(store), None, 10)
    first = {
        sort: arrange(items, where="", sort=sort)[0].question
        for sort in ("newest", "pass rate", "trees", "entropy", "question")
    }
    assert first == {"newest": "b", "pass rate": "b", "trees": "a", "entropy": "b", "question": "a"}


@pytest.mark.parametrize("where", ["rate<", "rate<x", "entropy=.."])
def test_a_filter_that_is_none_is_refused(where):
    with pytest.raises(ConfigError, match="filter"):
        arrange([], where=where, sort="newest")


# One span


def test_a_leaf_says_how_it_was_judged_and_where_it_comes_from(opened):
    shown = words(render_detail(opened, 2, heat=None, why="no heat", width=200))
    assert "a branch at a token of high entropy (branch 1 of 2 below span 1)" in shown
    assert 'right, reward 1, parsed \'6\'; {"rule": "number"} by number 1 in 2 ms; truth 6' in shown
    assert "tiny (ab12cd34) version 3" in shown
    assert "temperature 1.0" in shown
    assert "run handmade, step 0" in shown


def test_an_older_span_says_how_old(opened):
    assert "version 1, 2 versions behind the newest here" in words(
        render_detail(opened, 4, heat=None, width=200)
    )


def test_a_span_without_a_verdict_says_why(opened):
    assert "timeout, no answer found" in words(render_detail(opened, 5, heat=None, width=200))
    assert "wrong, reward 0, no answer found" in words(
        render_detail(opened, 4, heat=None, width=200)
    )


def test_cut_points_are_marked_on_the_path_and_at_the_end(opened):
    heat = heat_of("entropy", None, opened, "")
    assert "2*3=┊3+3┊ =6." in words(render_detail(opened, 2, heat=heat, width=200))
    assert "3+3┊" in words(render_detail(opened, 1, heat=heat, width=200))


def test_a_cached_span_names_the_tree_it_was_taken_from(tmp_path):
    store, ids = open_store(tmp_path, small_tree())
    with store:
        with store.read() as connection:
            source = connection.exec_driver_sql("SELECT max(id) FROM draw").scalar_one()
        tree = Tree(list(b"2*3="), seed=9, max_completion_length=40)
        tree.graft(ROOT, span("=6.", Finish.STOP), source=int(source))
        tree.judge(1, Verdict("scored", 1.0, "6"))
        grow(tree, ROOT, "=8.", verdict=wrong("8"))
        newer = put(store, tree, run="second")[0]
        opened = library(store).open(newer)
    assert opened.origins[1].cached
    shown = words(render_detail(opened, 1, heat=None, width=200))
    assert f"the cache: tree {ids[0]} of run handmade" in shown
    assert "by number 1; truth 6" in shown
    assert [opened.view.nodes[row].age for row in (0, 1, 2)] == [None, None, 0]
    assert "tiny (ab12cd34)" in shown


def test_a_cached_span_of_the_same_run_has_an_age(tmp_path):
    store, _ = open_store(tmp_path, small_tree(), fresh := cached_tree())
    with store:
        view = library(store).open(2).view
    assert (view.version, view.nodes[1].version, view.nodes[1].age) == (5, 3, 2)
    assert fresh.draws.source[1] == 2


def test_verdicts_of_other_verifiers_are_listed(tmp_path):
    store, ids = open_store(tmp_path, small_tree())
    with store:
        with store.write() as connection:
            connection.exec_driver_sql(
                "INSERT INTO verifier (key, name, version, config) VALUES (x'00', 'strict', '2', '{}')"
            )
            connection.exec_driver_sql(
                "INSERT INTO verdict (solution_id, verifier_id, outcome, reward, answer, seconds, position)"
                " SELECT solution_id, 2, 'scored', 0.0, 'six', 0.1, 1 FROM draw WHERE row = 2"
            )
        shown = words(render_detail(library(store).open(ids[0]), 2, heat=None, width=200))
    assert "strict 2: wrong, reward 0, parsed 'six'" in shown


# Credit


def test_credit_is_that_of_the_credit_module_with_the_runs_settings():
    recipe = {
        "advantage": {"estimator": "grpo", "std_ddof": 0, "reward_low": -1.0, "rms_scale": True}
    }
    assert credit_settings(recipe, "grpo").std_ddof == 0
    other = credit_settings(recipe, "tree_value")
    assert (other.reward_low, other.rms_scale) == (-1.0, False)


def test_every_estimator_pays_or_says_what_it_lacks(tmp_path):
    store, ids = open_store(tmp_path, small_tree())
    with store:
        without, having = library(store), library(store, drifted)
        bare, scored = without.open(ids[0]), having.open(ids[0])
    for name in ESTIMATORS:
        assert np.isfinite(having.credit(scored, name).tokens).any(), name
        if name in NEEDS_SIGNALS:
            with pytest.raises(ConfigError, match="--weights"):
                without.credit(bare, name)
        else:
            without.credit(bare, name)


def test_the_ratio_is_that_of_the_policy_at_hand(tmp_path):
    store, ids = open_store(tmp_path, small_tree())
    with store:
        shelf = library(store, drifted)
        opened = shelf.open(ids[0])
    assert shelf.ratio(opened)[4:] == pytest.approx(np.exp(0.1))


def test_two_estimators_are_compared_in_figures(opened):
    tree = opened.tree
    first, second = np.full(len(tree.tokens), np.nan), np.full(len(tree.tokens), np.nan)
    for row, (one, other) in {1: (1.0, -1.0), 2: (2.0, 1.0), 3: (-1.0, 0.0)}.items():
        first[tree.nodes.start[row] : tree.nodes.stop[row]] = one
        second[tree.nodes.start[row] : tree.nodes.stop[row]] = other
    found = compare(opened, Credit("a", first), Credit("b", second))
    assert (found.opposed, found.only_one, found.spans) == ([1], 1, 3)
    a, b = np.repeat([1, 2, -1], 3), np.repeat([-1, 1, 0], 3)
    assert found.correlation == pytest.approx(np.corrcoef(a, b)[0, 1])
    shown = words(render_comparison(opened, found, width=100))
    assert "of 3 spans 1 with opposite signs, 1 paid by one alone" in shown
    assert "span 1 +1.00 against -1.00 3+3" in shown


# Siblings


def test_the_best_sibling_is_compared_by_tokens(opened):
    assert best_sibling(opened, 3) == 2
    assert best_sibling(opened, ROOT) is None
    assert best_end(opened, ROOT) == 2
    shown = words(render_pair(opened, 3, 2))
    assert "begin with 1 token in common" in shown
    assert "◇ span 3 q +0.00 n 1 → 7 =⟦7⟧." in shown
    assert "◆ span 2 q +1.00 n 1 → 6 =⟦6⟧." in shown


def test_all_siblings_are_listed_behind_what_they_share(opened):
    assert words(render_family(opened, 2, width=60)) == (
        "all begin with = ◆ span 2 q +1.00 n 1 → 6 6. ◇ span 3 q +0.00 n 1 → 7 7."
    )


# Text


def test_a_tree_that_is_not_there_is_named(tmp_path):
    store, _ = open_store(tmp_path, small_tree())
    with store, pytest.raises(StoreError, match="no tree 99"):
        library(store).open(99)


def test_text_is_cut_to_cells_not_characters():
    assert fit("袋袋袋袋", 5) == "袋袋…"
    assert fit("abc", 3) == "abc"
    assert fit("abc", 0) == ""


def test_control_characters_are_shown():
    assert visible("a\x1b[2J\tb\n\u202ec\x9b") == "a␛[2J⇥b⏎�c�"


def test_tokens_have_the_text_that_they_add():
    assert token_texts(decode, list("a袋b".encode())) == ["a", "", "", "袋", "b"]
    spaced = {1: "▁the", 2: "▁cat", 3: "s"}

    def sentencepiece(tokens):
        return "".join(spaced[t] for t in tokens).replace("▁", " ").removeprefix(" ")

    assert token_texts(sentencepiece, [1, 2, 3]) == ["the", " cat", "s"]
