"""A run that trains a LoRA adapter, with the command line."""

import pytest
from transformers import AutoModelForCausalLM

from tests.support_engine import sets, treerl
from treerl.metrics import read_metrics
from treerl.policy.checkpoint import latest

pytest.importorskip("peft")

LORA = (
    "policy.lora.r=4",
    "update.lr=2e-3",
    "update.lr_schedule=constant",
    "run.checkpoint_every=1",
    "replay.max_cached=0",
)


def test_a_run_trains_its_adapter_and_resumes_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = treerl("train", "quickstart", *sets(*LORA, "run.name=whole"), "--json").json
    treerl("train", "quickstart", *sets(*LORA, "run.name=parts", "max_steps=2"), "--json")
    again = treerl("train", "--resume", "runs/parts", "--set", "max_steps=3", "--json").json
    assert again["after"] == whole["after"]
    rows = [read_metrics(tmp_path / "runs" / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert [row["loss"] for row in rows[0][1:]] == [row["loss"] for row in rows[1][1:]]
    saved = latest(tmp_path / "runs" / "whole" / "checkpoints")
    assert not (saved.path / "model.safetensors").exists()
    assert AutoModelForCausalLM.from_pretrained(saved.path).num_parameters() > 397_344
