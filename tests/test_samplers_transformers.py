"""TransformersSampler beyond the conformance suite: encoding once, reuse, weights, contexts, architectures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.support_sampler_conformance import Subject, compare_columns, drained, prefixed, run
from tests.support_samplers import CONTEXT, MODELS, STOP, gpt2, llama, make_sampler
from treerl.config import SamplerSettings
from treerl.errors import SamplerError
from treerl.samplers.transformers import TransformersSampler
from treerl.search.sampler import Continuation, Finish


def subject_of(model: Any) -> Subject:
    def logits(prefix: Sequence[int]) -> np.ndarray:
        ids = torch.tensor([[int(token) for token in prefix]])
        with torch.no_grad():
            return model(input_ids=ids).logits[0, -1].double().numpy()

    make = lambda settings: make_sampler(model, settings)  # noqa: E731
    return Subject(make, logits, range(2, 17), frozenset([STOP]), CONTEXT)


def ragged(count: int, max_tokens: int = 15) -> list[Continuation]:
    rng = np.random.default_rng(1)
    return [
        prefixed(rng.integers(2, 17, size=rng.integers(1, 25)), seed, max_tokens)
        for seed in range(count)
    ]


@pytest.mark.parametrize("name", ["windowed", "capped", "eager"])
def test_other_attentions_draw_from_their_own_distribution(name: str) -> None:
    model = MODELS[name]()
    compare_columns(subject_of(model), SamplerSettings(), ragged(8))


def test_equal_prefixes_are_encoded_once() -> None:
    sampler = make_sampler(MODELS["llama"]())
    run(sampler, [prefixed([2, 3, 4, 5], seed, 3) for seed in range(10)])
    # Three tokens once; the fourth in each row's first step.
    assert sampler.stats["prefill_tokens"] == 3 + 10
    assert sampler.stats["reused_tokens"] == 9 * 3


def test_a_branch_is_not_encoded_again() -> None:
    sampler = make_sampler(MODELS["grouped"]())
    trunk = prefixed([2, 3, 4, 5], 0, 12)
    (span,) = run(sampler, [trunk])
    branch = [*trunk.prefix, *span.tokens[:-1]]
    before = sampler.stats["prefill_tokens"]
    run(sampler, [prefixed(branch, seed, 4) for seed in range(3)])
    assert sampler.stats["prefill_tokens"] - before == 3
    off = make_sampler(MODELS["grouped"](), reuse_bytes=0)
    run(off, [trunk])
    run(off, [prefixed(branch, 0, 4)])
    assert off.stats["reused_tokens"] == 0


def test_reuse_gives_the_same_as_encoding() -> None:
    model = MODELS["gpt2"]()
    spans = []
    for reuse_bytes in (0, 20_000, 1 << 20):
        sampler = make_sampler(model, reuse_bytes=reuse_bytes)
        work = ragged(20)
        first = run(sampler, work)
        paths = [[*w.prefix, *s.tokens[:-1]] for w, s in zip(work, first, strict=True)]
        spans.append(run(sampler, [prefixed(path, 7, 10) for path in paths]))
    for one, other, third in zip(*spans, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist() == third.tokens.tolist()
        np.testing.assert_allclose(one.logprobs, third.logprobs, atol=1e-4)


def test_reuse_ends_with_the_weights() -> None:
    model = MODELS["llama"]()
    sampler = make_sampler(model)
    trunk = prefixed([2, 3, 4, 5], 0, 12)
    (span,) = run(sampler, [trunk])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    sampler.set_version(1)
    work = [prefixed([*trunk.prefix, *span.tokens[:-1]], 3, 8)]
    (fresh,) = run(make_sampler(model), work)
    (after,) = run(sampler, work)
    assert after.policy_version == 1
    assert after.tokens.tolist() == fresh.tokens.tolist()
    np.testing.assert_allclose(after.logprobs, fresh.logprobs, atol=1e-5)


def test_new_weights_cut_what_is_under_way() -> None:
    sampler = make_sampler(llama_without_stop())
    lengths = [2, 6, 6, 9]
    for ticket, length in enumerate(lengths):
        sampler.submit(ticket, prefixed([2, 3], ticket, length, last=True))
    assert [ticket for ticket, _ in sampler.step()] == [0]
    sampler.submit(4, prefixed([2, 3], 4, 5, last=True))
    sampler.set_version(7)
    spans = dict(drained(sampler, 4))
    for ticket in (1, 2, 3):
        assert spans[ticket].finish == Finish.CUT
        assert spans[ticket].policy_version == 0
        assert len(spans[ticket].tokens) == 2
    assert spans[4].finish == Finish.LENGTH
    assert spans[4].policy_version == 7


def test_tokens_of_aborted_rows_are_counted_as_discarded() -> None:
    sampler = make_sampler(llama_without_stop())
    for ticket, length in enumerate([2, 6, 6, 9]):
        sampler.submit(ticket, prefixed([2, 3], ticket, length, last=True))
    sampler.step()
    sampler.set_version(1)  # rows 1 to 3 end with two tokens each, to be handed out
    sampler.abort([2, 3])
    assert [ticket for ticket, _ in drained(sampler, 1)] == [1]
    for ticket, length in enumerate([3, 8], start=4):
        sampler.submit(ticket, prefixed([2, 3], ticket, length, last=True))
    sampler.step()
    sampler.abort([5])
    assert sampler.stats["generated_tokens"] == 2 + 2 + 3
    assert sampler.stats["discarded_tokens"] == 2 + 2 + 3


def test_nan_weights_are_named_and_the_sampler_recovers() -> None:
    model = MODELS["llama"]()
    sampler = make_sampler(model, version=3)
    weight = model.model.layers[1].mlp.down_proj.weight
    good = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = torch.nan
    sampler.submit(5, prefixed([2, 3], 0, 4))
    with pytest.raises(SamplerError, match=r"NaN at token 0 of ticket 5 .* weights version 3"):
        sampler.step()
    with torch.no_grad():
        weight.copy_(good)
    sampler.set_version(4)
    work = ragged(6)
    for one, other in zip(run(sampler, work), run(make_sampler(model), work), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()


def test_prefix_and_max_tokens_must_fit_the_context() -> None:
    sampler = make_sampler(gpt2(n_positions=10))
    with pytest.raises(SamplerError, match=r"max_tokens = 8 exceed the model's context of 10"):
        sampler.submit(0, prefixed([2, 3, 4], 0, 8))
    sampler.submit(0, prefixed([2, 3, 4], 0, 7))
    assert len(drained(sampler, 1)) == 1


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(SamplerError, match="vocabulary of 17"):
        make_sampler(MODELS["llama"]()).submit(0, prefixed([2, 17], 0, 1))


def test_recurrent_layers_are_refused() -> None:
    model = MODELS["llama"]()
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(SamplerError, match="linear_attention"):
        make_sampler(model)


def test_more_work_than_rows() -> None:
    model, work = MODELS["llama"](), ragged(23)
    few = run(make_sampler(model, SamplerSettings(max_batch=4)), work)
    for one, other in zip(few, run(make_sampler(model), work), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()


def test_columns_are_shifted_when_used_up() -> None:
    # Rows join and leave for more steps than one allocation of columns has.
    model = llama_without_stop()
    sampler = make_sampler(model, SamplerSettings(max_batch=3))
    work = [prefixed([2, 3, 4 + seed % 5], seed, 20 + seed % 3) for seed in range(30)]
    spans = run(sampler, work)
    alone = make_sampler(model, reuse_bytes=0)
    for item, span in list(zip(work, spans, strict=True))[-4:]:
        assert span.tokens.tolist() == run(alone, [item])[0].tokens.tolist()


def test_model_is_left_as_it_was() -> None:
    model = MODELS["gpt2"]()
    model.transformer.drop.p = 0.5
    model.train()
    before = model.config._attn_implementation
    spans = [run(make_sampler(model), ragged(4)) for _ in range(2)]
    assert model.training
    assert model.config._attn_implementation == before
    # In training mode, dropout would have made these differ.
    for one, other in zip(*spans, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()


def test_bfloat16_runs() -> None:
    model = MODELS["grouped"]().to(torch.bfloat16)
    for span in run(make_sampler(model), ragged(6)):
        assert np.isfinite(span.logprobs).all()
        assert np.isfinite(span.entropies).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_from_the_same_distribution() -> None:
    model = MODELS["grouped"]().cuda()
    sampler = TransformersSampler(
        model,
        settings=SamplerSettings(),
        stop_token_ids=[STOP],
        pad_token_id=0,
        device="cuda",
    )
    work = ragged(20)
    on_cpu = run(make_sampler(MODELS["grouped"]()), work)
    for one, other in zip(run(sampler, work), on_cpu, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-3)


def test_several_tokens_between_looks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a device does: rows that stopped go on unseen for a few tokens.
    model, work = MODELS["llama"](), ragged(25)
    plain = run(make_sampler(model), work)
    sampler = make_sampler(model)
    monkeypatch.setattr(sampler, "_look_every", 8)
    for one, other in zip(run(sampler, work), plain, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.finish == other.finish
    paths = [[*w.prefix, *s.tokens[:-1]] for w, s in zip(work, plain, strict=True)]
    compare_columns(
        subject_of(model), SamplerSettings(), [prefixed(p, 3, 3) for p in paths], sampler
    )
    assert sampler.stats["reused_tokens"] > 100


def test_an_interrupted_step_leaves_a_sampler_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    model, work = MODELS["llama"](), ragged(6)
    sampler = make_sampler(model)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    for ticket, item in enumerate(work):
        sampler.submit(ticket, item)
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "_check", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sampler.step()
    assert sampler.step() == []
    for one, other in zip(run(sampler, work), run(make_sampler(model), work), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()


def llama_without_stop() -> Any:
    torch.manual_seed(5)
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[STOP] = 0
    model.lm_head.bias = torch.nn.Parameter(
        torch.zeros(17).index_fill(0, torch.tensor([STOP]), -99.0)
    )
    return model.eval()
