"""Defects of CURE's released code; the table is in test_search_defects."""

from tests.support_search import (
    EOS,
    PROBLEM,
    PROMPT,
    FakeSampler,
    ScriptedSampler,
    decode_text,
    decode_tokens,
    grow_trees,
    judge_with,
)
from treerl.canon import generator
from treerl.config import CureSearch, EntropyTopK
from treerl.search.sampler import Finish, Origin
from treerl.search.scheduler import Growth, grow
from treerl.search.strategy import make_strategy
from treerl.search.tree import Tree
from treerl.verifiers.verdict import Verdict


def wrong(completion):
    return Verdict("scored", 0.0)


def letters(work, count):
    """`count` letters that depend on the seed."""
    return generator("letters", work.seed).integers(2, 12, count).tolist()


def late_entropy_tree(settings, judge=None):
    """Answers of 20 letters whose only high entropy is at position 17."""

    class Late(ScriptedSampler):
        def _draw(self, work):
            drawn = super()._draw(work)
            drawn.entropies[:] = 0.1
            position = 17 + len(PROMPT) - len(work.prefix)
            drawn.entropies[position] = 3.0
            return drawn

    sampler = Late(lambda work: letters(work, 30))
    (tree,) = grow_trees(settings, sampler=sampler, trees=1, max_completion_length=20, judge=judge)
    return tree, sampler


TOP_1 = CureSearch(cut=EntropyTopK(top_k=1, min_characters=1), only_undecided=False)


def test_a_late_branch_point_keeps_its_whole_prefix():
    tree, sampler = late_entropy_tree(TOP_1)
    branches = [work for work in sampler.works if len(work.prefix) > len(PROMPT)]
    assert len(branches) == 12
    rollouts = [tree.path_tokens(u)[: len(PROMPT) + 17].tolist() for u in tree.leaves().tolist()]
    for work in branches:
        assert len(work.prefix) == len(PROMPT) + 17
        assert work.prefix.tolist() in rollouts


def test_one_length_limit_on_the_full_text():
    tree, sampler = late_entropy_tree(TOP_1)
    assert {tree.completion_length(u) for u in tree.leaves().tolist()} == {20}
    assert {w.max_tokens for w in sampler.works} == {20, 3}
    assert all(w.last for w in sampler.works)
    assert (tree.nodes.finish[tree.leaves()] == Finish.LENGTH).all()


def test_the_judge_sees_the_full_text_of_a_branch():
    lengths = []

    def verdict(completion):
        lengths.append(len(completion.token_ids))
        assert completion.text == decode_text(completion.token_ids)
        return Verdict("scored", 1.0)

    late_entropy_tree(TOP_1, judge_with(verdict))
    assert lengths == [20] * 16


def test_the_critical_token_is_drawn_again():
    tree, _ = late_entropy_tree(TOP_1)
    for row in range(len(tree)):
        if tree.nodes.origin[row] == Origin.ENTROPY:
            assert tree.tokens.entropy[tree.nodes.start[row]] == 3.0
            assert tree.nodes.offset[row] == len(PROMPT) + 17
    # 4 rollouts of 20 and 12 branches of 3: no prefix token is there twice.
    assert tree.n_generated == 4 * 20 + 12 * 3 == len(tree.tokens) - len(PROMPT)


def test_decided_prompts_are_not_branched():
    tree, sampler = late_entropy_tree(
        TOP_1.model_copy(update={"only_undecided": True}), judge_with(wrong)
    )
    assert tree.meta["exit"] == "decided"
    assert len(sampler.works) == 4


def test_no_candidate_no_branch():
    sampler = ScriptedSampler(lambda work: [2, 3, 4, EOS])  # one letter a token
    settings = CureSearch(cut=EntropyTopK(min_characters=2), only_undecided=False)
    (tree,) = grow_trees(settings, sampler=sampler, trees=1)
    assert tree.meta["exit"] == "exhausted"
    assert len(tree) == 5


def test_token_texts_are_read_once_an_id():
    asked = []

    def decode(ids):
        asked.append(list(ids))
        return decode_tokens(ids)

    strategy = make_strategy(CureSearch(only_undecided=False), decode)
    growths = [
        Growth(Tree(PROMPT, seed=seed, max_completion_length=24), strategy, PROBLEM)
        for seed in range(6)
    ]
    list(grow(growths, FakeSampler(eos_bias=-2.5), judge_with(), decode_text))
    ids = [i for call in asked for i in call]
    assert len(ids) == len(set(ids))
    assert len(asked) < 12
