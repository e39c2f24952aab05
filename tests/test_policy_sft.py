"""Supervised fine-tuning: loss on completions only, batching that changes nothing, seeded order."""

import numpy as np
import pytest
import torch

from tests.support_policy import VOCABULARY, tiny_llama
from tests.support_update import plain_model, use_exact_norm, worst
from treerl.errors import DataError, UpdateError
from treerl.policy.sft import SftSettings, flat_batches, sft


def examples(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (
            rng.integers(3, VOCABULARY, rng.integers(1, 6)),
            rng.integers(3, VOCABULARY, rng.integers(1, 9)),
        )
        for _ in range(count)
    ]


def weights(policy):
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def test_batches_hold_one_example_a_row_within_the_budget():
    batches = flat_batches([([1], [2, 3]), ([4, 5, 6], [7]), ([8], [9])], max_tokens=8)
    assert [batch.shape for batch in batches] == [(2, 4), (1, 2)]
    first = batches[0]
    assert first.token.tolist() == [[4, 5, 6, 7], [1, 2, 3, 0]]
    assert first.own.tolist() == [[False, False, False, True], [False, True, True, False]]
    assert first.prev.tolist() == [[-1, 0, 1, 2], [-1, 4, 5, -1]]
    assert first.end.tolist() == [[4, 4, 4, 4], [3, 3, 3, 4]]


def test_one_step_equals_a_plain_token_mean_over_completions(monkeypatch):
    use_exact_norm(monkeypatch)
    policy = tiny_llama(torch.float64)
    model = plain_model(policy)
    data = examples(6)
    settings = SftSettings(lr=1e-2, batch_size=6, warmup_steps=0, lr_floor=1.0, grad_clip=1e9)
    report = sft(policy, data, settings)

    total, count = 0.0, 0
    for prompt, completion in data:
        token = torch.tensor([[*prompt, *completion]])
        logp = torch.log_softmax(model(input_ids=token, use_cache=False).logits[0, :-1], -1)
        lp = logp.gather(1, token[0, 1:, None])[len(prompt) - 1 :]
        total, count = total - lp.sum(), count + len(completion)
    (total / count).backward()
    torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0).step()
    assert report.losses == pytest.approx([total.item() / count])
    assert worst(policy.model.state_dict(), model.state_dict()) < 1e-9


def test_micro_batches_change_nothing(monkeypatch):
    use_exact_norm(monkeypatch)
    data = examples(10)
    whole, split = tiny_llama(torch.float64), tiny_llama(torch.float64)
    a = sft(whole, data, SftSettings(batch_size=5, epochs=2))
    b = sft(split, data, SftSettings(batch_size=5, epochs=2, max_tokens_per_microbatch=20))
    assert a.losses == pytest.approx(b.losses, rel=1e-9)
    assert worst(whole.model.state_dict(), split.model.state_dict()) < 1e-7


def test_the_order_depends_on_the_seed_alone():
    data = examples(12)
    settings = SftSettings(batch_size=4, epochs=2)
    first, again, other = tiny_llama(), tiny_llama(), tiny_llama()
    a = sft(first, data, settings)
    torch.manual_seed(99)
    assert sft(again, data, settings) == a
    assert worst(weights(again), weights(first)) == 0
    assert sft(other, data, SftSettings(batch_size=4, epochs=2, seed=1)).losses != a.losses


def test_memorises_a_few_examples_and_reports_progress():
    policy = tiny_llama()
    seen = []
    settings = SftSettings(lr=1e-2, epochs=25, batch_size=4, warmup_steps=5)
    report = sft(policy, examples(4), settings, progress=seen.append)
    assert report.losses[-1] < 0.2 < report.losses[0]
    assert [p.step for p in seen] == list(range(1, 26))
    assert seen[-1].total == 25
    assert seen[-1].tokens == report.tokens == 25 * sum(len(p) + len(c) for p, c in examples(4))


def test_max_steps_stops_early():
    report = sft(tiny_llama(), examples(9), SftSettings(batch_size=2, epochs=3, max_steps=4))
    assert len(report.losses) == 4


def test_long_examples_are_left_out_and_counted():
    data = [([1, 2], [3] * 30), ([1], [2, 3])]
    report = sft(tiny_llama(), data, SftSettings(max_length=16))
    assert (report.examples, report.too_long) == (1, 1)


def test_nothing_to_train_on_is_a_data_error():
    with pytest.raises(DataError, match=r"no example to train on \(1 were longer than 4"):
        sft(tiny_llama(), [([1], [2] * 9)], SftSettings(max_length=4))
    with pytest.raises(DataError, match="example 2 has an empty"):
        sft(tiny_llama(), [([1], [2]), ([1], [])], SftSettings())


def test_a_loss_that_is_not_finite_stops_before_the_step():
    policy = tiny_llama()
    with torch.no_grad():
        policy.model.model.norm.weight[0] = torch.nan
    before = weights(policy)
    with pytest.raises(UpdateError, match="loss is nan at step 1"):
        sft(policy, examples(3), SftSettings())
    after = weights(policy)
    assert all(torch.equal(before[k], after[k]) or before[k].isnan().any() for k in before)
