"""vLLM's real engine: what it leaves of this process, interruptions, agreement with transformers."""

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

pytest.register_assert_rewrite("tests.support_sampler_conformance")

from tests.support_sampler_conformance import (  # noqa: E402
    compare_columns,
    drained,
    prefixed,
    run,
)
from tests.support_search import canonical, grow_trees  # noqa: E402
from tests.support_vllm import (  # noqa: E402
    CONTEXT,
    NEEDS_VLLM,
    STOP,
    make_engine,
    make_vllm_sampler,
    tiny_llama,
    vllm_subject,
)
from treerl.config import (  # noqa: E402
    CureSearch,
    DeepSearchSearch,
    EngineSettings,
    EntropyTopK,
    FlatSearch,
    SamplerSettings,
    SearchSettings,
)
from treerl.errors import SamplerError  # noqa: E402
from treerl.samplers.transformers import TransformersSampler  # noqa: E402
from treerl.samplers.vllm_engine import Drawing, VllmEngine  # noqa: E402
from treerl.search.sampler import Finish, Span  # noqa: E402

pytestmark = NEEDS_VLLM

LETTERS = 12
GREEDY = SamplerSettings(temperature=0.0)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(vocab_size=LETTERS)


@pytest.fixture(scope="module")
def disturbed() -> dict[str, Any]:
    """What the start of an engine and ten steps of it changed in this process; filled by `engine`."""
    return {}


@pytest.fixture(scope="module")
def engine(
    model: Any, disturbed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmEngine]:
    before = process_state()
    with make_engine(model, tmp_path_factory.mktemp("model")) as engine:
        run(make_vllm_sampler(engine, model), [prefixed([2, 3], 1, 10)])
        after = process_state()
        disturbed |= {
            name: (before[name], after[name]) for name in before if before[name] != after[name]
        }
        yield engine


def process_state() -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "PYTEST_"))}
    return {
        "torch threads": torch.get_num_threads(),
        "set_num_threads": torch.set_num_threads,
        "torch random": torch.get_rng_state().tolist(),
        "numpy random": str(np.random.get_state()),
        "random": random.getstate(),
        "environment": environment,
    }


def transformers_sampler(model: Any, settings: SamplerSettings) -> TransformersSampler:
    return TransformersSampler(
        model, settings=settings, stop_token_ids=[STOP], pad_token_id=0, device="cpu"
    )


def test_the_engine_leaves_the_process_as_it_was(engine: VllmEngine, disturbed: dict[str, Any]):
    assert disturbed == {}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


def test_settings_of_two_samplers_hold_side_by_side_on_one_engine(engine: VllmEngine, model: Any):
    subject = vllm_subject(engine, model, range(2, LETTERS), CONTEXT)
    settings = {
        "cold": SamplerSettings(temperature=0.5),
        "hot": SamplerSettings(temperature=1.7, top_k=4),
        "greedy": GREEDY,
    }
    samplers = {name: make_vllm_sampler(engine, model, s) for name, s in settings.items()}
    work = {name: [prefixed([2, 3, letter], 7, 9) for letter in range(2, 8)] for name in settings}
    for name, sampler in samplers.items():
        for ticket, item in enumerate(work[name]):
            sampler.submit(ticket, item)
    # Steps of the first one carry the others' requests along.
    together = {name: dict(drained(sampler, 6)) for name, sampler in samplers.items()}
    for name in ("cold", "hot"):
        compare_columns(subject, settings[name], work[name], Replay(together[name]))
    for span in together["greedy"].values():
        assert span.logprobs.tolist() == [0.0] * len(span.tokens)
        assert span.entropies.min() > 0


class Replay:
    """A sampler that returns spans drawn before."""

    def __init__(self, spans: dict[int, Span]) -> None:
        self.spans = spans

    def submit(self, ticket: int, work: Any) -> None:
        pass

    def step(self) -> list[tuple[int, Span]]:
        spans, self.spans = self.spans, {}
        return list(spans.items())


def test_branches_find_what_their_trunk_left_in_the_cache(engine: VllmEngine, model: Any):
    sampler = make_vllm_sampler(engine, model)
    trunk = [2 + i % 9 for i in range(70)]
    run(sampler, [prefixed(trunk, 0, 1)])
    assert sampler.stats["reused_tokens"] == 0
    run(sampler, [prefixed([*trunk, letter], 0, 1) for letter in range(2, 12)])
    # Ten times two blocks of 32.
    assert sampler.stats["reused_tokens"] == 640
    assert sampler.stats["prefix_hit_rate"] == pytest.approx(640 / (70 + 710))


def test_what_is_under_way_when_weights_change_is_cut_and_carries_the_old_version(
    engine: VllmEngine, model: Any
):
    sampler = make_vllm_sampler(engine, model)
    whole = run(sampler, [prefixed([2, 3], seed, 60) for seed in range(8)])
    for ticket in range(8):
        sampler.submit(ticket, prefixed([2, 3], ticket, 60))
    for _ in range(3):
        engine.step()
    version = sampler.policy_version
    sampler.set_version(version + 1)
    assert not engine.busy
    spans = dict(sampler.step())
    assert set(spans) == set(range(8))
    for ticket, span in spans.items():
        n = len(span.tokens)
        assert span.policy_version == version
        assert span.tokens.tolist() == whole[ticket].tokens[:n].tolist()
        if n < len(whole[ticket].tokens):
            assert (n, span.finish) == (3, Finish.CUT)
    sampler.set_version(version)


