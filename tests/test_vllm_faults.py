"""Faults of vLLM's real engine under a search: too little memory, broken weights, death, silence."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.register_assert_rewrite("tests.support_sampler_conformance")

from tests.support_search import PROBLEM, check_invariants, decode_tokens, judge_with  # noqa: E402
from tests.support_vllm import (  # noqa: E402
    CONTEXT,
    NEEDS_VLLM,
    VOCABULARY,
    make_engine,
    make_vllm_sampler,
    tiny_llama,
)
from treerl.config import CureSearch, DeepSearchSearch, EntropyTopK, FlatSearch, SearchSettings  # noqa: E402
from treerl.errors import SamplerError  # noqa: E402
from treerl.samplers.vllm_engine import VllmEngine  # noqa: E402
from treerl.search.sampler import Finish, Origin, Sampler  # noqa: E402
from treerl.search.scheduler import Counts, Growth, Limits, grow  # noqa: E402
from treerl.search.strategy import make_strategy  # noqa: E402
from treerl.search.tree import Tree  # noqa: E402

pytestmark = NEEDS_VLLM

BLOCKS = 8
"""The whole cache: 256 tokens, two of the longest paths."""


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama()


@pytest.fixture(scope="module")
def engine(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    folder = tmp_path_factory.mktemp("engine")
    with make_engine(model, folder, num_gpu_blocks_override=BLOCKS) as opened:
        yield opened


def growths(
    count: int, settings: SearchSettings, *, prompt: int = 20, length: int = 100
) -> list[Growth]:
    strategy = make_strategy(settings, lambda ids: ["x"] * len(ids))
    rng = np.random.default_rng(prompt)
    prompts = rng.integers(2, VOCABULARY, (count, prompt), dtype=np.int32)
    return [
        Growth(Tree(tokens, seed=seed, max_completion_length=length), strategy, PROBLEM)
        for seed, tokens in enumerate(prompts)
    ]


def grown(trees: list[Growth], sampler: Sampler, **limits: Any) -> Counts:
    counts = Counts()
    decode = lambda ids: "".join(decode_tokens([i % 12 for i in ids]))  # noqa: E731
    finished = list(grow(trees, sampler, judge_with(), decode, counts, limits=Limits(**limits)))
    assert len(finished) == len(trees)
    for one in trees:
        check_invariants(one.tree)
    return counts


@pytest.mark.parametrize(
    "settings",
    [
        FlatSearch(num_generations=8),
        CureSearch(num_branches=1, num_generations=8, cut=EntropyTopK(min_characters=1)),
        DeepSearchSearch(chunk_tokens=16, num_generations=8),
    ],
    ids=lambda settings: settings.kind,
)
def test_a_search_goes_on_where_the_cache_holds_two_of_its_sixty_paths(
    engine: VllmEngine, model: Any, settings: SearchSettings
):
    trees = growths(8, settings)
    sampler = make_vllm_sampler(engine, model)
    counts = grown(trees, sampler)
    assert counts.exits.keys() <= {"done", "decided", "exhausted"}
    drawn = sum(one.tree.n_generated for one in trees)
    assert drawn == counts.generated_tokens == sampler.stats["generated_tokens"] > 256
    assert sampler.stats["discarded_tokens"] == 0


def test_an_engine_whose_cache_cannot_hold_one_path_is_refused(model: Any, tmp_path):
    with pytest.raises(SamplerError, match="kv_cache_gib"):
        make_engine(model, tmp_path, num_gpu_blocks_override=3)


def test_a_prompt_that_does_not_fit_ends_its_tree_alone(engine: VllmEngine, model: Any):
    trees = growths(2, FlatSearch(num_generations=4))
    trees[1:1] = growths(1, FlatSearch(num_generations=4), prompt=CONTEXT - 90)
    counts = grown(trees, make_vllm_sampler(engine, model))
    assert [one.tree.meta["exit"] for one in trees] == ["done", "too_long", "done"]
    assert counts.judged == 8


def test_broken_weights_stop_the_search_and_good_ones_finish_it(engine: VllmEngine, model: Any):
    def put(value: float) -> None:
        def change(worker: Any) -> None:
            norm = worker.model_runner.get_model().model.norm
            norm.weight.data.fill_(value)

        engine.rpc(change)

    trees = growths(3, FlatSearch(num_generations=4))
    sampler = make_vllm_sampler(engine, model)
    put(torch.nan)
    with pytest.raises(SamplerError, match="logits are NaN"):
        grown(trees, sampler)
    assert {one.tree.meta["exit"] for one in trees} == {"interrupted"}
    assert not engine.busy
    put(1.0)
    assert grown(trees, make_vllm_sampler(engine, model)).exits == {"done": 3}


def test_an_engine_that_fails_in_a_step_stops_the_search_and_says_so(
    engine: VllmEngine, model: Any, monkeypatch: pytest.MonkeyPatch
):
    trees = growths(3, FlatSearch(num_generations=4))

    def execute(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Engine core died")

    with monkeypatch.context() as patch:
        patch.setattr(
            engine.llm_engine.engine_core.engine_core.model_executor, "execute_model", execute
        )
        with pytest.raises(SamplerError, match=r"vLLM's engine failed: .*Engine core died"):
            grown(trees, make_vllm_sampler(engine, model))
    for one in trees:
        check_invariants(one.tree)
        assert one.tree.meta["exit"] == "interrupted"


def test_what_the_engine_gives_up_goes_on_or_ends_its_tree_alone(
    engine: VllmEngine, model: Any, monkeypatch: pytest.MonkeyPatch
):
    """The first result is an error behind two tokens, the second an error without any."""
    step, left = engine.llm_engine.step, [2, 0]

    def failing() -> Any:
        outputs = step()
        for output in outputs:
            if left and len(output.outputs[0].token_ids) >= left[0]:
                kept, result = left.pop(0), output.outputs[0]
                result.token_ids = list(result.token_ids)[:kept]
                result.logprobs = list(result.logprobs)[:kept] or None
                result.finish_reason = "error"
        return outputs

    monkeypatch.setattr(engine.llm_engine, "step", failing)
    trees = growths(3, FlatSearch(num_generations=4))
    assert grown(trees, make_vllm_sampler(engine, model)).exits == {"done": 2, "failed": 1}
    nodes = [one.tree.nodes for one in trees]
    assert sum(int((n.origin == Origin.EXTEND).sum()) for n in nodes) <= 1
    assert sum(int((n.finish == Finish.CUT).sum()) for n in nodes) == 1


def test_requests_that_never_return_end_their_trees_and_are_counted(
    model: Any, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    with make_engine(model, tmp_path) as engine:
        trees = growths(2, FlatSearch(num_generations=4))
        sampler = make_vllm_sampler(engine, model)
        step, steps = engine.llm_engine.step, 0

        def silent() -> Any:
            nonlocal steps
            steps += 1
            return step() if steps <= 3 else []

        monkeypatch.setattr(engine.llm_engine, "step", silent)
        counts = grown(trees, sampler, request_s=6)
        assert counts.exits == {"timeout": 2}
        assert not engine.busy
        assert counts.continuations < 8
        assert sampler.stats["discarded_tokens"] == 3 * (8 - counts.continuations)
        monkeypatch.setattr(engine.llm_engine, "step", step)
        again = growths(2, FlatSearch(num_generations=4))
        assert grown(again, sampler).exits == {"done": 2}
