"""Weights handed over to vLLM's real engine: served, proved, and every fault found."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.support_engine import sets, treerl
from tests.support_vllm import NEEDS_VLLM, make_engine, make_vllm_sampler, tiny_llama
from treerl.config import SamplerSettings
from treerl.engine.handover import Handover, probe_paths, weights_of
from treerl.errors import HandoverError, SamplerError
from treerl.metrics import read_metrics
from treerl.policy.checkpoint import latest
from treerl.policy.model import wrap_model
from treerl.replay.store import Store
from treerl.samplers.vllm_engine import Drawing, VllmEngine
from treerl.samplers.vllm_transfer import EngineWeights
from treerl.search.sampler import Continuation, Finish, Span
from treerl.search.tree import ROOT, Tree

pytestmark = NEEDS_VLLM

SHAPE = {
    "vocab_size": 101,
    "hidden_size": 128,
    "intermediate_size": 192,
    "tie_word_embeddings": True,
    "attention_bias": True,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A policy with tied embeddings and biases, and an engine that serves it."""
    torch.manual_seed(0)
    policy = wrap_model(tiny_llama(**SHAPE), name="tiny")
    with torch.no_grad():
        for name, value in policy.model.named_parameters():
            if name.endswith("bias"):
                value.normal_(0, 0.1)
    with make_engine(policy.model, tmp_path_factory.mktemp("model")) as engine:
        yield policy, engine


def moved(policy, size=0.05) -> None:
    """An update of every weight."""
    with torch.no_grad():
        for value in policy.model.parameters():
            value.add_(torch.randn_like(value) * size * value.abs().mean())


def handover_of(policy, engine) -> Handover:
    settings = SamplerSettings()
    sampler = make_vllm_sampler(engine, policy.model, settings)
    return Handover(
        policy, sampler, settings, context=engine.max_length, sampler_dtype=torch.float32
    )


