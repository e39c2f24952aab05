# ruff: noqa: E501  (a row of the table is one line)
"""Defects of released code that the methods pages list, and why this code does not have them.

A name is a test below, in test_search_defects_cure (CURE) or in the module named; "cannot arise" says why no test could fail.

| release | defect | here |
|---|---|---|
| any | a site chosen by its sampled token biases V with the original child | test_fork_site_bias, test_rows_say_whether_the_token_chose_the_site |
| DeepSearch 1 | lockstep of many problems, a barrier a level | test_no_tree_waits_for_another, test_a_tree_needs_two_waves; test_search_scheduler |
| DeepSearch 2 | prefix cache flushed after each chunk, device copies each round | cannot arise: search has no way to flush a sampler; a `Sampler` is submit, step and abort |
| DeepSearch 3 | eight chunks generated for one followed | test_every_generated_token_lies_on_a_kept_leaf |
| DeepSearch 4 | EOS in the last slot of a chunk missed; full-length padding read as terminal | test_eos_in_the_last_slot_of_a_chunk_ends_the_path, test_a_full_chunk_without_eos_goes_on |
| DeepSearch 5 | crash when no frontier is left (short answers) | test_short_answers_exhaust_the_frontier |
| DeepSearch 6 | dead parameter q_correct; incomplete leaves by Eq. 4's wrong edge | test_every_setting_is_read, test_an_answer_cut_by_the_length_limit_is_judged_by_its_text |
| DeepSearch 7 | crash when all children are terminal | test_an_expansion_of_terminal_chunks_only |
| DeepSearch 7 | NaN confidence logged, then used in min | test_search_scheduler: test_impossible_numbers_are_an_error_that_names_them |
| DeepSearch 8 | validation runs the tree search; reward through an exception path | cannot arise: evaluation does not call strategies; verdicts are data |
| DeepSearch | local selection always takes child 0 (all scores tie) | test_ties_do_not_always_fall_on_child_0 |
| DeepSearch | seven of eight kept as siblings of the first solution (restart at 95 % of its depth) | test_the_search_does_not_stay_below_the_first_solution |
| DeepSearch | recorded leaves are selected: success .3 looks like .47 | test_keeping_every_leaf_keeps_the_success_rate |
| DeepSearch | backed-up score depends on nothing but is read as a value; sign in all-wrong groups | test_all_wrong_trees_have_no_positive_score; advantages are credit's: tests of treerl.credit |
| DeepSearch | no token budget | test_search_strategies: test_a_budget_is_overrun_by_less_than_one_continuation |
| CURE | prompt + prefix truncated, late branch points move | test_a_late_branch_point_keeps_its_whole_prefix |
| CURE | a branch gets a fresh length budget; the overlong rule ignores the prefix | test_one_length_limit_on_the_full_text |
| CURE | the reward sees the continuation only | test_the_judge_sees_the_full_text_of_a_branch |
| CURE | every prompt branched before it is known to be undecided | test_decided_prompts_are_not_branched |
| CURE | no candidate: regenerated from the prompt | test_no_candidate_no_branch |
| CURE | second forward pass for entropies | cannot arise: spans carry them; search has no model |
| CURE | KV cache freed between waves | cannot arise: waves are requests to one sampler that stays as it is |
| CURE | per-candidate decode loop | test_token_texts_are_read_once_an_id |
| CURE | critical token kept in the child, prefix trained twice | test_the_critical_token_is_drawn_again |
| CURE | stage switch confounds method, context and optimizer | cannot arise: no stages; a strategy does not touch lengths or optimizer |
| CURE | n set on a shared object behind an assertion that is always true | test_settings_are_frozen |
| CURE | eval.sh calls a module that is not there | cannot arise: no shell scripts call search |
| EPTree | hard default length (7144) for children | test_one_length_limit_on_the_full_text |
| EPTree | exceptions drop into an interactive shell; synchronous | cannot arise: errors pass through `grow`; scheduler is asynchronous |
| EPTree | drawn at T 1.2, trained at T 1 without correction | cannot arise here: a span's logprob is that of the distribution sampled from (sampler conformance) |
| TreePO | misspelt or overwritten arguments fall back to -1 | test_unknown_settings_are_refused |
| TreePO | uid and path joined without a separator | test_names_of_draws_do_not_run_together |
| TreePO | the slowest path of a round blocks; leaves trained as full sequences | test_no_tree_waits_for_another; packing is the policy's |
| Tree-GRPO | `mode` ignored | test_every_setting_is_read |
| Tree-GRPO | undefined variable when nothing can be expanded | test_short_answers_exhaust_the_frontier |
| Tree-GRPO | log-probs collected but unused; warm-up differs between arms | cannot arise: log-probs are columns of the tree; warm-up is one recipe key |
| SPO | prefix decoded to text and encoded again | test_prefixes_are_the_sampled_tokens |
| SPO | p threshold hard-coded; engine killed every iteration | cannot arise: no such cut rule; search does not own the sampler |
| ARES | trigger word list | cannot arise: the rule reads entropies only |
| ARES | threshold over window means mixed up with token entropies | test_search_cut: test_the_threshold_is_the_mean_of_token_quantiles_of_the_rollouts |
| REFINE, R^3, RGR | hidden-state reward; f with a wrong denominator | cannot arise: not built |
"""

