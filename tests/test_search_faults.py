"""Faults in a search: one continuation's end its tree, the sampler's end the search, no wait is endless."""

from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support_search import (
    PROBLEM,
    PROMPT,
    FakeSampler,
    canonical,
    check_invariants,
    decode_text,
    decode_tokens,
    grow_trees,
    judge_with,
)
from treerl.config import CureSearch, DeepSearchSearch, EntropyTopK, FlatSearch, SearchSettings
from treerl.errors import SamplerError, TreerlError
from treerl.problem import Problem
from treerl.search import judging, scheduler
from treerl.search.sampler import Failure, Finish, Sampler
from treerl.search.scheduler import Counts, Growth, Limits, grow
from treerl.search.strategy import make_strategy
from treerl.search.tree import Tree

RULES = {
    "flat": FlatSearch(),
    "cure": CureSearch(cut=EntropyTopK(min_characters=1), only_undecided=False),
    "deepsearch": DeepSearchSearch(chunk_tokens=3, num_generations=12),
    "faithful": DeepSearchSearch(form="faithful", chunk_tokens=3, width=3, num_generations=4),
}


def long_answers(**more):
    return FakeSampler(eos_bias=-2.5, **more)


def growth(settings: SearchSettings, seed: int = 0, length: int = 24, prompt=PROMPT) -> Growth:
    tree = Tree(prompt, seed=seed, max_completion_length=length)
    return Growth(tree, make_strategy(settings, decode_tokens), PROBLEM)


def grown(growths, sampler, *, judge=None, counts=None, **limits):
    counts = Counts() if counts is None else counts
    done = grow(
        growths, sampler, judge or judge_with(), decode_text, counts, limits=Limits(**limits)
    )
    return list(done)


class Failing(FakeSampler):
    """Gives up the continuations of one prefix, when it is their turn."""

    def __init__(self, prefix, failure, **more):
        super().__init__(**more)
        self.prefix, self.failure, self.failed = prefix, failure, 0

    def step(self):
        for ticket in self.queued:
            if self._queue[ticket].prefix[: len(self.prefix)].tolist() == self.prefix:
                del self._queue[ticket]
                self.failed += 1
                return [(ticket, self.failure)]
        return super().step()


class Losing(FakeSampler):
    """Never returns the `n`-th continuation it gets. Its clock, `now`, goes on while it has nothing else."""

    now = 0.0

    def __init__(self, n, **more):
        super().__init__(**more)
        self.left, self.lost, self.aborted = n, None, []

    def submit(self, ticket, work):
        self.left -= 1
        if self.left == 0:
            self.lost = ticket
        else:
            super().submit(ticket, work)

    def step(self):
        self.now += not self.queued
        return super().step()

    def abort(self, tickets):
        tickets = list(tickets)
        self.aborted += tickets
        super().abort(tickets)


def tell_time_by(sampler, monkeypatch):
    """The scheduler's clock is that of the sampler."""
    monkeypatch.setattr(scheduler, "time", SimpleNamespace(monotonic=lambda: sampler.now))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("exit_", ["too_long", "failed"])
def test_a_continuation_that_fails_ends_its_tree_and_no_other(rule, exit_):
    other = [4, 4, 4]
    sampler = Failing(other, Failure(exit_, "the engine gave it up"), eos_bias=-2.5)
    growths = [growth(RULES[rule], seed, prompt=PROMPT if seed else other) for seed in range(4)]
    counts = Counts()
    done = grown(growths, sampler, counts=counts)
    assert {id(one) for one in done} == {id(one) for one in growths}
    assert growths[0].tree.meta["exit"] == exit_
    assert counts.exits[exit_] == 1
    assert sampler.failed >= 1
    for one, whole in zip(
        growths[1:], grow_trees(RULES[rule], sampler=long_answers(), trees=4)[1:], strict=True
    ):
        assert canonical(one.tree) == canonical(whole)


@pytest.mark.parametrize("rule", RULES)
def test_a_tree_that_ends_by_a_failure_keeps_what_it_has_judged_and_counted(rule, monkeypatch):
    """The third continuation is lost; the others of the tree arrive all the same."""
    sampler = Losing(3, eos_bias=-2.5)
    tell_time_by(sampler, monkeypatch)
    one = growth(RULES[rule])
    counts = Counts()
    grown([one], sampler, counts=counts, request_s=5)
    tree = one.tree
    check_invariants(tree)
    assert tree.meta["exit"] == "timeout"
    assert sampler.aborted == [sampler.lost]
    assert counts.generated_tokens == tree.n_generated == sampler.stats["generated_tokens"]
    leaves = tree.leaves().tolist()
    assert set(tree.verdicts) == set(leaves)
    assert leaves or rule == "faithful"
    if rule in ("flat", "cure"):
        assert tree.nodes.visits[0] == len(leaves)
    elif rule == "deepsearch":
        assert tree.nodes.visits[0] == len(leaves) == 3
    else:
        assert (tree.nodes.visits[1:] == 1).all()