def test_what_had_no_token_yet_when_weights_change_begins_again(engine: VllmEngine, model: Any):
    sampler = make_vllm_sampler(engine, model)
    (whole,) = run(sampler, [prefixed([2, 3], 5, 20)])
    version = sampler.policy_version
    sampler.submit(0, prefixed([2, 3], 5, 20))
    sampler.set_version(version + 1)
    ((ticket, span),) = drained(sampler, 1)
    assert (ticket, span.policy_version) == (0, version + 1)
    assert span.tokens.tolist() == whole.tokens.tolist()
    sampler.set_version(version)


def test_tokens_of_what_is_aborted_are_counted(engine: VllmEngine, model: Any):
    sampler = make_vllm_sampler(engine, model)
    whole = run(sampler, [prefixed([2, 3], seed, 60) for seed in range(20)])
    longest = int(np.argmax([len(span.tokens) for span in whole]))
    assert len(whole[longest].tokens) > 4
    sampler.submit(0, prefixed([2, 3], longest, 60))
    for _ in range(4):
        engine.step()
    sampler.abort([0])
    assert sampler.stats["discarded_tokens"] == 4
    assert sampler.stats["generated_tokens"] == sum(len(span.tokens) for span in whole)


def test_broken_weights_are_told_from_broken_work(tmp_path, model: Any):
    broken = tiny_llama(vocab_size=LETTERS)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with make_engine(broken, tmp_path) as engine:
        sampler = make_vllm_sampler(engine, broken)
        sampler.submit(0, prefixed([2, 3], 5, 20))
        with pytest.raises(SamplerError, match="NaN at token 0"):
            drained(sampler, 1)


def test_an_engine_that_cannot_start_names_the_keys(tmp_path, model: Any):
    model.save_pretrained(tmp_path)
    with pytest.raises(SamplerError, match="kv_cache_gib"):
        VllmEngine(
            tmp_path,
            EngineSettings(kv_cache_gib=1e-5),
            max_length=CONTEXT,
            max_batch=4,
            dtype=torch.float32,
        )


def test_requests_that_vllm_refuses_are_no_crash(engine: VllmEngine):
    with pytest.raises(SamplerError, match="refuses"):
        engine.add("hot", [2, 3], Drawing(max_tokens=3, temperature=9.0))
    assert not engine.busy


# Agreement with the transformers sampler -------------------------------------------------------------------


@pytest.mark.parametrize(
    "search",
    [
        FlatSearch(num_generations=2),
        CureSearch(cut=EntropyTopK(min_characters=1), only_undecided=False),
        DeepSearchSearch(chunk_tokens=4),
    ],
    ids=lambda search: search.kind,
)
def test_greedy_searches_grow_the_same_trees(
    search: SearchSettings, engine: VllmEngine, model: Any
):
    ours = grow_trees(search, sampler=make_vllm_sampler(engine, model, GREEDY), trees=4)
    theirs = grow_trees(search, sampler=transformers_sampler(model, GREEDY), trees=4)
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) > 2
        for row, other in zip(canonical(a), canonical(b), strict=True):
            for rounded in ("logprobs", "entropies", "value_sum"):
                assert row.pop(rounded) == pytest.approx(other.pop(rounded), abs=1e-4)
            assert row == other


def test_sampling_draws_from_the_same_distribution(engine: VllmEngine, model: Any):
    settings, draws = SamplerSettings(temperature=0.8), 3000
    work = [prefixed([2, 5, 3], seed, 8) for seed in range(draws)]
    ours = run(make_vllm_sampler(engine, model, settings), work)
    theirs = run(transformers_sampler(model, settings), work)
    assert chi_square(starts(ours), starts(theirs)) < 4
    assert (
        chi_square(Counter(len(s.tokens) for s in ours), Counter(len(s.tokens) for s in theirs)) < 4
    )
    for column in ("logprobs", "entropies"):
        a, b = (np.array([getattr(s, column).mean() for s in side]) for side in (ours, theirs))
        error = np.sqrt((a.var() + b.var()) / draws)
        assert abs(a.mean() - b.mean()) < 4 * error


def starts(spans: Sequence[Span]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(span.tokens[:2].tolist()) for span in spans)


def chi_square(ours: Counter[Any], theirs: Counter[Any]) -> float:
    """Standard deviations by which two samples of one size differ, over cells of at least five each."""
    cells = [cell for cell in ours | theirs if ours[cell] + theirs[cell] >= 10]
    assert len(cells) >= 5
    value = sum((ours[c] - theirs[c]) ** 2 / (ours[c] + theirs[c]) for c in cells)
    return (value - len(cells)) / float(np.sqrt(2 * len(cells)))