import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

import treerl.search
from tests.support_search import (
    EOS,
    PROBLEM,
    PROMPT,
    FakeSampler,
    ScriptedSampler,
    WaveSampler,
    decode_text,
    decode_tokens,
    grow_trees,
    judge_with,
    span,
)
from treerl.canon import generator
from treerl.config import CureSearch, DeepSearchSearch, EntropyTopK, EntropyWindow, FlatSearch
from treerl.search.sampler import Finish, Origin
from treerl.search.scheduler import Growth, grow
from treerl.search.strategy import make_strategy
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

FAITHFUL = DeepSearchSearch(
    form="faithful", chunk_tokens=4, width=3, max_depth=6, num_generations=4
)
LETTERS = EntropyTopK(min_characters=1, top_k=2)


def wrong(completion):
    return Verdict("scored", 0.0)


def letters(work, count):
    """`count` letters that depend on the seed."""
    return generator("letters", work.seed).integers(2, 12, count).tolist()


# Any method -----------------------------------------------------------------------------------------------


def test_fork_site_bias():
    rng = np.random.default_rng(0)
    values, p = np.array([0.8, 0.5, 0.1]), [0.6, 0.3, 0.1]
    sampled = rng.choice(3, (200_000, 8), p=p)
    fresh = values[rng.choice(3, (200_000, 2), p=p)]
    by_token = values[sampled.max(axis=1)]  # token 2 is the least likely
    fixed = values[sampled[:, 4]]
    with_original = (by_token + fresh.sum(axis=1)) / 3
    assert with_original.mean() == pytest.approx(0.519, abs=0.002)
    assert fresh.mean() == pytest.approx(0.640, abs=0.002)
    assert ((fixed + fresh.sum(axis=1)) / 3).mean() == pytest.approx(0.640, abs=0.002)


@pytest.mark.parametrize(
    ("cut", "flag"),
    [(LETTERS, False), (EntropyTopK(min_characters=2), True), (EntropyWindow(quantile=0.3), True)],
)
def test_rows_say_whether_the_token_chose_the_site(cut, flag):
    settings = CureSearch(cut=cut, only_undecided=False)
    trees = grow_trees(settings, sampler=FakeSampler(eos_bias=-2.5), trees=3)
    flags = set()
    for tree in trees:
        branch = np.isin(tree.nodes.origin, (Origin.ENTROPY, Origin.WINDOW))
        flags |= set(tree.nodes.chosen_by_token[branch].tolist())
        assert not tree.nodes.chosen_by_token[~branch].any()
    assert flags == {flag}


def test_every_setting_is_read():
    folder = Path(treerl.search.__file__).parent
    source = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    fields = {
        name
        for model in (FlatSearch, CureSearch, DeepSearchSearch, EntropyTopK, EntropyWindow)
        for name in model.model_fields
    }
    # The engine deals out trees_per_step; `kind` is matched by class.
    unread = {
        name
        for name in fields - {"trees_per_step", "kind"}
        if not re.search(rf"(settings|search)\.{name}\b|\b{name}=", source)
    }
    assert unread == set()


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        CureSearch().num_branches = 4


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        DeepSearchSearch(q_correct=0.1)


