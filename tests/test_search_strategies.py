"""Growth rules over the fake sampler: what they ask for, when they stop, and that arrivals do not matter."""

import itertools

import numpy as np
import pytest

from tests.support_search import (
    EOS,
    PROBLEM,
    PROMPT,
    FakeSampler,
    ScriptedSampler,
    canonical,
    check_invariants,
    decode_text,
    decode_tokens,
    draw_name,
    grow_trees,
    judge_with,
    last_letter_verdict,
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
from treerl.search.sampler import Finish, Origin
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


def verdicts_by_order(rewards):
    """A judge that hands out the given rewards in turn."""
    turn = itertools.cycle(rewards)
    return judge_with(lambda completion: Verdict("scored", float(next(turn))))


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
    partial = grow([Growth(tree, strategy, PROBLEM)], Stopping(9), judge_with(), decode_text)
    with pytest.raises(KeyboardInterrupt):
        list(partial)
    assert tree.meta["exit"] == "interrupted"
    assert 4 < len(tree.leaves()) < 16
    list(grow([Growth(tree, strategy, PROBLEM)], long_answers(), judge_with(), decode_text))
    assert canonical(tree) == canonical(whole)


class Stopping(FakeSampler):
    """Ctrl-C after some steps."""

    def __init__(self, steps):
        super().__init__(eos_bias=-2.5)
        self.steps = steps

    def step(self):
        self.steps -= 1
        if self.steps < 0:
            raise KeyboardInterrupt
        return super().step()


# DeepSearch, improved -------------------------------------------------------------------------------------


def test_improved_form_keeps_every_leaf_and_needs_few_waves():
    settings = DeepSearchSearch(chunk_tokens=3, num_generations=8)
    sampler = CountingWaves()
    (tree,) = grow_trees(settings, sampler=sampler, trees=1)
    assert tree.meta["exit"] == "done"
    assert len(tree.leaves()) == 8
    assert tree.nodes.selected.all()
    assert sampler.waves == 2


class CountingWaves(FakeSampler):
    """Ends all that is queued in one step."""

    def __init__(self):
        super().__init__(eos_bias=-2.5)
        self.waves = 0

    def step(self):
        self.waves += 1
        return [pair for _ in self.queued for pair in super(CountingWaves, self).step()]


def test_branch_points_lie_on_the_grid_and_are_used_once():
    settings = DeepSearchSearch(chunk_tokens=3, num_generations=16)
    for tree in grow_trees(settings, sampler=long_answers()):
        points = []
        for row in leaves_by_origin(tree, Origin.FRONTIER):
            parent = int(tree.nodes.parent[row])
            assert tree.completion_length(parent) % 3 == 0
            points.append(parent)
        assert all(points.count(point) <= settings.num_branches for point in points)


def test_no_subtree_gets_more_than_its_share():
    def largest(max_share):
        settings = DeepSearchSearch(chunk_tokens=2, num_generations=16, max_share=max_share)
        shares, exits = [], set()
        for tree in grow_trees(settings, sampler=long_answers()):
            tops = [draw_name(tree, int(tree.nodes.draw[u]))[0][1] for u in tree.leaves().tolist()]
            shares.append(max(tops.count(top) for top in tops))
            exits.add(tree.meta["exit"])
        assert "done" in exits
        return max(shares)

    assert largest(0.25) == 4
    assert largest(1.0) > 4


def test_enough_right_and_wrong_ends_the_search():
    settings = DeepSearchSearch(chunk_tokens=2, num_initial=4, num_generations=100, enough=2)
    (tree,) = grow_trees(settings, trees=1, judge=verdicts_by_order([1, 0]))
    assert tree.meta["exit"] == "enough"
    assert len(tree.leaves()) == 4
    (tree,) = grow_trees(
        settings, sampler=long_answers(), trees=1, judge=verdicts_by_order([1, 0, 0, 0])
    )
    assert tree.meta["exit"] == "enough"
    assert len(tree.leaves()) == 8


def test_short_answers_leave_no_frontier_and_that_is_an_end():
    (tree,) = grow_trees(DeepSearchSearch(chunk_tokens=100), trees=1)
    assert tree.meta["exit"] == "exhausted"
    assert len(tree.leaves()) == 4


def test_the_stop_token_alone_is_not_drawn_again():
    sampler = ScriptedSampler(lambda work: [7, 8, 9, EOS])
    (tree,) = grow_trees(DeepSearchSearch(chunk_tokens=3), sampler=sampler, trees=1)
    assert tree.meta["exit"] == "exhausted"
    (tree,) = grow_trees(DeepSearchSearch(chunk_tokens=2), sampler=sampler, trees=1)
    assert tree.meta["exit"] == "done"


def test_search_scores_are_stored_at_the_end():
    settings = DeepSearchSearch(chunk_tokens=3)
    (tree,) = grow_trees(settings, sampler=long_answers(), trees=1)
    rewards = tree.nodes.reward[tree.leaves()]
    assert tree.nodes.visits[ROOT] == len(rewards)
    right = int((rewards > 0.5).sum())
    assert tree.nodes.value_sum[ROOT] == pytest.approx(
        0.1 * right if right else -0.1 * len(rewards)
    )


# DeepSearch, faithful -------------------------------------------------------------------------------------

FAITHFUL = DeepSearchSearch(
    form="faithful", chunk_tokens=2, width=3, max_depth=10, num_generations=5
)


def faithful_trees(settings=FAITHFUL, **more):
    return grow_trees(settings, sampler=long_answers(), trees=12, **more)


def test_faithful_form_records_exactly_num_generations_leaves():
    for tree in faithful_trees():
        assert tree.meta["exit"] == "done"
        leaves = tree.leaves()
        assert tree.nodes.selected[leaves].sum() == 5


def test_faithful_nodes_are_chunks_and_expansions_are_whole():
    for tree in faithful_trees():
        lengths = tree.nodes.stop - tree.nodes.start
        for row in range(1, len(tree)):
            assert lengths[row] <= 2
            if tree.nodes.finish[row] == Finish.CUT:
                assert lengths[row] == 2
            assert len(tree.children(row)) in (0, 3)
        assert max(tree.completion_length(u) for u in range(len(tree))) <= 20


def test_faithful_form_records_the_most_confident_of_the_right_ones_first():
    seen = 0
    for tree in faithful_trees():
        nodes = tree.nodes
        for parent in range(len(tree)):
            ended = [u for u in tree.children(parent) if nodes.finish[u] != Finish.CUT]
            if len(ended) < 2:
                continue
            seen += 1
            (recorded,) = [u for u in ended if nodes.selected[u]]
            best = [u for u in ended if nodes.reward[u] == nodes.reward[ended].max()]
            nll = {
                u: -tree.tokens.logprob[tree.path_index(u)[tree.n_prompt :]].mean() for u in best
            }
            assert nll[recorded] == min(nll.values())
    assert seen > 5


def test_faithful_scores_and_visits_follow_from_the_recorded_leaves():
    (tree, *_) = faithful_trees()
    nodes = tree.nodes
    depth = [len(tree.path(u)) - 1 for u in range(len(tree))]
    recorded = [u for u in tree.leaves().tolist() if nodes.selected[u]]
    for row in range(len(tree)):
        right = wrong = 0.0
        visits = int(nodes.finish[row] == Finish.CUT)
        for leaf in recorded:
            if row in tree.path(leaf):
                visits += 1
                gamma = max(depth[row] / depth[leaf], 0.1)
                right += gamma * (nodes.reward[leaf] == 1)
                wrong += gamma * (nodes.reward[leaf] != 1)
        assert nodes.value_sum[row] == pytest.approx(right if right else -wrong)
        assert nodes.visits[row] == visits


def test_faithful_form_takes_up_a_partly_grown_tree():
    tree = Tree(PROMPT, seed=0, max_completion_length=24)
    strategy = make_strategy(FAITHFUL, decode_tokens)
    with pytest.raises(KeyboardInterrupt):
        list(grow([Growth(tree, strategy, PROBLEM)], Stopping(20), judge_with(), decode_text))
    before = len(tree)
    list(grow([Growth(tree, strategy, PROBLEM)], long_answers(), judge_with(), decode_text))
    assert len(tree) > before
    assert tree.nodes.selected[tree.leaves()].sum() == 5
    check_invariants(tree)


def test_unscored_leaves_are_recorded_last_and_back_up_nothing():
    def verdict(completion):
        return Verdict("timeout") if completion.text[-1:] > "e" else last_letter_verdict(completion)

    trees = faithful_trees(judge=judge_with(verdict))
    assert {tree.meta["exit"] for tree in trees} == {"done"}
    unscored = 0
    for tree in trees:
        for leaf in tree.leaves().tolist():
            if np.isnan(tree.nodes.reward[leaf]):
                unscored += bool(tree.nodes.selected[leaf])
                assert tree.nodes.visits[leaf] == 0
    assert unscored > 0


def test_cached_solutions_count_as_recorded_leaves():
    tree = Tree(PROMPT, seed=0, max_completion_length=24)
    row = tree.graft(ROOT, span([7, 8, EOS]), source=1)
    tree.judge(row, Verdict("scored", 1.0))
    strategy = make_strategy(FAITHFUL, decode_tokens)
    list(grow([Growth(tree, strategy, PROBLEM)], long_answers(), judge_with(), decode_text))
    assert tree.nodes.selected[row]
    assert tree.nodes.selected[tree.leaves()].sum() == 5
    assert len(tree.children(ROOT)) == 4
