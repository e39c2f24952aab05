"""Growth rules over the fake sampler: what they ask for, when they stop, and that arrivals do not matter."""

import itertools

import numpy as np
import pytest

from tests.support_search import (
    EOS,
    PROBLEM,
    PROMPT,
    FakeSampler,
    InterruptedSampler,
    canonical,
    check_invariants,
    decode_text,
    decode_tokens,
    grow_trees,
    judge_with,
    span,
)
from treerl.config import (
    CureSearch,
    DeepSearchSearch,
    EntropyTopK,
    EntropyWindow,
    FlatSearch,
    RandomCut,
)
from treerl.search.asktell import Result, affordable
from treerl.search.sampler import Origin
from treerl.search.scheduler import Growth, grow
from treerl.search.strategy import make_strategy
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

EVERY_RULE = {
    "flat": FlatSearch(),
    "flat budget": FlatSearch(budget_tokens=40),
    "cure": CureSearch(),
    "cure characters": CureSearch(cut=EntropyTopK(min_characters=1, top_k=3)),
    "cure all": CureSearch(only_undecided=False),
    "cure window": CureSearch(cut=EntropyWindow(width=2, quantile=0.5), only_undecided=False),
    "cure random budget": CureSearch(cut=RandomCut(), only_undecided=False, budget_tokens=120),
    "deepsearch": DeepSearchSearch(chunk_tokens=3),
    "deepsearch entropy": DeepSearchSearch(chunk_tokens=2, uncertainty_weight=0.4),
    "deepsearch enough": DeepSearchSearch(chunk_tokens=3, num_generations=12, enough=2),
    "deepsearch budget": DeepSearchSearch(chunk_tokens=3, num_generations=16, budget_tokens=120),
    "faithful": DeepSearchSearch(
        form="faithful", chunk_tokens=3, width=3, max_depth=8, num_generations=4
    ),
    "faithful budget": DeepSearchSearch(
        form="faithful", chunk_tokens=3, width=3, max_depth=8, budget_tokens=60
    ),
}
CURE_LETTERS = CureSearch(cut=EntropyTopK(min_characters=1), only_undecided=False)


def long_answers(**more):
    return FakeSampler(eos_bias=-2.5, **more)


def leaves_by_origin(tree, origin):
    return [row for row in range(len(tree)) if tree.nodes.origin[row] == origin]


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_order_of_arrival_gives_the_same_tree_up_to_row_numbers(rule):
    settings = EVERY_RULE[rule]
    base = grow_trees(settings, sampler=long_answers(), trees=4)
    for order_seed in range(3):
        trees = grow_trees(settings, sampler=long_answers(order_seed=order_seed), trees=4)
        for tree, expected in zip(trees, base, strict=True):
            check_invariants(tree)
            assert canonical(tree) == canonical(expected)
            assert tree.meta == expected.meta


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_every_tree_ends_with_judged_leaves_and_a_stated_exit(rule):
    exits = set()
    for tree in grow_trees(EVERY_RULE[rule], sampler=long_answers(), trees=12):
        exits.add(tree.meta["exit"])
        assert set(tree.verdicts) == set(tree.leaves().tolist())
        assert tree.meta["generated_tokens"] == tree.n_generated
    assert exits <= {"done", "decided", "enough", "budget", "exhausted"}


@pytest.mark.parametrize("rule", [r for r in EVERY_RULE if "budget" in r])
def test_a_budget_is_overrun_by_less_than_one_continuation(rule):
    settings = EVERY_RULE[rule]
    for order_seed in (None, 1):
        trees = grow_trees(settings, sampler=long_answers(order_seed=order_seed), trees=12)
        spent = [tree.n_generated for tree in trees if tree.meta["exit"] == "budget"]
        assert len(spent) > 2
        for tree in trees:
            longest = int(tree.draws.length[1:].max())
            assert tree.n_generated < settings.budget_tokens + longest
        assert min(spent) >= settings.budget_tokens


