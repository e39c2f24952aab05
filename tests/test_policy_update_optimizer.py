"""AdamW of the policy: schedules, decay, fp32 masters of half-precision weights."""

import pytest
import torch
from torch import nn

from treerl.config import UpdateSettings
from treerl.policy.optimizer import (
    PolicyOptimizer,
    linear_warmup,
    warmup_cosine,
    warmup_linear,
)


def layer(dtype=torch.float32, value=1.0):
    module = nn.Linear(2, 1).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def push(module, gradient):
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, gradient)


def test_warmup_rises_linearly_and_stays():
    assert [linear_warmup(4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert linear_warmup(0)(0) == 1


def test_cosine_falls_to_its_floor_at_the_last_step():
    factor = warmup_cosine(2, 6, floor=0.1)
    values = [factor(step) for step in range(6)]
    assert values[:2] == [0.5, 1.0]
    assert values[3] == pytest.approx(0.55)
    assert values[5] == pytest.approx(0.1)


def test_learning_rate_of_a_step_follows_the_warmup():
    module = layer()
    optimizer = PolicyOptimizer(module, UpdateSettings(lr=0.1, warmup_steps=2))
    rates = []
    for _ in range(3):
        push(module, 1.0)
        rates.append(optimizer.step().lr)
    assert rates == pytest.approx([0.05, 0.1, 0.1])
    # Adam moves by lr a step while the gradient stays the same.
    assert module.weight.flatten().tolist() == pytest.approx([0.75, 0.75], abs=1e-5)


def test_only_matrices_decay():
    module = layer()
    optimizer = PolicyOptimizer(module, UpdateSettings(lr=0.1, weight_decay=0.5))
    push(module, 0.0)
    optimizer.step()
    assert module.weight.flatten().tolist() == pytest.approx([0.95, 0.95])
    assert module.bias.item() == 1


def test_gradients_are_clipped_to_their_global_norm():
    module = layer()
    optimizer = PolicyOptimizer(module, UpdateSettings(grad_clip=0.5))
    push(module, 3.0)
    assert optimizer.step().grad_norm == pytest.approx(3 * 3**0.5)
    moment = optimizer.state_dict()["exp_avg/bias"].item()
    assert moment == pytest.approx(0.1 * 0.5 / 3**0.5, rel=1e-5)


def test_half_precision_weights_collect_small_steps_in_their_master():
    module = layer(torch.bfloat16)
    optimizer = PolicyOptimizer(module, UpdateSettings(lr=1e-3))
    for _ in range(8):
        push(module, 1.0)
        optimizer.step()
    # One step of 1e-3 is below half a bfloat16 step at 1 and would be lost each time.
    assert optimizer.state_dict()["master/bias"].item() == pytest.approx(0.992, abs=1e-6)
    assert module.bias.item() == 0.9921875


def test_half_precision_gradients_add_up_in_fp32():
    module = layer(torch.bfloat16)
    optimizer = PolicyOptimizer(module, UpdateSettings(grad_clip=1e9))
    push(module, 256.0)
    optimizer.collect()
    for _ in range(4):
        push(module, 1.0)
        optimizer.collect()
    assert all(parameter.grad is None for parameter in module.parameters())
    assert optimizer.step().grad_norm == pytest.approx(260 * 3**0.5)


def test_a_restored_optimizer_keeps_its_own_settings():
    module = layer()
    optimizer = PolicyOptimizer(module, UpdateSettings(lr=0.1))
    push(module, 1.0)
    optimizer.step()
    again = PolicyOptimizer(module, UpdateSettings(lr=0.02))
    again.load_state_dict(optimizer.state_dict())
    push(module, 1.0)
    assert again.step().lr == 0.02
    assert again.steps == 2
    assert optimizer.state_dict()["step/bias"].item() == 1


def test_linear_schedule_rises_then_falls_to_zero_behind_the_last_step():
    factors = [warmup_linear(2, 6)(step) for step in range(7)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0])
