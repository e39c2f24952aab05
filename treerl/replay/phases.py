"""Phases of a run's curriculum, kept in the store: a resumed run takes them up instead of choosing again."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from treerl.canon import canonical_json
from treerl.problem import Problem
from treerl.replay import schema
from treerl.replay.entry import chunks, insert_new
from treerl.replay.store import Store


@dataclass(frozen=True)
class Phase:
    """From `step` on a run trains on `problems` (keys, in order).

    rates: right and tried responses of each candidate when the choice was made, by problem key.
    generated_tokens: what it cost to find out.
    """

    number: int
    step: int
    kind: str
    problems: tuple[str, ...]
    rates: dict[str, tuple[int, int]]
    generated_tokens: int = 0


def put_phase(store: Store, run_id: str, phase: Phase) -> None:
    """Enters a phase; one that is there under its number stays as it is."""
    data = {
        "problems": list(phase.problems),
        "rates": {key: list(rate) for key, rate in phase.rates.items()},
        "generated_tokens": phase.generated_tokens,
    }
    row = {
        "run_id": run_id,
        "number": phase.number,
        "step": phase.step,
        "kind": phase.kind,
        "data": canonical_json(data),
    }
    with store.write() as connection:
        statement = insert_new(connection.dialect.name, schema.phase, ("run_id", "number"))
        connection.execute(statement, row)


def phases(store: Store, run_id: str) -> dict[int, Phase]:
    """The phases of a run, by number."""
    query = sa.select(schema.phase).where(schema.phase.c.run_id == run_id)
    with store.read() as connection:
        found = connection.execute(query.order_by(schema.phase.c.number)).all()
    return {row.number: _phase(row.number, row.step, row.kind, row.data) for row in found}


def _phase(number: int, step: int, kind: str, text: str) -> Phase:
    data = json.loads(text)
    rates = {key: (right, count) for key, (right, count) in data["rates"].items()}
    return Phase(number, step, kind, tuple(data["problems"]), rates, data["generated_tokens"])


def problems_of(store: Store, keys: Iterable[str]) -> dict[str, Problem]:
    """Stored problems by key."""
    problem = schema.problem
    columns: Sequence[str] = ("key", "question", "truth", "kind", "columns")
    query = sa.select(*(problem.c[name] for name in columns))
    with store.read() as connection:
        return {
            row.key.hex(): Problem(row.question, row.truth, row.kind, json.loads(row.columns))
            for some in chunks(bytes.fromhex(key) for key in keys)
            for row in connection.execute(query.where(problem.c.key.in_(some)))
        }
