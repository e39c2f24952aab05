"""Re-hashing every key of a replay database from what comes back out, and naming the rows that do not match.

Facts, provenance, texts and verdicts are checked row by row; paths of nodes and solutions, draws and visits
through the trees that use them; the verdict of a solution also against the tree that brought it. What no key
names is not covered: a run's name and recipe, pools and phases, and paths that no tree uses, which
`treerl replay gc` removes.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from treerl.canon import canonical_json
from treerl.errors import StoreError
from treerl.problem import Problem
from treerl.replay import rows, schema
from treerl.replay.entry import VERDICT_CONTENT
from treerl.replay.keys import (
    PolicyRef,
    Provenance,
    VerifierRef,
    columns_key,
    problem_key,
    sampler_key,
    text_key,
    verdict_key,
)
from treerl.replay.store import Store, StoredTree

PAGE = 500
"""Rows read in one transaction: a check of a big cache must not hold up its writers."""


def check(store: Store, progress: Callable[[int, int], None] | None = None) -> Iterator[str]:
    """Yields what does not match, in words that begin with table and id. progress: (trees done, trees)."""
    if (damage := _integrity(store)) is not None:
        yield damage
    for table, expected in _FACTS.items():
        for row in _pages(store, sa.select(table), table.c.id):
            try:
                found = expected(row)
            except (ValueError, TypeError) as error:
                yield f"{table.name} {row.id}: cannot be read: {error}"
                continue
            if found != row.key:
                yield f"{table.name} {row.id}: its content differs from its key"
    yield from _check_words(store)
    total = _count(store)
    for done, head in enumerate(_pages(store, _HEADS, schema.tree.c.id), start=1):
        yield from _check_tree(store, head)
        if progress is not None:
            progress(done, total)


def _check_words(store: Store) -> Iterator[str]:
    """What has a key for this check alone: columns of problems, texts, verdicts."""
    for row in _pages(store, sa.select(schema.problem), schema.problem.c.id):
        if row.columns_key not in (None, columns_key(row.columns)):
            yield f"problem {row.id}: its columns differ from their key"
    for row in _pages(store, sa.select(schema.solution), schema.solution.c.id):
        if row.text_key not in (None, text_key(row.text)):
            yield f"solution {row.id}: its text differs from its key"
    judge = schema.verifier
    for verifier in _pages(store, sa.select(judge.c.id), judge.c.id):
        of_judge = _VERDICTS.where(schema.verdict.c.verifier_id == verifier.id)
        for row in _pages(store, of_judge, schema.verdict.c.solution_id):
            if row.row_key not in (None, verdict_key(*row[2:])):
                yield f"verdict of solution {row.id}: differs from its key (verifier {verifier.id})"


_VERDICTS = sa.select(
    schema.verdict.c.solution_id.label("id"),
    schema.verdict.c.row_key,
    *(schema.verdict.c[name] for name in VERDICT_CONTENT),
)

_FACTS: dict[sa.Table, Callable[[Any], bytes]] = {
    schema.problem: lambda row: problem_key(Problem(row.question, row.truth, row.kind)),
    schema.policy: lambda row: PolicyRef(row.name, row.digest).key(row.version),
    schema.sampler: lambda row: sampler_key(row.params),
    schema.verifier: lambda row: VerifierRef(row.name, row.version, json.loads(row.config)).key,
}

_HEADS = (
    sa.select(
        *(schema.tree.c[name] for name in ("id", "content_key", "state_key")),
        schema.prompt.c.id.label("prompt_id"),
        *(schema.prompt.c[name].label(f"prompt_{name}") for name in ("key", "tokenizer")),
    )
    .join(schema.prompt, schema.prompt.c.id == schema.tree.c.prompt_id)
    .where(schema.tree.c.state == "done")
)


def _pages(store: Store, query: "sa.Select[Any]", key: "sa.Column[Any]") -> Iterator[Any]:
    """Rows of a query in the order of `key`, which it selects as `id`."""
    last = 0
    while True:
        with store.read() as connection:
            page = connection.execute(query.where(key > last).order_by(key).limit(PAGE)).all()
        yield from page
        if len(page) < PAGE:
            return
        last = page[-1].id


def _count(store: Store) -> int:
    query = sa.select(sa.func.count()).where(schema.tree.c.state == "done")
    with store.read() as connection:
        return int(connection.execute(query.select_from(schema.tree)).scalar_one())


def _integrity(store: Store) -> str | None:
    with store.read() as connection:
        if connection.dialect.name != "sqlite":
            return None
        found = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
    return None if found == "ok" else f"the database file: {found}"


def _check_tree(store: Store, head: Any) -> Iterator[str]:
    where = f"tree {head.id}"
    try:
        stored = store.load_tree(head.id)
        again = _encode(stored, head.prompt_tokenizer)
    except StoreError as error:
        # A tree that was deleted meanwhile is no damage.
        if "there is no tree" not in str(error):
            yield f"{where}: cannot be read: {error}"
        return
    except (ValueError, KeyError, IndexError, TypeError) as error:
        yield f"{where}: cannot be read: {type(error).__name__}: {error}"
        return
    if again.prompt["key"] != head.prompt_key:
        yield f"prompt {head.prompt_id}: its tokens or its tokenizer differ from its key ({where})"
    if again.tree["content_key"] != head.content_key:
        yield f"{where}: draws, tokens, log-probs or entropies differ from the tree's content key"
    if head.state_key not in (None, again.tree["state_key"]):
        yield f"{where}: statistics, verdicts, versions or masks differ from the tree's state key"
    yield from _check_draws(store, head.id, again)
    yield from _check_verdicts(store, head.id, again)


def _encode(stored: StoredTree, tokenizer: str) -> rows.TreeRows:
    provenance = Provenance(tokenizer, PolicyRef("", ""), {}, VerifierRef("", ""))
    return rows.encode(
        stored.tree, step=0, number=0, problem=stored.problem, provenance=provenance, texts={}
    )


_DRAWS = (
    sa.select(
        *(schema.draw.c[name] for name in ("id", "row", "node_id", "solution_id")),
        *(schema.node.c[name] for name in ("path_key", "start")),
        schema.solution.c.path_key.label("solution_key"),
    )
    .join(schema.node, schema.node.c.id == schema.draw.c.node_id)
    .outerjoin(schema.solution, schema.solution.c.id == schema.draw.c.solution_id)
    .where(schema.draw.c.tree_id == sa.bindparam("b_tree"))
    .order_by(schema.draw.c.row)
)


def _check_draws(store: Store, tree_id: int, again: rows.TreeRows) -> Iterator[str]:
    with store.read() as connection:
        found = connection.execute(_DRAWS, {"b_tree": tree_id}).all()
    expected = zip(again.nodes["path_key"], again.nodes["start"], strict=True)
    for row, (path_key, start) in zip(found, expected, strict=True):
        where = f"(draw {row.row} of tree {tree_id})"
        if (row.path_key, row.start) != (path_key, start):
            yield f"node {row.node_id}: the tokens up to its end differ from its key {where}"
        if row.solution_key not in (None, path_key):
            yield f"solution {row.solution_id}: its path differs from its key {where}"


_BROUGHT = (
    sa.select(
        schema.solution.c.path_key,
        schema.verdict.c.solution_id,
        *(schema.verdict.c[name] for name in ("outcome", "reward", "answer", "detail", "seconds")),
    )
    .join(schema.draw, schema.draw.c.solution_id == schema.solution.c.id)
    .join(schema.verdict, schema.verdict.c.solution_id == schema.solution.c.id)
    .where(schema.draw.c.tree_id == sa.bindparam("b_tree"))
    .where(schema.verdict.c.position == sa.bindparam("b_tree"))
)


def _check_verdicts(store: Store, tree_id: int, again: rows.TreeRows) -> Iterator[str]:
    """Verdicts that this tree brought are those of one of its leaves."""
    names = ("path_key", "outcome", "reward", "answer", "seconds", "detail")
    given = {
        (*values, _canonical(detail))
        for *values, detail in zip(*(again.verdicts[name] for name in names), strict=True)
    }
    with store.read() as connection:
        found = connection.execute(_BROUGHT, {"b_tree": tree_id}).all()
    for row in dict.fromkeys(found):
        *values, detail = (getattr(row, name) for name in names)
        if (*values, _canonical(detail)) not in given:
            yield f"verdict of solution {row.solution_id}: differs from that of its leaf (tree {tree_id})"


def _canonical(detail: str | None) -> str | None:
    """The text after a way through JSON, which may order keys anew; text that is none stays."""
    try:
        return detail and canonical_json(json.loads(detail))
    except ValueError:
        return detail
