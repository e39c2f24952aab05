"""The hand-over of weights to the transformers sampler: faults put in are found within a step."""

import numpy as np
import pytest
import torch

from tests.support_engine import sets, treerl
from tests.support_policy import random_tree
from tests.support_samplers import llama
from treerl.config import SamplerSettings
from treerl.engine.handover import (
    OTHER_TOKENS,
    PATH_TOKENS,
    PROBE_TOKENS,
    PROBES,
    Handover,
    check_fingerprints,
    probe_paths,
    tolerance,
    weights_of,
)
from treerl.errors import HandoverError
from treerl.metrics import read_metrics
from treerl.policy.checkpoint import latest
from treerl.policy.loss_sums import LossSums
from treerl.policy.model import wrap_model
from treerl.replay.store import Store
from treerl.samplers.cache import RowCache
from treerl.samplers.fused import FusedLlama
from treerl.samplers.reuse import Reuse
from treerl.samplers.transformers import TransformersSampler
from treerl.samplers.weights import (
    COLUMNS,
    Compared,
    columns_of,
    compare,
    fingerprint,
    fingerprints_of,
)
from treerl.search.sampler import Finish, Span
from treerl.search.tree import ROOT, Tree

# Fingerprints


def test_a_fingerprint_reads_the_columns_of_its_version():
    matrix = torch.arange(60.0).reshape(3, 20)
    marks = [fingerprints_of([("w", matrix)], v, torch.float32)["w"] for v in (1, 1, 2)]
    assert marks[0] == marks[1]
    assert marks[0].digest != marks[2].digest
    assert len(columns_of("w", 20, 1)) == COLUMNS
    assert columns_of("w", 3, 1) == [0, 1, 2]
    assert columns_of("w", 20, 1) != columns_of("other", 20, 1)


def test_a_fingerprint_sees_one_bit_and_rounds_to_the_dtype_that_serves():
    vector = torch.tensor([1.0, -0.0, 3.0])
    other = torch.tensor([1.0, 0.0, torch.nextafter(torch.tensor(3.0), torch.tensor(4.0))])
    assert fingerprint(vector, torch.float32).digest != fingerprint(other, torch.float32).digest
    assert fingerprint(vector, torch.bfloat16).digest == fingerprint(other, torch.bfloat16).digest
    assert fingerprint(vector, torch.float32).norm == pytest.approx(10**0.5)


def test_tied_tensors_are_compared_under_both_names():
    served = fingerprints_of([("a", torch.ones(2, 3)), ("b", torch.zeros(2, 3))], 4, torch.float32)
    found = compare([("a", torch.ones(2, 3))], served, 4, torch.float32, {"b": "a"})
    assert found.differing == ["b"]
    with pytest.raises(HandoverError, match=r"1 of 2 tensors of version 4.* first is b .*served 0"):
        check_fingerprints(found, 4)


def test_what_only_one_side_could_read_is_passed_over():
    served = fingerprints_of([("a", torch.ones(3))], 0, torch.float32)
    found = compare([("a", torch.ones(3)), ("c", torch.ones(2))], served, 0, torch.float32)
    assert list(found.sent) == ["a"]
    check_fingerprints(found, 0)


# Checks on a sampler


def handover(**settings) -> tuple[Handover, TransformersSampler]:
    policy = wrap_model(llama(), name="tiny")
    given = SamplerSettings(**settings)
    sampler = TransformersSampler(
        policy.model, settings=given, stop_token_ids=(1,), pad_token_id=0, device="cpu"
    )
    return Handover(policy, sampler, given, context=64), sampler


def trees():
    made = [random_tree(seed, spans=4) for seed in range(6)]
    for tree in made:
        tree.tokens.token[:] = tree.tokens.token % 12 + 3
    return made


def chain(prompt: list[int], entropies: list[float]) -> Tree:
    """A tree of one leaf, its tokens 20, 21, ..."""
    tree = Tree(np.array(prompt, np.int32), seed=0, max_completion_length=64)
    tokens = np.arange(20, 20 + len(entropies), dtype=np.int32)
    zeros, given = np.zeros(len(tokens), np.float32), np.array(entropies, np.float32)
    tree.append(tree.request(ROOT, 1), 0, Span(tokens, zeros, given, 0, Finish.STOP))
    return tree


def test_probes_are_the_longest_path_and_what_lies_before_uncertain_tokens():
    made = [
        chain([3, 4], [0.1, 0.2, 0.9, 0.3]),
        chain([5, 6, 7], [0.5] * 6),
        chain([8], [0.0, 2.0]),
    ]
    paths = [path.tolist() for path in probe_paths(made, 64)]
    assert paths == [[5, 6, 7, 20, 21, 22, 23, 24], [8, 20], [3, 4, 20, 21]]
    short = [path.tolist() for path in probe_paths(made, PROBE_TOKENS + 3)]
    assert all(len(path) <= 3 for path in short)
    assert len(probe_paths(made * 9, 64)) == PROBES
    assert probe_paths([], 64) == []


def test_probes_of_long_paths_are_short():
    long = [0.5] * 300
    long[150] = 2.0
    paths = probe_paths([chain([3], [0.1] * 400), chain([4], long)], 1000)
    assert len(paths[0]) == PATH_TOKENS
    assert len(paths[1]) <= OTHER_TOKENS


def test_a_sound_hand_over_makes_its_checks():
    handed, sampler = handover()
    row = handed.publish(3, trees())
    assert sampler.policy_version == 3
    assert row["handover/checked"] == 2
    assert row["handover/logp_difference"] < 1e-5
    assert row["time/handover"] > 0


