"""Checkpoints: whole or not there, loadable by transformers, resumed to the bit."""

import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support_checkpoint import make_optimizer, tiny_policy, train, weights
from treerl.config import PolicySettings
from treerl.errors import ConfigError, StoreError
from treerl.policy.checkpoint import MANIFEST, latest, load_checkpoint, save_checkpoint, verify
from treerl.policy.model import load_policy


def saved(folder, *, step=1, dtype=torch.float32, keep=2, state=None, steps=2):
    """A policy and its optimizer after `steps` steps, and the checkpoint of them."""
    policy = tiny_policy(dtype)
    optimizer = make_optimizer(policy)
    train(policy, optimizer, steps)
    path = save_checkpoint(folder, policy, optimizer, step=step, state=state or {}, keep=keep)
    return policy, optimizer, path


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Content


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_resume_restores_weights_and_optimizer_to_the_bit(tmp_path, dtype):
    policy, optimizer, path = saved(tmp_path, dtype=dtype)
    train(policy, optimizer, 3)

    other = tiny_policy(dtype, seed=9)
    again = make_optimizer(other)
    load_checkpoint(path, other, again)
    train(other, again, 3)
    assert same(weights(policy), weights(other))
    assert same(optimizer.state_dict(), again.state_dict())


def test_resume_restores_every_random_number_generator(tmp_path):
    random.seed(5)
    np.random.seed(6)
    policy, optimizer, path = saved(tmp_path)
    np.random.normal()
    random.gauss(0, 1)
    path = save_checkpoint(tmp_path, policy, optimizer, step=2, state={})
    expected = random.gauss(0, 1), np.random.normal(), torch.rand(3).tolist()
    random.seed(0)
    np.random.seed(0)
    load_checkpoint(path, policy, optimizer)
    assert (random.gauss(0, 1), np.random.normal(), torch.rand(3).tolist()) == expected


def test_state_of_the_trainer_comes_back(tmp_path):
    state = {"step": 7, "data": {"epoch": 1, "offset": 40}, "replay": [3, 4], "tokens": 12.5}
    policy, _, path = saved(tmp_path, state=state)
    assert load_checkpoint(path, policy) == state


def test_transformers_and_the_recipe_load_the_folder_as_it_is(tmp_path):
    policy, _, path = saved(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert same(weights(policy), dict(model.state_dict()))
    assert model.config._attn_implementation == "sdpa"
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    again = load_policy(PolicySettings(model=str(path), dtype="float32"))
    assert same(weights(policy), weights(again))


def test_optimizer_state_of_another_model_is_refused(tmp_path):
    _, optimizer, _ = saved(tmp_path)
    policy = tiny_policy()
    policy.model.lm_head.weight = torch.nn.Parameter(torch.zeros(5, 8))
    with pytest.raises(ConfigError, match=r"does not fit parameter lm_head\.weight"):
        make_optimizer(policy).load_state_dict(optimizer.state_dict())


# Which one counts


def test_latest_of_nothing_is_none(tmp_path):
    assert latest(tmp_path / "absent") is None


def test_latest_is_the_newest_and_old_ones_are_removed(tmp_path):
    policy, optimizer, _ = saved(tmp_path, step=9)
    for step in (10, 11):
        save_checkpoint(tmp_path, policy, optimizer, step=step, state={}, keep=2)
    assert latest(tmp_path).step == 11
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "manifest", "half manifest"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, harm):
    policy, optimizer, first = saved(tmp_path, step=1)
    second = save_checkpoint(tmp_path, policy, optimizer, step=2, state={})
    file = second / "model.safetensors"
    data = file.read_bytes()
    match harm:
        case "truncate":
            file.write_bytes(data[:-1])
        case "flip":
            file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "remove":
            (second / "optimizer.safetensors").unlink()
        case "manifest":
            (second / MANIFEST).unlink()
        case _:
            text = (second / MANIFEST).read_text()
            (second / MANIFEST).write_text(text[: len(text) // 2])
    with caplog.at_level(logging.WARNING):
        assert latest(tmp_path).path == first
    assert "step-00000002: damaged checkpoint" in caplog.text


def test_pruning_keeps_whole_checkpoints_and_drops_damaged_ones(tmp_path):
    policy, optimizer, first = saved(tmp_path, step=1)
    second = save_checkpoint(tmp_path, policy, optimizer, step=2, state={})
    (second / "model.safetensors").unlink()
    save_checkpoint(tmp_path, policy, optimizer, step=3, state={}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]
    assert verify(first) is None


def test_the_same_step_again_never_overwrites(tmp_path):
    policy, optimizer, first = saved(tmp_path, step=4)
    second = save_checkpoint(tmp_path, policy, optimizer, step=4, state={"again": True})
    assert first.is_dir()
    assert latest(tmp_path).path == second
    assert load_checkpoint(second, policy) == {"again": True}


# Broken off


def test_sigkill_at_every_touch_of_a_file_leaves_a_whole_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run(
        [sys.executable, "-m", "tests.support_checkpoint", str(folder)],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    *killed, finished = json.loads(run.stdout.splitlines()[-1])
    assert len(killed) > 30
    assert all(status == signal.SIGKILL for status, _ in killed)
    # Before the rename the old one counts, from then on the new one, also while the old one is removed.
    steps = [step for _, step in killed]
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}
    assert finished == [0, 2]


def test_a_file_too_large_for_the_disk_is_a_store_error_and_harms_nothing(tmp_path):
    policy, optimizer, first = saved(tmp_path, step=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(StoreError, match="step-00000001, is intact") as error:
            save_checkpoint(tmp_path, policy, optimizer, step=2, state={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "run.output_dir" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == [first.name]
    assert latest(tmp_path).path == first


def test_a_checkpoint_without_its_files_is_a_store_error(tmp_path):
    policy, optimizer, path = saved(tmp_path)
    shutil.rmtree(path)
    with pytest.raises(StoreError, match="cannot resume from checkpoint"):
        load_checkpoint(path, policy, optimizer)
