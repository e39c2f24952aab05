"""LoRA: adapters alone are trained, saved, restored and served."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support_policy import random_credit, random_tree
from tests.support_update import Recorder, unweighted, worst
from treerl.config import LoraSettings, PolicySettings, SamplerSettings, UpdateSettings
from treerl.errors import ConfigError, StoreError
from treerl.policy.checkpoint import load_checkpoint, save_checkpoint
from treerl.policy.lora import (
    adapter_tensors,
    full_weights,
    has_adapter,
    merge_adapter,
    restore_adapter,
)
from treerl.policy.model import Policy, load_policy
from treerl.policy.optimizer import PolicyOptimizer
from treerl.policy.reference import score_trees
from treerl.policy.selfcheck import check_packing
from treerl.policy.update import update_policy
from treerl.samplers.transformers import TransformersSampler
from treerl.search.sampler import Continuation, Finish
from treerl.search.tree import ROOT, Tree

pytest.importorskip("peft")

SMALL = LoraSettings(r=4, alpha=8)


def lora_policy(*, moved: bool = True, **settings) -> Policy:
    """The embedded model with an adapter, whose B is random where `moved`."""
    policy = load_policy(PolicySettings(lora=LoraSettings(r=4, alpha=8, **settings)))
    if moved:
        generator = torch.Generator().manual_seed(1)
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:
                parameter.data.normal_(0.0, 0.05, generator=generator)
    return policy


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[3, 5, 4, 9, 6, 3, 8, 7, 10, 4]])).logits


def step(policy, trees, *, pack="tree", optimizer=None):
    settings = UpdateSettings(lr=1e-2, pack=pack)
    optimizer = optimizer or PolicyOptimizer(policy.model, settings)
    update_policy(
        policy,
        optimizer,
        trees,
        [random_credit(tree, i) for i, tree in enumerate(trees)],
        loss=unweighted(),
        update=settings,
        temperature=1.0,
        generator=np.random.default_rng(0),
    )
    return optimizer


def trees_of(policy) -> list[Tree]:
    vocabulary = policy.model.config.vocab_size
    trees = [random_tree(seed) for seed in (1, 2)]
    for tree in trees:
        tree.tokens.token[:] = tree.tokens.token % (vocabulary - 3) + 3
    return trees


def test_a_fresh_adapter_changes_nothing_and_is_the_same_at_every_start():
    plain, first, second = (
        load_policy(PolicySettings()),
        lora_policy(moved=False),
        lora_policy(moved=False),
    )
    assert torch.equal(logits(plain.model), logits(first.model))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True)
    )


def test_the_adapter_alone_is_trained():
    policy = lora_policy(moved=False)
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    optimizer = step(policy, trees_of(policy))
    changed = {n for n, p in policy.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all(".lora_" in name for name in changed)
    assert not any("base_layer" in name for name in optimizer.state_dict())


def test_packed_trees_give_the_adapters_gradients_of_single_rows():
    policy = lora_policy()
    found = []
    for pack in ("tree", "flat"):
        optimizer = Recorder(policy.model, UpdateSettings())
        step(policy, trees_of(policy), pack=pack, optimizer=optimizer)
        found.append(optimizer.gradients[0])
    assert worst(*found) < 1e-4
    check_packing(policy, max_path=64)


def test_full_weights_are_those_of_the_merged_model():
    policy, plain = lora_policy(), load_policy(PolicySettings()).model
    weights = dict(full_weights(policy.model))
    assert weights.keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(weights, strict=False)
    assert not torch.equal(logits(plain), logits(load_policy(PolicySettings()).model))
    torch.testing.assert_close(logits(plain), logits(policy.model), atol=1e-4, rtol=0)
    expected = logits(policy.model)
    merge_adapter(policy.model)
    assert not has_adapter(policy.model)
    assert torch.equal(logits(policy.model), logits(plain))
    torch.testing.assert_close(logits(policy.model), expected, atol=1e-4, rtol=0)


def test_full_weights_of_a_plain_model_are_its_own_tensors():
    model = load_policy(PolicySettings()).model
    for (name, value), (other, parameter) in zip(
        full_weights(model), model.named_parameters(), strict=True
    ):
        assert name == other
        assert value.data_ptr() == parameter.data_ptr()


def test_a_checkpoint_holds_the_adapter_and_transformers_loads_it(tmp_path):
    policy = lora_policy()
    optimizer = step(policy, trees_of(policy))
    path = save_checkpoint(tmp_path, policy, optimizer, step=1, state={"step": 1})
    assert not (path / "model.safetensors").exists()
    assert (path / "adapter_model.safetensors").stat().st_size < 400_000
    loaded = AutoModelForCausalLM.from_pretrained(path)
    torch.testing.assert_close(logits(loaded), logits(policy.model), atol=1e-5, rtol=0)


def test_a_checkpoint_of_an_adapter_restores_to_the_bit(tmp_path):
    policy = lora_policy()
    optimizer = step(policy, trees_of(policy))
    path = save_checkpoint(tmp_path, policy, optimizer, step=1, state={"step": 1})
    other = lora_policy(moved=False)
    again = PolicyOptimizer(other.model, UpdateSettings(lr=1e-2))
    assert load_checkpoint(path, other, again) == {"step": 1}
    assert torch.equal(logits(other.model), logits(policy.model))
    for one, parts in ((policy, optimizer), (other, again)):
        step(one, trees_of(one), optimizer=parts)
    assert torch.equal(logits(other.model), logits(policy.model))


def test_an_adapter_of_other_shape_is_refused(tmp_path):
    policy = lora_policy()
    tensors = adapter_tensors(policy.model)
    name = next(iter(tensors))
    with pytest.raises(StoreError, match="of this shape"):
        restore_adapter(policy.model, tensors | {name: tensors[name][:1]})
    with pytest.raises(StoreError, match="which this policy has not"):
        restore_adapter(policy.model, tensors | {"strange": tensors[name]})


def test_a_checkpoint_as_model_is_merged_or_trained_on(tmp_path):
    policy = lora_policy()
    optimizer = PolicyOptimizer(policy.model, UpdateSettings())
    path = save_checkpoint(tmp_path, policy, optimizer, step=1, state={})
    merged = load_policy(PolicySettings(model=str(path)))
    assert not has_adapter(merged.model)
    assert all(p.requires_grad for p in merged.model.parameters())
    torch.testing.assert_close(logits(merged.model), logits(policy.model), atol=1e-4, rtol=0)
    onward = load_policy(PolicySettings(model=str(path), lora=SMALL))
    assert has_adapter(onward.model)
    assert torch.equal(logits(onward.model), logits(policy.model))
    assert {n for n, p in onward.model.named_parameters() if p.requires_grad} == {
        n for n, p in policy.model.named_parameters() if p.requires_grad
    }


def test_the_sampler_draws_with_the_adapter():
    policy = lora_policy()
    sampler = TransformersSampler(
        policy.model,
        settings=SamplerSettings(),
        stop_token_ids=(0,),
        pad_token_id=0,
        device="cpu",
    )
    prompt = np.arange(3, 12, dtype=np.int32)
    sampler.submit(0, Continuation(prompt, seed=5, max_tokens=12, last=True))
    ((_, span),) = sampler.step()
    tree = Tree(prompt, seed=0, max_completion_length=64)
    tree.append(tree.request(ROOT, 1), 0, span)
    assert span.finish in (Finish.STOP, Finish.LENGTH)
    (lp,) = score_trees(policy, [tree], temperature=1.0, max_tokens=64)
    assert np.abs(lp[len(prompt) :] - span.logprobs).max() < 1e-4


def test_the_head_takes_no_adapter():
    with pytest.raises(ConfigError, match=r"target_modules names the output head"):
        lora_policy(target_modules=("q_proj", "lm_head"))


def test_unknown_target_modules_are_refused():
    with pytest.raises(ConfigError, match=r"policy.lora.target_modules = \('nowhere',\)"):
        lora_policy(target_modules=("nowhere",))


def test_without_peft_the_remedy_is_named():
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *a: None if n == 'peft' else find(n, *a)\n"
        "from treerl.config import PolicySettings, LoraSettings\n"
        "from treerl.errors import ConfigError\n"
        "from treerl.policy.model import load_policy\n"
        "try:\n"
        "    load_policy(PolicySettings(lora=LoraSettings()))\n"
        "except ConfigError as error:\n"
        "    assert \"pip install 'treerl[lora]'\" in str(error), error\n"
        "else:\n"
        "    raise SystemExit('accepted')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