def test_names_of_draws_do_not_run_together():
    tree = Tree(PROMPT, seed=1, max_completion_length=60)
    first = tree.request(ROOT, 1)
    tree.append(first, 0, span([5] * 40))
    seeds = []
    for offset in (1, 11, 2, 12):
        seeds += tree.request(tree.node_at(1, offset), 13).seeds
    assert len(set(seeds)) == len(seeds)


def test_prefixes_are_the_sampled_tokens():
    # 8 and 9 are two letters each: text would not say where a token ends.
    sampler = ScriptedSampler(lambda work: [*letters(work, 6), EOS])
    (tree,) = grow_trees(CureSearch(cut=LETTERS, only_undecided=False), sampler=sampler, trees=1)
    paths = [tree.path_tokens(u).tolist() for u in range(len(tree))]
    branches = [work for work in sampler.works if len(work.prefix) > len(PROMPT)]
    assert len(branches) == 12
    assert all(work.prefix.tolist() in paths for work in branches)


# DeepSearch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [FAITHFUL, DeepSearchSearch(chunk_tokens=2)])
def test_no_tree_waits_for_another(settings):
    """The first tree's rollouts end first; the tree is finished while the second has not got a token."""
    strategy = make_strategy(settings, decode_tokens)
    growths = [
        Growth(Tree(PROMPT, seed=seed, max_completion_length=24), strategy, PROBLEM)
        for seed in (0, 1)
    ]

    class FirstTreeFirst(FakeSampler):
        def step(self):
            for ticket in self.queued:
                if ticket not in second:
                    work = self._queue.pop(ticket)
                    return [(ticket, self._draw(work))]
            return super().step()

    second = set()
    sampler = FirstTreeFirst(eos_bias=-2.0)
    finished = grow(growths, sampler, judge_with(), decode_text)
    first_wave = settings.width if settings.form == "faithful" else settings.num_initial
    second |= set(range(first_wave, 2 * first_wave))
    assert next(finished) is growths[0]
    assert len(growths[1].tree) == 1
    assert next(finished) is growths[1]


def test_a_tree_needs_two_waves():
    sampler = WaveSampler(eos_bias=-2.5)
    settings = DeepSearchSearch(chunk_tokens=2, num_generations=8)
    trees = grow_trees(settings, sampler=sampler, trees=16)
    assert sum(len(tree.leaves()) == 8 for tree in trees) > 12
    assert sampler.waves <= 3


def test_every_generated_token_lies_on_a_kept_leaf():
    def generated_and_kept(settings):
        trees = grow_trees(settings, sampler=FakeSampler(eos_bias=-2.0), trees=6)
        kept = 0
        for tree in trees:
            rows = [u for u in tree.leaves().tolist() if tree.nodes.selected[u]]
            kept += len({i for u in rows for i in tree.path_index(u)[tree.n_prompt :].tolist()})
        return sum(tree.n_generated for tree in trees), kept

    generated, kept = generated_and_kept(DeepSearchSearch(chunk_tokens=4))
    assert generated == kept
    generated, kept = generated_and_kept(FAITHFUL)
    assert generated > 1.5 * kept  # what the published form throws away


def test_eos_in_the_last_slot_of_a_chunk_ends_the_path():
    sampler = ScriptedSampler(lambda work: [5, 6, 7, EOS])
    (tree,) = grow_trees(FAITHFUL, sampler=sampler, trees=1)
    assert all(len(work.prefix) == len(PROMPT) for work in sampler.works)
    assert (tree.nodes.finish[1:] == Finish.STOP).all()
    assert len(tree.leaves()) == 3
    assert tree.meta["exit"] == "exhausted"


def test_a_full_chunk_without_eos_goes_on():
    sampler = ScriptedSampler(lambda work: letters(work, 4))
    (tree,) = grow_trees(FAITHFUL, sampler=sampler, trees=1)
    leaves = tree.leaves()
    assert {tree.completion_length(u) for u in leaves.tolist()} == {24}
    assert (tree.nodes.finish[leaves] == Finish.LENGTH).all()
    assert tree.nodes.selected[leaves].sum() == 4


@pytest.mark.parametrize(
    "settings", [FAITHFUL, DeepSearchSearch(), CureSearch(only_undecided=False)]
)
def test_short_answers_exhaust_the_frontier(settings):
    sampler = ScriptedSampler(lambda work: [5, EOS])
    trees = grow_trees(settings, sampler=sampler, trees=3)
    assert {tree.meta["exit"] for tree in trees} == {"exhausted"}
    assert all(len(tree.verdicts) == len(tree.leaves()) > 0 for tree in trees)


