"""A tree in a file: exact round trip, broken files, whole or nothing."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from tests.support_search import FakeSampler, canonical, grow_trees, span
from treerl.config import CureSearch, EntropyTopK
from treerl.errors import DataError
from treerl.search import storage
from treerl.search.sampler import Finish
from treerl.search.storage import load_tree, save_tree
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict


def branched():
    settings = CureSearch(cut=EntropyTopK(min_characters=1))
    (tree,) = grow_trees(settings, sampler=FakeSampler(eos_bias=-2.5), trees=1)
    row = tree.graft(ROOT, span([7, 1], entropies=[np.nan, 0.1]), source=12)
    tree.judge(row, Verdict("timeout", seconds=5.25))
    tree.judge(
        int(tree.leaves()[0]), Verdict("scored", 1 / 3, "7", {"steps": [1, 2], "why": "ü"}, 0.1)
    )
    tree.tokens.mask[5] = False
    tree.nodes.prior[2] = 0.1
    tree.meta["note"] = {"k": [1.5, None]}
    return tree


def test_the_round_trip_is_exact(tmp_path):
    tree = branched()
    save_tree(tree, tmp_path / "tree.safetensors")
    back = load_tree(tmp_path / "tree.safetensors")
    for part in ("nodes", "draws", "tokens"):
        ours, theirs = getattr(tree, part).arrays(), getattr(back, part).arrays()
        assert ours.keys() == theirs.keys()
        for name, column in ours.items():
            assert column.dtype == theirs[name].dtype, name
            assert column.tobytes() == theirs[name].tobytes(), name
    assert back.verdicts == tree.verdicts
    assert back.meta == tree.meta
    assert (back.seed, back.max_completion_length) == (tree.seed, tree.max_completion_length)
    assert [back.children(u) for u in range(len(back))] == [
        tree.children(u) for u in range(len(tree))
    ]
    assert canonical(back) == canonical(tree)
    save_tree(back, tmp_path / "again.safetensors")
    first, second = (tmp_path / f"{name}.safetensors" for name in ("tree", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_a_loaded_tree_names_its_next_draws_as_the_original(tmp_path):
    tree = branched()
    save_tree(tree, tmp_path / "tree")
    back = load_tree(tmp_path / "tree")
    assert back.request(ROOT, 2) == tree.request(ROOT, 2)
    node = int(tree.nodes.parent[len(tree) - 2])
    if tree.nodes.finish[node] in (Finish.OPEN, Finish.CUT):
        assert back.request(node, 2) == tree.request(node, 2)


def test_a_tree_of_the_prompt_alone(tmp_path):
    save_tree(Tree([4, 5], seed=2**62, max_completion_length=3), tmp_path / "tree")
    back = load_tree(tmp_path / "tree")
    assert back.path_tokens(ROOT).tolist() == [4, 5]
    assert back.seed == 2**62


def test_files_that_are_no_tree_are_refused(tmp_path):
    path = tmp_path / "tree"
    save_tree(branched(), path)
    whole = path.read_bytes()
    for broken in (b"", b"hello", whole[:100], whole[:-7]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="not a whole tree file"):
            load_tree(path)
    path.write_bytes(save({"x": np.zeros(2)}))
    with pytest.raises(DataError, match="format None"):
        load_tree(path)
    path.write_bytes(save({"x": np.zeros(2)}, metadata={"tree": '{"format": "treerl-tree/9"}'}))
    with pytest.raises(DataError, match="treerl-tree/9"):
        load_tree(path)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "tree"
    save_tree(branched(), path)
    before = path.read_bytes()

    def disk_full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        save_tree(Tree([1], seed=0, max_completion_length=3), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["tree"]


def test_meta_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    tree = branched()
    tree.meta["bad"] = {1, 2}
    with pytest.raises(TypeError):
        save_tree(tree, tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []
    assert json.dumps({k: v for k, v in tree.meta.items() if k != "bad"})
