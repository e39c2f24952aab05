from tests.support_replay import PROBLEM, assert_same_tree, branched_tree, provenance
from treerl.replay.store import Store


def test_tree_comes_back_exactly(tmp_path):
    tree, texts = branched_tree()
    with Store.open(f"sqlite:///{tmp_path}/r.db") as store:
        run = store.start_run("a", {"seed": 0})
        tree_id = store.put_tree(
            run, tree, step=4, problem=PROBLEM, provenance=provenance(), texts=texts
        )
        stored = store.load_tree(tree_id)
    assert_same_tree(stored.tree, tree)
    assert stored.texts == texts
    assert stored.problem == PROBLEM
    assert stored.problem.columns == PROBLEM.columns