def test_log_probs_of_a_truncated_distribution_are_not_compared():
    handed, _ = handover(top_k=3)
    assert handed.publish(3, trees()).keys() == {"handover/checked", "time/handover"}


def test_a_cache_that_survives_the_hand_over_is_found(monkeypatch):
    handed, _ = handover()
    handed.publish(1, trees())
    monkeypatch.setattr(TransformersSampler, "set_version", set_version_alone)
    handed.publish(2, trees())  # from here on the cache has these paths
    with pytest.raises(
        HandoverError, match=r"version 3 with a cache of earlier weights: .* reused"
    ):
        handed.publish(3, trees())


def set_version_alone(self, version):
    self._version = version


def test_a_check_does_not_wait_for_ever(monkeypatch):
    handed, _ = handover()
    monkeypatch.setattr("treerl.engine.handover.WAIT_SECONDS", 0.0)
    monkeypatch.setattr(TransformersSampler, "step", lambda self: [])
    with pytest.raises(
        HandoverError, match="gave no 2 tokens within 0 s after it was given version 1"
    ):
        handed.publish(1, trees())


def test_a_sampler_that_keeps_its_version_is_found(monkeypatch):
    handed, _ = handover()
    monkeypatch.setattr(TransformersSampler, "set_version", lambda self, version: None)
    with pytest.raises(HandoverError, match="draws as version 0 after it was given 5"):
        handed.publish(5, [])


def test_ratios_other_than_one_at_an_updates_first_step_are_found():
    handed, _ = handover()
    sound = LossSums(compared=100.0, logp_abs=100 * handed.tolerance / 2)
    handed.check_update(sound, 4)
    with pytest.raises(HandoverError, match=r"step 4 were not drawn by the policy .*100 tokens"):
        handed.check_update(LossSums(compared=100.0, logp_abs=300 * handed.tolerance), 4)
    with pytest.raises(HandoverError, match="nan on average"):
        handed.check_update(LossSums(compared=100.0, logp_abs=float("nan")), 4)


def test_the_tolerance_is_that_of_the_coarser_dtype_and_of_the_temperature():
    policy = wrap_model(llama(), name="tiny")
    exact = tolerance(policy, torch.float32, 1.0)
    assert tolerance(policy, torch.bfloat16, 1.0) > 100 * exact
    assert tolerance(policy, torch.float32, 0.5) == pytest.approx(2 * exact)
    assert tolerance(policy, torch.float32, 2.0) == exact


def test_ties_of_the_model_are_named():
    tied = wrap_model(llama(tie_word_embeddings=True), name="tiny")
    weights = weights_of(tied)
    assert weights.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in dict(weights.named())
    assert weights_of(wrap_model(llama(), name="tiny")).tied == {}


def test_no_check_is_made_where_it_is_switched_off(monkeypatch):
    policy = wrap_model(llama(), name="tiny")
    sampler = TransformersSampler(
        policy.model, settings=SamplerSettings(), stop_token_ids=(1,), pad_token_id=0, device="cpu"
    )
    handed = Handover(policy, sampler, SamplerSettings(), context=64, check=False)
    assert handed.publish(1, trees()).keys() == {"time/handover"}
    handed.check_update(LossSums(compared=1.0, logp_abs=9.0), 1)
    assert sampler.stats["generated_tokens"] == 0


# The command


def fails_at_step(tmp_path, step: int) -> str:
    """Runs the command with a checkpoint a step; what is left must be whole. Returns the message."""
    outcome = treerl("train", "quickstart", *sets("run.checkpoint_every=1", "max_steps=4"))
    assert outcome.exit_code == 1
    assert "Traceback" not in outcome.stderr
    assert "go on with: treerl train --resume" in outcome.stderr
    folder = tmp_path / "runs" / "quickstart-seed0"
    saved = latest(folder / "checkpoints")
    assert (saved.step if saved else 0) == step - 1
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == list(range(step))
    with Store.open(f"sqlite:///{tmp_path}/runs/replay.db") as store:
        infos = store.trees()
        assert len(infos) == 3 * step
        assert all(np.isfinite(store.load_tree(i.id).tree.tokens.logprob[20:]).all() for i in infos)
    return outcome.stderr


@pytest.mark.parametrize("step", [1, 2])
def test_training_stops_where_the_sampler_goes_on_with_old_weights(tmp_path, monkeypatch, step):
    monkeypatch.chdir(tmp_path)
    refresh, set_version, served = FusedLlama._refresh, TransformersSampler.set_version, [0]

    def watched(self, version):
        served.append(version)
        set_version(self, version)

    def stale(self):
        if served[-1] < step:
            refresh(self)

    monkeypatch.setattr(TransformersSampler, "set_version", watched)
    monkeypatch.setattr(FusedLlama, "_refresh", stale)
    assert f"serves as version {step} is not the policy" in fails_at_step(tmp_path, step)


def test_training_stops_where_the_cache_outlives_the_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Reuse, "clear", lambda self: None)
    monkeypatch.setattr(RowCache, "clear", lambda self: None)
    assert "version 1 with a cache of earlier weights" in fails_at_step(tmp_path, 1)


def test_compared_names_what_differs():
    one = fingerprint(torch.ones(2), torch.float32)
    two = fingerprint(torch.zeros(2), torch.float32)
    assert Compared({"a": one, "b": one}, {"a": one, "b": two}).differing == ["b"]