def test_what_a_budget_affords():
    assert affordable(None, 50, 7) == 7
    assert affordable(101, 50, 7) == 3
    assert affordable(100, 50, 7) == 2
    assert affordable(1, 50, 7) == 1
    assert affordable(0, 50, 7) == 0
    assert affordable(-3, 50, 7) == 0


# Flat -----------------------------------------------------------------------------------------------------


def test_flat_is_a_star_of_num_generations_leaves():
    (tree,) = grow_trees(FlatSearch(num_generations=5), trees=1)
    assert tree.meta["exit"] == "done"
    assert tree.children(ROOT) == tree.leaves().tolist()
    assert len(tree.leaves()) == 5
    assert sorted(tree.draws.k[1:].tolist()) == [0, 1, 2, 3, 4]
    assert tree.nodes.visits[ROOT] == 5


@pytest.mark.parametrize("settings", [FlatSearch(num_generations=4), CURE_LETTERS])
def test_cached_solutions_count_and_at_least_one_rollout_is_fresh(settings):
    for cached, fresh in ((1, 3), (3, 1), (4, 1)):
        tree = Tree(PROMPT, seed=1, max_completion_length=24)
        for source in range(1, cached + 1):
            row = tree.graft(ROOT, span([7, 8, EOS]), source=source)
            tree.judge(row, Verdict("scored", 1.0))
        strategy = make_strategy(settings, decode_tokens)
        assert sum(len(r.ks) for r in strategy.ask(tree, strategy.start(tree), None)) >= fresh
        list(grow([Growth(tree, strategy, PROBLEM)], FakeSampler(), judge_with(), decode_text))
        origins = [int(tree.nodes.origin[row]) for row in tree.children(ROOT)]
        assert origins.count(Origin.CACHE) == cached
        assert origins.count(Origin.SAMPLE) == fresh


def test_a_partly_grown_tree_gets_only_what_is_missing():
    tree = Tree(PROMPT, seed=1, max_completion_length=24)
    request = tree.request(ROOT, 2)
    for k in range(2):
        tree.append(request, k, span([7, EOS]))
    strategy = make_strategy(FlatSearch(num_generations=5), decode_tokens)
    (asked,) = strategy.ask(tree, strategy.start(tree), None)
    assert asked.ks == (2, 3, 4)


# CURE -----------------------------------------------------------------------------------------------------


def test_sixteen_generations_are_four_rollouts_and_twelve_branches():
    full = [
        tree
        for tree in grow_trees(CURE_LETTERS, sampler=long_answers(), trees=10)
        if tree.meta["exit"] == "done"
    ]
    assert len(full) > 3
    for tree in full:
        assert len(tree.leaves()) == 16
        assert len(tree.children(ROOT)) == 4
        assert len(leaves_by_origin(tree, Origin.ENTROPY)) == 12
        for row in leaves_by_origin(tree, Origin.ENTROPY):
            siblings = tree.children(int(tree.nodes.parent[row]))
            assert len(siblings) == 4
            assert tree.nodes.origin[siblings[0]] == Origin.EXTEND


def test_a_branch_keeps_the_whole_prefix_and_draws_the_critical_token_again():
    tree = next(
        t for t in grow_trees(CURE_LETTERS, sampler=long_answers()) if t.meta["exit"] == "done"
    )
    for row in leaves_by_origin(tree, Origin.ENTROPY):
        parent = int(tree.nodes.parent[row])
        original = tree.children(parent)[0]
        n = len(tree.path_tokens(parent))
        leaf = next(u for u in tree.leaves().tolist() if original in tree.path(u))
        assert tree.path_tokens(row)[:n].tolist() == tree.path_tokens(leaf)[:n].tolist()
        # The critical token has one of the highest entropies of its rollout, and was known before it was drawn.
        critical = tree.tokens.entropy[tree.nodes.start[original]]
        drawn_again = tree.tokens.entropy[tree.nodes.start[row]]
        assert drawn_again == pytest.approx(critical)
        assert not tree.nodes.chosen_by_token[row]


