"""Loading a policy: the embedded model, a folder, and errors that name key, value and remedy."""

import importlib.util

import pytest
import torch

from tests.support_policy import tiny_llama
from treerl.config import PolicySettings
from treerl.errors import ConfigError
from treerl.policy.attention import NAME
from treerl.policy.model import EMBEDDED, choose_device, choose_dtype, load_policy
from treerl.policy.selfcheck import check_packing


def test_embedded_policy_loads_and_packs():
    policy = load_policy(PolicySettings())
    assert policy.model.config._attn_implementation == NAME
    assert not policy.model.training
    assert policy.head is not None
    assert policy.max_length is not None
    check_packing(policy, max_path=policy.max_length)


def test_folder_with_dtype_and_checkpointing():
    settings = PolicySettings(model=str(EMBEDDED), dtype="float64", gradient_checkpointing=True)
    policy = load_policy(settings)
    assert policy.dtype == torch.float64
    assert policy.model.is_gradient_checkpointing


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", r"policy\.model = './nowhere': no such folder"),
        ("nowhere/model.gguf", "no such file"),
    ],
)
def test_missing_models_are_named(model, message):
    with pytest.raises(ConfigError, match=message):
        load_policy(PolicySettings(model=model))


def test_folder_without_config(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_policy(PolicySettings(model=str(tmp_path)))


def test_broken_weights_are_a_config_error(tmp_path):
    tiny_llama().model.config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_policy(PolicySettings(model=str(tmp_path)))


def test_gguf_names_the_extra(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    found = importlib.util.find_spec

    def without(name, *rest):
        return None if name in ("gguf", "accelerate") else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(ConfigError, match=r"treerl\[gguf\]"):
        load_policy(PolicySettings(model=str(file)))


def test_device_and_dtype():
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    with pytest.raises(ConfigError, match=r"policy\.device = 'gpu'"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no GPU"):
            choose_device("cuda:0")
