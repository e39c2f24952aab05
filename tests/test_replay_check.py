"""`check` against damage: a bit of any blob, a figure, a word."""

import dataclasses

import pytest
import sqlalchemy as sa

from tests.support_replay import PROBLEM, fill_two_runs, provenance, star_tree
from treerl.replay import schema
from treerl.replay.check import check
from treerl.replay.keys import VerifierRef
from treerl.replay.rejudge import rejudge
from treerl.replay.store import Store
from treerl.verifiers.verdict import Verdict

BLOBS = [
    (table.name, column.name)
    for table in schema.metadata.sorted_tables
    for column in table.c
    if isinstance(column.type, sa.LargeBinary)
]


@pytest.fixture
def store(any_url):
    with Store.open(any_url) as store:
        fill_two_runs(store)
        yield store


def id_of(table):
    """What names a row in reports."""
    return table.c.id if "id" in table.c else table.c.solution_id


def values(store, table, column):
    query = sa.select(id_of(table), table.c[column]).where(table.c[column].is_not(None))
    with store.read() as connection:
        return connection.execute(query.order_by(id_of(table))).all()


def change(store, table, row, column, value):
    statement = sa.update(table).where(id_of(table) == row).values({column: value})
    with store.write() as connection:
        assert connection.execute(statement).rowcount == 1


def test_sound_cache_passes_the_check(store):
    assert list(check(store)) == []


def test_progress_is_told(store):
    told = []
    list(check(store, lambda done, total: told.append((done, total))))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(("name", "column"), BLOBS)
def test_a_flipped_bit_of_any_blob_is_found_and_its_row_named(store, name, column):
    table = schema.metadata.tables[name]
    rows = values(store, table, column)
    assert rows
    for row, value in (rows[0], rows[-1]):
        for at in {0, len(value) - 1}:
            damaged = bytearray(value)
            damaged[at] ^= 1 << (at + row) % 8
            change(store, table, row, column, bytes(damaged))
            found = list(check(store))
            assert found, (row, at)
            if name != "draw":
                start = f"{name}{' of solution' * (name == 'verdict')} {row}: "
                assert any(line.startswith(start) for line in found), found
            else:
                assert all(line.startswith(("tree ", "node ")) for line in found)
            change(store, table, row, column, value)
    assert list(check(store)) == []


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE problem SET truth = '13' WHERE id = 1", "problem 1: its content"),
        ("UPDATE policy SET version = 9 WHERE id = 1", "policy 1: its content"),
        ("UPDATE sampler SET params = '{}' WHERE id = 1", "sampler 1: its content"),
        ("UPDATE verifier SET config = 'x' WHERE id = 1", "verifier 1: cannot be read"),
        ("UPDATE tree SET meta = '[' WHERE id = 1", "tree 1: cannot be read"),
        ("UPDATE tree SET meta = '{\"a\":1}' WHERE id = 1", "tree 1: statistics"),
        ("UPDATE visit SET value_sum = 7 WHERE tree_id = 2", "tree 2: statistics"),
        ("UPDATE visit SET visits = 7 WHERE tree_id = 2", "tree 2: statistics"),
        ("UPDATE visit SET answer = 'x' WHERE tree_id = 1", "tree 1: statistics"),
        ("UPDATE visit SET reward = 0.25 WHERE reward = 1", "tree 1: "),
        ("UPDATE verdict SET reward = 0.25 WHERE solution_id = 1", "verdict of solution 1: "),
        ("UPDATE draw SET k = 5 WHERE id = 1", "tree 1: statistics"),
        ("UPDATE problem SET columns = '{}' WHERE id = 1", "problem 1: its columns"),
        ("UPDATE solution SET text = 'x' WHERE id = 2", "solution 2: its text"),
        ("UPDATE solution SET text = NULL WHERE id = 2", "solution 2: its text"),
        ("UPDATE verdict SET position = 0 WHERE solution_id = 1", "verdict of solution 1: "),
    ],
)
def test_changed_words_and_figures_are_found(store, statement, message):
    with store.write() as connection:
        connection.exec_driver_sql(statement)
    assert any(line.startswith(message) for line in check(store)), list(check(store))


def test_a_changed_verdict_that_came_without_a_tree_is_found(store):
    """As `replay rejudge` stores them."""
    other = VerifierRef("other", "2")

    def verify(problems, completions):
        return [Verdict("scored", 0.5, "7", {"way": "new"}, 0.25) for _ in completions]

    assert sum(rejudge(store, verify, other)) > 0
    assert list(check(store)) == []
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE verdict SET answer = '8' WHERE reward = 0.5")
    found = list(check(store))
    assert found
    assert all(line.startswith("verdict of solution ") for line in found)


def test_rows_of_an_older_schema_have_no_keys_of_words_and_pass(store):
    with store.write() as connection:
        for table, name in (("problem", "columns"), ("solution", "text"), ("verdict", "row")):
            connection.exec_driver_sql(f"UPDATE {table} SET {name}_key = NULL")
    assert list(check(store)) == []


def test_what_databases_and_json_make_of_values_is_no_damage(any_url):
    tree, _ = star_tree()
    tree.judge(1, Verdict("scored", -0.0, None, {2: "b", 10: (1, 2)}, 1))
    tree.nodes.value_sum[0] = -0.0
    tree.nodes.prior[1] = -tree.nodes.prior[2]
    tree.meta[3] = {7: 1, 11: 2}
    with Store.open(any_url) as store:
        run = store.start_run("a", {})
        store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=provenance())
        other = dataclasses.replace(PROBLEM, question="")
        store.put_tree(run, star_tree()[0], step=0, problem=other, provenance=provenance())
        assert list(check(store)) == []


def test_trees_of_an_older_schema_have_no_state_key_and_pass(store):
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE tree SET state_key = NULL")
    assert list(check(store)) == []