def test_an_answer_cut_by_the_length_limit_is_judged_by_its_text():
    def verdict(completion):
        assert completion.finish == "length"
        assert len(completion.token_ids) == 24
        return Verdict("scored", 1.0)

    (tree,) = grow_trees(
        FAITHFUL,
        sampler=ScriptedSampler(lambda work: letters(work, 4)),
        trees=1,
        judge=judge_with(verdict),
    )
    assert (tree.nodes.reward[tree.leaves()] == 1.0).all()
    assert tree.nodes.value_sum[ROOT] > 0


def test_an_expansion_of_terminal_chunks_only():
    # The root's chunks go on, theirs all end: the search must return to the root's other chunks.
    def answer(work):
        return letters(work, 4) if len(work.prefix) == len(PROMPT) else [5, EOS]

    (tree,) = grow_trees(FAITHFUL, sampler=ScriptedSampler(answer), trees=1)
    assert tree.meta["exit"] == "exhausted"
    assert len(tree.leaves()) == 9
    assert tree.nodes.selected[tree.leaves()].sum() == 3


def test_ties_do_not_always_fall_on_child_0():
    # No answer ends in its first chunk: the first choice is among fresh siblings, which all tie.
    sampler = ScriptedSampler(
        lambda work: letters(work, 4) if len(work.prefix) < 11 else [*letters(work, 3), EOS]
    )
    followed = set()
    for tree in grow_trees(FAITHFUL, sampler=sampler, trees=20):
        parent = int(tree.nodes.parent[4])  # rows 1 to 3 are the root's chunks
        followed.add(int(tree.draws.k[tree.nodes.draw[parent]]))
    assert followed == {0, 1, 2}


def test_the_search_does_not_stay_below_the_first_solution():
    # The first of two rollouts is right, and so is what branches from it: F prefers its points, deepest first.
    def most_leaves_below_one_rollout(max_share):
        settings = DeepSearchSearch(
            chunk_tokens=2, num_generations=12, num_initial=2, max_share=max_share
        )
        sampler = ScriptedSampler(lambda work: [*letters(work, 24 + 3 - len(work.prefix) - 1), EOS])
        (tree,) = grow_trees(
            settings,
            sampler=sampler,
            trees=1,
            judge=judge_with(lambda c: Verdict("scored", float(c.token_ids[0] == right))),
        )
        tops = [int(tree.nodes.draw[tree.path(u)[1]]) for u in tree.leaves().tolist()]
        return max(tops.count(top) for top in tops)

    first = Tree(PROMPT, seed=0, max_completion_length=24).request(ROOT, 2)
    (right, other) = (int(generator("letters", seed).integers(2, 12, 1)[0]) for seed in first.seeds)
    assert right != other
    assert most_leaves_below_one_rollout(1.0) > 8
    assert most_leaves_below_one_rollout(0.5) == 6


def test_keeping_every_leaf_keeps_the_success_rate():
    def success(settings):
        trees = grow_trees(
            settings,
            trees=60,
            sampler=ScriptedSampler(lambda work: [*letters(work, 3), EOS]),
            judge=judge_with(lambda c: Verdict("scored", float(c.token_ids[-2] < 5))),
        )
        rewards = [t.nodes.reward[t.leaves()][t.nodes.selected[t.leaves()]] for t in trees]
        return np.concatenate(rewards).mean()

    # The last letter is 2, 3 or 4 of ten: true success .3.
    assert success(DeepSearchSearch(chunk_tokens=1)) == pytest.approx(0.3, abs=0.06)
    faithful = DeepSearchSearch(
        form="faithful", chunk_tokens=2, width=3, max_depth=4, num_generations=3
    )
    assert success(faithful) > 0.5


@pytest.mark.parametrize("settings", [FAITHFUL, DeepSearchSearch(chunk_tokens=2)])
def test_all_wrong_trees_have_no_positive_score(settings):
    trees = grow_trees(
        settings, sampler=FakeSampler(eos_bias=-2.0), trees=5, judge=judge_with(wrong)
    )
    for tree in trees:
        assert (tree.nodes.value_sum <= 0).all()
        assert tree.nodes.value_sum[ROOT] < 0
