"""Digests and seeds: stable, and different where the parts differ."""

import numpy as np
import pytest

from treerl.canon import canonical_json, derive_seed, digest, digest_hex
from treerl.problem import Problem


def test_parts_do_not_run_together():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("1") != digest(1) != digest(1.0)
    assert digest(b"x") != digest("x")


def test_digest_is_pinned():
    assert digest_hex("problem", "1+1=", "2", "chain") == Problem("1+1=", "2", "chain").key
    assert digest_hex("a", 1) == "894c71a645a9279b3c4ca26210eca262"


def test_tokens_enter_as_int32():
    assert digest(np.array([1, 2], np.int64)) == digest(np.array([1, 2], np.int32))


def test_seeds_fit_a_signed_64_bit_column():
    assert all(0 <= derive_seed("x", i) < 2**63 for i in range(1000))


def test_canonical_json_refuses_nan_and_sorts():
    assert canonical_json({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))