def test_the_others_of_a_search_are_finished_while_one_request_never_returns(monkeypatch):
    sampler = Losing(2, eos_bias=-2.5)
    tell_time_by(sampler, monkeypatch)
    growths = [growth(FlatSearch(num_generations=3), seed) for seed in range(4)]
    done = grown(growths, sampler, request_s=5)
    assert [one.tree.meta["exit"] for one in growths] == ["timeout", "done", "done", "done"]
    assert done[-1] is growths[0]


@pytest.mark.parametrize("rule", RULES)
def test_a_prompt_that_does_not_fit_ends_its_tree_and_no_other(rule):
    growths = [growth(RULES[rule], 0, prompt=PROMPT * 13), growth(RULES[rule], 1)]
    counts = Counts()
    grown(growths, long_answers(context=40), counts=counts)
    assert growths[0].tree.meta["exit"] == "too_long"
    assert len(growths[0].tree) == 1
    assert growths[1].tree.meta["exit"] not in ("too_long", "interrupted")
    assert counts.trees == 2


class Dying(FakeSampler):
    """The engine is lost after some steps."""

    def __init__(self, steps, **more):
        super().__init__(**more)
        self.left = steps

    def step(self):
        self.left -= 1
        if self.left < 0:
            raise SamplerError("the engine died")
        return super().step()


def test_a_lost_engine_ends_the_search_with_whole_trees_that_can_be_taken_up():
    growths = [growth(FlatSearch(num_generations=4), seed) for seed in range(3)]
    finished = []
    with pytest.raises(SamplerError, match="the engine died"):
        finished += grow(growths, Dying(6), judge_with(), decode_text)
    assert [one.tree.meta["exit"] for one in growths] == ["done", "interrupted", "interrupted"]
    for one in growths:
        check_invariants(one.tree)
    grown(growths[1:], FakeSampler())
    whole = grow_trees(FlatSearch(num_generations=4), trees=3)
    assert [canonical(one.tree) for one in growths] == [canonical(tree) for tree in whole]


@pytest.mark.parametrize("in_order", [True, False])
def test_verdicts_that_stay_away_are_an_error_that_says_what_it_waits_for(in_order, monkeypatch):
    monkeypatch.setattr(judging, "_GRACE", 0.05)

    def judge(problems, completions):
        return judge_with()(problems, completions) if problems[0] is PROBLEM else Future()

    lost = growth(FlatSearch(num_generations=2))
    lost.problem = Problem("lost problem", "", "letter")
    growths = [lost, growth(FlatSearch(num_generations=2), 1)]
    with pytest.raises(TreerlError, match=r"waited 0 s .* 2 of them.*lost problem|1 of them.*lost"):
        list(
            grow(
                growths,
                FakeSampler(),
                judge,
                decode_text,
                in_order=in_order,
                limits=Limits(item_s=0.01),
            )
        )
    assert lost.tree.meta["exit"] == "interrupted"
    assert len(lost.tree.leaves()) >= 1


class Watching(FakeSampler):
    """Remembers how many continuations lay in the queue before each step."""

    def __init__(self, **more):
        super().__init__(**more)
        self.depths = []

    def step(self):
        self.depths.append(len(self._queue))
        return super().step()


def test_trees_are_opened_only_while_the_sampler_has_room_and_keep_it_full():
    sampler = Watching(eos_bias=-2.5)
    opened = []

    def growths():
        for seed in range(30):
            opened.append(seed)
            yield growth(RULES["cure"], seed)

    seen = []
    done = grow(growths(), sampler, judge_with(), decode_text, limits=Limits(in_flight=8))
    for _ in done:
        seen.append(len(opened))
    assert len(seen) == 30
    assert seen[0] < 10
    before_the_end = sampler.depths[: len(sampler.depths) - 30]
    assert min(before_the_end) >= 8


def test_the_window_changes_no_tree():
    for rule in RULES.values():
        whole = grow_trees(rule, sampler=long_answers(), trees=6)
        growths = [growth(rule, seed) for seed in range(6)]
        grown(growths, long_answers(), in_flight=1)
        assert [canonical(one.tree) for one in growths] == [canonical(tree) for tree in whole]


def test_the_window_follows_the_capacity_of_the_sampler():
    sampler: Sampler = FakeSampler()
    opened = []

    def growths():
        for seed in range(100):
            opened.append(seed)
            yield growth(FlatSearch(num_generations=4), seed)

    next(grow(growths(), sampler, judge_with(), decode_text))
    assert (
        len(opened) == 2 * sampler.capacity // 4 + 1
    )  # one more when the first continuation was there


def test_a_rollout_given_up_by_the_sampler_in_a_tree_that_has_failed_is_not_sent_again():
    class Both(FakeSampler):
        def step(self):
            out = super().step()
            if not out:
                return out
            (ticket, whole) = out[0]
            if len(self.queued) == 1:
                return [(ticket, Failure("failed", "no"))]
            cut = whole.tokens[:1], whole.logprobs[:1], whole.entropies[:1]
            return [(ticket, type(whole)(*cut, whole.policy_version, Finish.CUT))]

    one = growth(FlatSearch(num_generations=2))
    (tree,) = [g.tree for g in grown([one], Both(eos_bias=-9.0))]
    assert tree.meta["exit"] == "failed"
    assert (tree.nodes.finish[1:] == Finish.CUT).all()
    assert np.isnan(tree.nodes.reward).all()
