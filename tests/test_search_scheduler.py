"""The scheduler: nobody waits for another's verdicts, failures are data, interruptions leave whole trees."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Timer

import numpy as np
import pytest

from tests.support_search import (
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
    last_letter_verdict,
    span,
)
from treerl.config import CureSearch, DeepSearchSearch, EntropyTopK, FlatSearch, RandomCut
from treerl.errors import SamplerError
from treerl.problem import Problem
from treerl.search.sampler import Finish, Origin
from treerl.search.scheduler import Counts, Growth, grow
from treerl.search.strategy import make_strategy
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

CURE = CureSearch(cut=EntropyTopK(min_characters=1))


def growth(settings, seed=0, problem=PROBLEM, prompt=""):
    tree = Tree(PROMPT, seed=seed, max_completion_length=24)
    return Growth(tree, make_strategy(settings, decode_tokens), problem, prompt)


def test_completions_carry_the_whole_response_the_finish_and_the_prompt():
    seen = []

    def judge(problems, completions):
        seen.extend(zip(problems, completions, strict=True))
        return judge_with()(problems, completions)

    one = growth(CURE, prompt="c f d?")
    list(grow([one], FakeSampler(eos_bias=-2.5), judge, decode_text))
    assert len(seen) == len(one.tree.leaves()) > 4
    texts = {decode_text(one.tree.completion_tokens(u).tolist()) for u in one.tree.leaves()}
    assert {completion.text for _, completion in seen} == texts
    assert {completion.finish for _, completion in seen} == {"stop", "length"}
    assert {completion.prompt for _, completion in seen} == {"c f d?"}
    assert all(decode_text(completion.token_ids) == completion.text for _, completion in seen)
    assert {problem.key for problem, _ in seen} == {PROBLEM.key}


def test_a_slow_problem_delays_nobody_and_the_sampler_works_on_meanwhile():
    slow = Problem("slow", "", "letter")
    release = Event()
    pool = ThreadPoolExecutor(1)

    def judge(problems, completions):
        if problems[0] is not slow:
            return judge_with()(problems, completions)

        def wait():
            assert release.wait(30)
            return [last_letter_verdict(completion) for completion in completions]

        return pool.submit(wait)

    growths = [growth(CURE, 0, slow), *(growth(CURE, seed) for seed in range(1, 6))]
    finished = grow(growths, FakeSampler(), judge, decode_text)
    first_five = [next(finished) for _ in range(5)]
    assert growths[0] not in first_five
    assert all(g.tree.meta["exit"] != "interrupted" for g in first_five)
    release.set()
    assert next(finished) is growths[0]
    assert growths[0].tree.meta["exit"] in ("done", "exhausted", "decided")
    pool.shutdown()


@pytest.mark.parametrize(
    "settings",
    [
        CURE,
        CureSearch(cut=RandomCut(), only_undecided=False),
        DeepSearchSearch(chunk_tokens=2, num_generations=12),
        DeepSearchSearch(form="faithful", chunk_tokens=3, width=2, num_generations=3),
    ],
)
def test_the_order_of_verdicts_does_not_matter(settings):
    rng = np.random.default_rng(0)
    with ThreadPoolExecutor(8) as pool:

        def judge(problems, completions):
            def work(seconds):
                time.sleep(seconds)
                return [last_letter_verdict(completion) for completion in completions]

            return pool.submit(work, rng.random() * 0.004)

        late = grow_trees(settings, sampler=FakeSampler(eos_bias=-2), trees=4, judge=judge)
    prompt = grow_trees(settings, sampler=FakeSampler(eos_bias=-2), trees=4)
    assert [canonical(tree) for tree in late] == [canonical(tree) for tree in prompt]


def test_trees_come_out_as_they_finish():
    finished = grow(
        [growth(FlatSearch(num_generations=2), seed) for seed in range(3)],
        FakeSampler(),
        judge_with(),
        decode_text,
    )
    first = next(finished)
    assert first.tree.seed == 0
    assert first.tree.meta["exit"] == "done"
    assert [g.tree.seed for g in finished] == [1, 2]


def test_a_failed_judgement_is_an_error_verdict_and_the_search_goes_on():
    def raising(problems, completions):
        future = Future()
        future.set_exception(OSError("worker lost"))
        return future

    def short(problems, completions):
        future = Future()
        future.set_result([])
        return future

    def cancelled(problems, completions):
        future = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future

    for judge, reason in (
        (raising, "OSError: worker lost"),
        (short, "1 completions got 0 verdicts"),
        (cancelled, "cancelled"),
    ):
        counts = Counts()
        (tree,) = grow_trees(FlatSearch(num_generations=3), trees=1, judge=judge, counts=counts)
        assert tree.meta["exit"] == "done"
        assert np.isnan(tree.nodes.reward[tree.leaves()]).all()
        assert all(reason in v.detail["error"] for v in tree.verdicts.values())
        assert counts.outcomes == {"error": 3}


def test_a_watcher_sees_whole_trees_between_steps_of_the_sampler():
    one, seen = growth(CURE), []

    def look():
        tree = one.tree
        assert sorted(tree.walk()) == list(range(len(tree)))
        assert tree.n_generated == int((tree.nodes.stop - tree.nodes.start)[1:].sum())
        seen.append(tree.n_generated)

    list(grow([one], FakeSampler(eos_bias=-2.5), judge_with(), decode_text, on_round=look))
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


def test_counts():
    counts = Counts()
    sampler = FakeSampler(eos_bias=-2.5)
    trees = grow_trees(CURE, sampler=sampler, counts=counts)
    leaves = sum(len(tree.leaves()) for tree in trees)
    assert counts.generated_tokens == sampler.stats["generated_tokens"]
    assert counts.generated_tokens == sum(tree.n_generated for tree in trees)
    assert counts.continuations == counts.judged == counts.outcomes["scored"] == leaves
    assert counts.trees == sum(counts.exits.values()) == len(trees)


class Broken(FakeSampler):
    """Returns one impossible number in the third continuation."""

    def __init__(self, column, value):
        super().__init__()
        self.column, self.value, self.left = column, value, 3

    def step(self):
        out = super().step()
        self.left -= len(out)
        if self.left == 0:
            getattr(out[0][1], self.column)[-1] = self.value
        return out


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("logprobs", np.nan),
        ("logprobs", -np.inf),
        ("logprobs", 0.5),
        ("entropies", np.nan),
        ("entropies", np.inf),
    ],
)
def test_impossible_numbers_are_an_error_that_names_them(column, value):
    one, other = growth(FlatSearch(num_generations=4)), growth(FlatSearch(num_generations=4), 1)
    sampler = Broken(column, value)
    name = {"logprobs": "logprob", "entropies": "entropy"}[column]
    with pytest.raises(SamplerError, match=rf"{name} {value} .*{PROBLEM.key}"):
        list(grow([one, other], sampler, judge_with(), decode_text))
    assert len(one.tree.leaves()) == 2
    for tree in (one.tree, other.tree):
        check_invariants(tree)
        assert tree.meta["exit"] == "interrupted"
    assert sampler.queued == []


def test_a_log_probability_above_0_by_rounding_passes():
    (tree,) = grow_trees(FlatSearch(num_generations=4), trees=1, sampler=Broken("logprobs", 1e-6))
    assert tree.meta["exit"] == "done"


@pytest.mark.parametrize("steps", [0, 1, 7, 20])
def test_ctrl_c_leaves_consistent_trees_that_a_later_search_takes_up(steps):
    growths = [growth(FlatSearch(num_generations=6), seed) for seed in range(5)]
    sampler = InterruptedSampler(steps)
    with pytest.raises(KeyboardInterrupt):
        list(grow(growths, sampler, judge_with(), decode_text))
    assert sampler.queued == []
    for one in growths:
        check_invariants(one.tree)
        assert one.tree.meta["generated_tokens"] == one.tree.n_generated
    again = [one for one in growths if one.tree.meta["exit"] == "interrupted"]
    assert len(again) == 5 - steps // 6
    list(grow(again, FakeSampler(), judge_with(), decode_text))
    whole = grow_trees(FlatSearch(num_generations=6), trees=5)
    assert [canonical(one.tree) for one in growths] == [canonical(tree) for tree in whole]


def test_leaves_that_were_left_unjudged_are_judged_first():
    def never(problems, completions):
        return Future()

    one = growth(FlatSearch(num_generations=8))
    seven_ended = grow([one], InterruptedSampler(7), never, decode_text)
    with pytest.raises(KeyboardInterrupt):
        list(seven_ended)
    assert len(one.tree.leaves()) == 7
    assert one.tree.verdicts == {}
    list(grow([one], FakeSampler(), judge_with(), decode_text))
    assert len(one.tree.verdicts) == 8
    assert one.tree.meta["exit"] == "done"


def test_closing_the_iterator_early_gives_the_sampler_back():
    sampler = FakeSampler()
    finished = grow(
        [growth(FlatSearch(), seed) for seed in range(4)], sampler, judge_with(), decode_text
    )
    next(finished)
    finished.close()
    assert sampler.queued == []


class Aborting(FakeSampler):
    """Gives the first continuation up after two tokens, as an engine does that loads new weights."""

    aborted = False

    def step(self):
        out = super().step()
        if not self.aborted and len(out[0][1].tokens) > 2:
            self.aborted = True
            ticket, whole = out[0]
            short = span(
                whole.tokens[:2],
                Finish.CUT,
                logprobs=whole.logprobs[:2],
                entropies=whole.entropies[:2],
            )
            return [(ticket, short), *out[1:]]
        return out


@pytest.mark.parametrize("settings", [FlatSearch(num_generations=4), CURE])
def test_a_rollout_that_the_sampler_gave_up_half_way_goes_on(settings):
    (tree,) = grow_trees(settings, sampler=Aborting(eos_bias=-2.5), trees=1)
    assert tree.meta["exit"] in ("done", "exhausted")
    check_invariants(tree)
    assert int((tree.nodes.finish == Finish.CUT).sum()) == 1
    assert len(tree.children(ROOT)) == 4
    assert Origin.EXTEND in tree.nodes.origin


def test_no_growths_is_no_work():
    assert list(grow([], FakeSampler(), judge_with(), decode_text)) == []


class Canned(FakeSampler):
    """50 tokens at once, drawn beforehand: what is left is the cost of search."""

    def _draw(self, work):
        return CANNED


CANNED = span([5, 6, 7, 8, 9] * 10, Finish.LENGTH, entropies=np.linspace(0, 2, 50))


@pytest.mark.parametrize("settings", [FlatSearch(), CureSearch(num_generations=8, num_branches=1)])
def test_search_itself_costs_little(settings):
    # 256 leaves; about 20 ms on a quiet core, the limit is for a loaded one.
    begun = time.process_time()
    grow_trees(settings, sampler=Canned(), trees=32, max_completion_length=50)
    assert time.process_time() - begun < 0.5


def test_in_order_takes_verdicts_as_submitted_whatever_their_speed():
    """Late verdicts of the first tree hold nothing back but the order in which all of them are told."""

    def grown(delays):
        told = []
        waits = iter(delays)

        def judge(problems, completions):
            future: Future = Future()
            verdicts = [Verdict("scored", 1.0, "x")] * len(problems)
            told.append([completion.text for completion in completions])
            Timer(next(waits), future.set_result, [verdicts]).start()
            return future

        growths = [growth(FlatSearch(num_generations=2), seed=seed) for seed in range(4)]
        order = [
            g.tree.seed for g in grow(growths, FakeSampler(), judge, decode_text, in_order=True)
        ]
        return order, told

    delays = [0.08, 0.0, 0.04, 0.0] * 8
    assert grown(delays) == grown(delays[::-1])
