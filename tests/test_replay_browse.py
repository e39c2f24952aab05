"""What is browsed comes out the same from every database."""

import pytest

from tests.support_inspect import put, shown_tree, small_tree
from treerl.replay.browse import browse_problems, draw_origins, judgements, tree_entropies
from treerl.replay.store import Store


def test_problems_entropies_origins_and_verdicts_of_a_cache(any_url):
    with Store.open(any_url) as store:
        ids = put(store, small_tree(), small_tree(), question="first")
        ids += put(store, shown_tree(), run="later", question="second")
        rows = browse_problems(store)
        assert [(row.problem.question, row.trees, row.right, row.leaves) for row in rows] == [
            ("second", 1, 1, 18),
            ("first", 2, 2, 8),
        ]
        assert [row.newest for row in rows] == [ids[2], ids[1]]
        run_id = store.trees()[0].run_id
        assert [row.trees for row in browse_problems(store, run_id=run_id, limit=5)] == [2]
        entropy = tree_entropies(store, ids)
        assert entropy[ids[0]] == pytest.approx(entropy[ids[1]])
        assert 0.1 < entropy[ids[0]] < entropy[ids[2]] < 2
        origins = draw_origins(store, ids[0])
        assert {origin.policy for origin in origins.values()} == {"tiny"}
        assert origins[1].version == 2
        said = judgements(store, ids[0])
        assert [(row, [j.outcome for j in found]) for row, found in said.items()] == [
            (2, ["scored"]),
            (3, ["scored"]),
            (4, ["scored"]),
            (5, ["timeout"]),
        ]
        assert said[2][0].detail == {"rule": "number"}