def test_top_1_branches_at_the_highest_entropy_that_qualifies():
    settings = CureSearch(cut=EntropyTopK(top_k=1, min_characters=1), only_undecided=False)
    for tree in grow_trees(settings, sampler=long_answers(), trees=3):
        for child in tree.children(ROOT):
            path = child
            while tree.children(path):
                path = tree.children(path)[0]
            index = tree.path_index(path)[tree.n_prompt :]
            entropy, token = tree.tokens.entropy[index], tree.tokens.token[index]
            entropy = np.where(token == EOS, -1, entropy)
            entropy[0] = -1
            if len(tree.children(child)) > 1:
                site = int(tree.nodes.stop[child] - tree.nodes.start[child])
                assert entropy[site] == entropy.max()


def test_decided_problems_are_not_branched():
    for reward in (0.0, 1.0):
        (tree,) = grow_trees(
            CureSearch(), trees=1, judge=judge_with(lambda c, r=reward: Verdict("scored", r))
        )
        assert tree.meta["exit"] == "decided"
        assert len(tree) == 5


def test_leaves_without_a_verdict_do_not_make_a_problem_undecided():
    outcomes = itertools.cycle(
        [Verdict("scored", 1.0), Verdict("timeout"), Verdict("error"), Verdict("skipped")]
    )
    (tree,) = grow_trees(CureSearch(), trees=1, judge=judge_with(lambda c: next(outcomes)))
    assert tree.meta["exit"] == "decided"


def test_only_undecided_waits_for_all_first_rollouts():
    settings = CureSearch(cut=EntropyTopK(min_characters=1))
    strategy = make_strategy(settings, decode_tokens)
    tree = Tree(PROMPT, seed=1, max_completion_length=24)
    state = strategy.start(tree)
    (request,) = strategy.ask(tree, state, None)
    for k, reward in enumerate([0.0, 1.0, 0.0, 0.0]):
        assert strategy.ask(tree, state, None) == []
        row = tree.append(request, k, span([7, 8, 9, EOS]))
        tree.judge(row, Verdict("scored", reward))
        strategy.tell(tree, state, [Result(row, tree.verdicts[row])])
    assert sum(len(r.ks) for r in strategy.ask(tree, state, None)) == 12


def test_without_that_switch_each_rollout_is_branched_as_it_arrives():
    strategy = make_strategy(CURE_LETTERS, decode_tokens)
    tree = Tree(PROMPT, seed=1, max_completion_length=24)
    state = strategy.start(tree)
    (request,) = strategy.ask(tree, state, None)
    row = tree.append(request, 2, span([7, 8, 9, EOS]))
    tree.judge(row, Verdict("scored", 1.0))
    strategy.tell(tree, state, [Result(row, tree.verdicts[row])])
    (branches,) = strategy.ask(tree, state, None)
    assert branches.ks == (0, 1, 2)
    assert state.exit is None


def test_cure_takes_up_a_partly_branched_tree_at_the_same_sites():
    settings = CureSearch(cut=EntropyTopK(min_characters=1), only_undecided=False)
    (whole,) = grow_trees(settings, sampler=long_answers(), trees=1)
    tree = Tree(PROMPT, seed=0, max_completion_length=24)
    strategy = make_strategy(settings, decode_tokens)
    partial = grow(
        [Growth(tree, strategy, PROBLEM)],
        InterruptedSampler(9, eos_bias=-2.5),
        judge_with(),
        decode_text,
    )
    with pytest.raises(KeyboardInterrupt):
        list(partial)
    assert tree.meta["exit"] == "interrupted"
    assert 4 < len(tree.leaves()) < 16
    list(grow([Growth(tree, strategy, PROBLEM)], long_answers(), judge_with(), decode_text))
    assert canonical(tree) == canonical(whole)
