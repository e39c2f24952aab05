"""A policy from a GGUF file is a plain model: its weights are exact, it trains, and it can be saved.

The file is a llama of one layer made here. Query and key rows are permuted in it as llama.cpp does.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from treerl.config import PolicySettings
from treerl.policy.model import load_policy

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

WIDTH, HEADS, HIDDEN = 32, 2, 64
TOKENS = ["<end>", "<|im_start|>", *"0123456789+=ab", "ab", "ba", "\u0120"]


def write_file(path: Path) -> dict[str, np.ndarray]:
    """Writes the model; returns its tensors by their GGUF names."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])
    writer.add_token_merges(["a b", "b a"])  # readers take a single one for a text
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    shapes = {
        "token_embd.weight": (len(TOKENS), WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ffn_norm.weight": (WIDTH,),
        **{f"blk.0.attn_{part}.weight": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{part}.weight": (HIDDEN, WIDTH) for part in ("gate", "up")},
        "blk.0.ffn_down.weight": (WIDTH, HIDDEN),
    }
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_gguf_policy_is_a_plain_model_that_can_be_saved(tmp_path: Path) -> None:
    tensors = write_file(tmp_path / "tiny.gguf")
    policy = load_policy(PolicySettings(model=str(tmp_path / "tiny.gguf"), dtype="float32"))
    weights = policy.model.state_dict()
    found = weights["model.layers.0.self_attn.v_proj.weight"]
    assert torch.equal(found, torch.from_numpy(tensors["blk.0.attn_v.weight"]))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in policy.model.parameters())
    assert policy.tokenizer.eos_token_id == 0
    policy.model.save_pretrained(tmp_path / "saved")
    policy.tokenizer.save_pretrained(tmp_path / "saved")
    again = load_policy(PolicySettings(model=str(tmp_path / "saved"), dtype="float32"))
    assert all(torch.equal(weights[name], w) for name, w in again.model.state_dict().items())