def trees(seed=0) -> list[Tree]:
    """Paths of some 70 tokens: two blocks of the cache."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(3):
        tree = Tree(rng.integers(3, 101, 40, dtype=np.int32), seed=index, max_completion_length=80)
        zeros = np.zeros(30, np.float32)
        span = Span(rng.integers(3, 101, 30, dtype=np.int32), zeros, zeros, 0, Finish.STOP)
        tree.append(tree.request(ROOT, 1), 0, span)
        made.append(tree)
    return made


# Sound hand-overs


def test_new_weights_are_served_and_every_tensor_is_compared(served):
    policy, engine = served
    handed = handover_of(policy, engine)
    for version in (1, 2):
        moved(policy)
        row = handed.publish(version, trees())
        assert row["handover/checked"] == 3
        # Two layers of 12, embeddings, norm and head.
        assert row["handover/tensors"] == 2 * 13 + 3
        assert row["handover/logp_difference"] < 1e-5
        assert engine.policy_version == version
        assert engine.llm_engine.get_weight_version() == str(version)


def test_samples_carry_their_version_and_nothing_lives_across(served):
    policy, engine = served
    handed = handover_of(policy, engine)
    handed.publish(4, [])
    sampler = handed._sampler
    prompt = np.arange(3, 60, dtype=np.int32)
    for ticket in range(8):
        sampler.submit(ticket, Continuation(prompt, seed=ticket, max_tokens=40, last=True))
    engine.step()
    engine.step()
    moved(policy)
    handed.publish(5, [])
    spans = dict(sampler.step())
    assert spans.keys() == set(range(8))
    assert {span.policy_version for span in spans.values()} == {4}
    # Chance may end one of them by itself in two steps, not all.
    finishes = [span.finish for span in spans.values()]
    assert set(finishes) <= {Finish.CUT, Finish.STOP}
    assert finishes.count(Finish.CUT) > 4


def test_requests_of_another_sampler_refuse_the_hand_over(served):
    policy, engine = served
    handed = handover_of(policy, engine)
    engine.add("mine", [3, 4, 5], Drawing(max_tokens=5))
    with pytest.raises(SamplerError, match="cannot be handed over while 1 requests are under way"):
        handed.publish(6, [])
    engine.abort(["mine"])


# Faults


def broken(served, fault, match):
    """Publishes soundly, lets `fault` happen to the next hand-over, and expects its checks to tell."""
    policy, engine = served
    handed = handover_of(policy, engine)
    handed.publish(8, trees())
    # As in a search: the cache has the paths.
    handed._continue(probe_paths(trees(), engine.max_length), 8)
    moved(policy)
    with pytest.MonkeyPatch.context() as patch:
        fault(patch, policy, engine)
        with pytest.raises(HandoverError, match=match):
            handed.publish(9, trees())
    engine.reset_prefix_cache()
    handed.publish(10, trees())


def test_old_weights_are_found(served):
    def fault(patch, policy, engine):
        patch.setattr(EngineWeights, "_send_full", lambda self, named, version: None)

    broken(served, fault, r"29 of 29 tensors of version 9 are served otherwise than they were sent")


def test_a_stale_tied_head_is_found(served):
    def fault(patch, policy, engine):
        from treerl.samplers import vllm_weights

        patch.setattr(vllm_weights, "repack_head", lambda model: None)

    broken(served, fault, r"1 of 29 tensors .* the first is lm_head.weight")


def test_a_zeroed_layer_is_found(served):
    def fault(patch, policy, engine):
        send = EngineWeights._send_full

        def zeroed(self, named, version):
            send(self, ((n, t * 0 if "0.mlp.up_proj" in n else t) for n, t in named), version)

        patch.setattr(EngineWeights, "_send_full", zeroed)

    broken(served, fault, r"1 of 29 .* is model.layers.0.mlp.up_proj.weight .*served 0\)")


def test_a_missing_tensor_is_found(served):
    def fault(patch, policy, engine):
        send = EngineWeights._send_full

        def lossy(self, named, version):
            send(self, ((n, t) for n, t in named if "1.self_attn.k_proj.bias" not in n), version)

        patch.setattr(EngineWeights, "_send_full", lossy)

    broken(served, fault, r"served otherwise|did not reach|is not the policy")


def test_a_stale_prefix_cache_is_found(served):
    def fault(patch, policy, engine):
        patch.setattr(VllmEngine, "reset_prefix_cache", lambda self: None)

    broken(served, fault, r"version 9 with a cache of earlier weights: .* it reused 64")


def test_wrong_log_probs_alone_are_found(served):
    """Fingerprints that tell nothing, as of layers that cannot be read: log-probs do."""

    def fault(patch, policy, engine):
        patch.setattr(EngineWeights, "_send_full", lambda self, named, version: None)
        patch.setattr(EngineWeights, "compare", lambda self, weights, version: None)

    broken(served, fault, r"version 9 is not the policy: over \d+ sampled tokens")


def test_a_transfer_that_fails_is_an_error_of_the_sampler(served):
    """The last test of this engine: it has half of the weights now."""
    policy, engine = served
    weights = weights_of(policy)
    bad = dataclasses.replace(weights, named=lambda: iter([("model.norm.weight", torch.ones(7))]))
    with pytest.raises(SamplerError, match="weights of version 11 did not reach vLLM"):
        engine.receive(bad, 11)


# The command

VLLM = (
    "sampler.kind=vllm",
    "sampler.vllm.kv_cache_gib=0.02",
    "sampler.max_batch=32",
    "eval.greedy=false",
    "run.checkpoint_every=1",
    "max_steps=4",
)


def fails_at_step(tmp_path, step: int, *overrides: str) -> str:
    """Runs the command, whose hand-over of version `step` goes wrong; what is left must be whole."""
    outcome = treerl("train", "quickstart", *sets(*VLLM, *overrides))
    assert outcome.exit_code == 1, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "go on with: treerl train --resume" in outcome.stderr
    folder = tmp_path / "runs" / "quickstart-seed0"
    saved = latest(folder / "checkpoints")
    assert (saved.step if saved else 0) == step - 1
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == list(range(step))
    with Store.open(f"sqlite:///{tmp_path}/runs/replay.db") as store:
        assert len(store.trees()) == 3 * step
    return outcome.stderr


def test_training_stops_where_weights_do_not_arrive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    send = EngineWeights._send_full

    def stuck(self, named, version):
        if version < 2:
            send(self, named, version)

    monkeypatch.setattr(EngineWeights, "_send_full", stuck)
    message = fails_at_step(tmp_path, 2)
    assert "tensors of version 2 are served otherwise than they were sent" in message


def test_training_stops_where_weights_arrive_as_zeros(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    send = EngineWeights._send_full

    def zeroed(self, named, version):
        send(self, ((n, t * 0 if version == 1 else t) for n, t in named), version)

    monkeypatch.setattr(EngineWeights, "_send_full", zeroed)
    assert "served 0)" in fails_at_step(tmp_path, 1)


def test_training_stops_where_the_prefix_cache_outlives_the_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(VllmEngine, "reset_prefix_cache", lambda self: None)
    assert "version 1 with a cache of earlier weights" in fails_at_step(tmp_path, 1)


def test_training_stops_where_the_adapter_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(EngineWeights, "request", None)
    message = fails_at_step(tmp_path, 1, "policy.lora.r=4", "sampler.vllm.lora=adapter")
    assert "version 1 is not the policy" in message


@pytest.mark.parametrize(
    "way",
    [
        (),
        ("policy.lora.r=4", "sampler.vllm.lora=adapter"),
        ("policy.lora.r=4", "sampler.vllm.lora=merged"),
    ],
    ids=["full", "adapter", "merged"],
)
def test_what_vllm_evaluates_after_training_is_what_was_saved(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    settings = ("update.lr=1e-2", "update.warmup_steps=0", "eval.problems=24", *way)
    changes = [part for s in (*VLLM, *settings, "eval.greedy=true") for part in ("--set", s)]
    outcome = treerl("train", "quickstart", *sets(), *changes, "--set", "max_steps=3", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    after = outcome.json["after"]
    saved = latest(tmp_path / "runs" / "quickstart-seed0" / "checkpoints")
    here = treerl(
        "eval", "quickstart", "--weights", str(saved.path), *sets("eval.problems=24"), "--json"
    ).json
    start = treerl("eval", "quickstart", *sets("eval.problems=24"), "--json").json
    assert here["greedy"] == after["eval/greedy"]
    assert outcome.json["steps"] == 3
    assert start["greedy"] != here["greedy"]
