"""A tiny trainer that saves checkpoints, and a child process that is killed while it saves.

`python -m tests.support_checkpoint FOLDER` forks one child for each time that a save touches a file; the child
kills itself with SIGKILL right before. It prints [status of the child, step of the latest checkpoint left].
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from treerl.config import UpdateSettings
from treerl.policy.checkpoint import latest, save_checkpoint
from treerl.policy.model import EMBEDDED, Policy, wrap_model
from treerl.policy.optimizer import PolicyOptimizer

TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
"""Audit events of Python's file calls."""


def tiny_policy(dtype: torch.dtype = torch.float32, seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    return wrap_model(LlamaForCausalLM(config).to(dtype), tokenizer, name="tiny")


def make_optimizer(policy: Policy) -> PolicyOptimizer:
    return PolicyOptimizer(policy.model, UpdateSettings(lr=1e-2, weight_decay=0.1, warmup_steps=3))


def train(policy: Policy, optimizer: PolicyOptimizer, steps: int) -> None:
    """Steps on gradients that depend on the weights and on torch's random numbers."""
    for _ in range(steps):
        token = torch.randint(0, 32, (2, 9))
        policy.model(input_ids=token, labels=token, use_cache=False).loss.backward()
        optimizer.step()


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def die_at(folder: Path, number: int) -> None:
    """Kills this process right before it opens, makes, renames or removes the `number`-th entry of `folder`."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in TOUCHES and str(arguments[0]).startswith(str(folder)):
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(hook)


def save_killed(folder: Path, policy: Policy, optimizer: PolicyOptimizer, number: int) -> int:
    """Status of a child that saves step 2, keeping it alone, and dies at touch `number`."""
    child = os.fork()
    if child == 0:
        die_at(folder, number)
        save_checkpoint(folder, policy, optimizer, step=2, state={}, keep=1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def kill_at_every_touch(folder: Path) -> None:
    torch.set_num_threads(1)
    policy = tiny_policy()
    optimizer = make_optimizer(policy)
    train(policy, optimizer, 1)
    start = folder / "start"
    save_checkpoint(start, policy, optimizer, step=1, state={})
    train(policy, optimizer, 1)
    survivors = []
    number, status = 0, 1
    while status:
        trial = folder / f"trial-{number}"
        shutil.copytree(start, trial)
        status = save_killed(trial, policy, optimizer, number)
        found = latest(trial)
        survivors.append([status, found.step if found else None])
        shutil.rmtree(trial)
        number += 1
    print(json.dumps(survivors))


if __name__ == "__main__":
    kill_at_every_touch(Path(sys.argv[1]))
