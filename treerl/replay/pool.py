"""Pools of a run's own rows: what was put in at which step, what is still there, what is drawn, how often.

As in Reverb, a pool has a sampler, a remover, a size and a number of times that an item may be used, and a
drawn item comes with its probability and the size of the pool: without these there are no importance
weights. Unlike there nothing is counted in place. Items and uses are rows with the step they belong to, and
the pool at a step is worked out from them (`alive`), so that a resumed run draws what the unbroken one drew.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from treerl.replay import schema
from treerl.replay.entry import insert_new
from treerl.replay.store import Store

PoolSampler = Literal["uniform", "prioritised", "oldest", "newest"]
Remover = Literal["oldest", "lowest"]


@dataclass(frozen=True)
class PoolSettings:
    """How a pool works.

    sampler: which items are drawn; prioritised in proportion to priority ** priority_exponent. remover: which
    item goes when there are more than max_size. An item also goes once it was used max_times_sampled times,
    or is more than max_age steps old (None: without limit).
    """

    sampler: PoolSampler = "uniform"
    remover: Remover = "oldest"
    max_size: int = 2048
    max_times_sampled: int | None = None
    max_age: int | None = None
    priority_exponent: float = 1.0


@dataclass(frozen=True)
class Item:
    """A row in a pool: `draw` ends its path, `step` is when it was put in."""

    id: int
    draw: int
    priority: float
    step: int


@dataclass(frozen=True)
class Drawn:
    """An item that was drawn, with its probability in that draw and the items there were to draw from."""

    item: Item
    probability: float
    size: int

    def weight(self, exponent: float) -> float:
        """(1 / (N P)) ** exponent: 1 for every item of a uniform pool."""
        return float((1.0 / (self.size * self.probability)) ** exponent)


Uses = Mapping[tuple[int, int], int]
"""How often an item was used at a step, by (item id, step)."""


def alive(items: Sequence[Item], uses: Uses, settings: PoolSettings, step: int) -> list[Item]:
    """The pool as it stands when `step` begins, oldest item first; items put in at `step` are not in it.

    Goes through the steps in order: put in, used up, too old, over size; what went does not come back.
    """
    arrivals: dict[int, list[Item]] = {}
    for item in sorted(items, key=lambda item: (item.step, item.draw)):
        if item.step < step:
            arrivals.setdefault(item.step, []).append(item)
    spent: dict[int, list[int]] = {}
    for (item_id, used_at), times in uses.items():
        if used_at < step:
            spent.setdefault(used_at, []).extend([item_id] * times)
    used: Counter[int] = Counter()
    there: list[Item] = []
    for now in sorted(arrivals.keys() | spent.keys()):
        # A step draws before it puts in.
        used.update(spent.get(now, ()))
        there = _evict(_usable(there, used, settings, now), settings)
        there = _evict(there + arrivals.get(now, []), settings)
    return _usable(there, used, settings, step)


def _usable(there: list[Item], used: Counter[int], settings: PoolSettings, now: int) -> list[Item]:
    limit, age = settings.max_times_sampled, settings.max_age
    return [
        item
        for item in there
        if (limit is None or used[item.id] < limit) and (age is None or now - item.step <= age)
    ]


def _evict(there: list[Item], settings: PoolSettings) -> list[Item]:
    """The items that stay where there is room for `max_size`; of equal priority the older one goes."""
    if len(there) <= settings.max_size:
        return there
    match settings.remover:
        case "oldest":
            return there[-settings.max_size :]
        case "lowest":
            ranked = sorted(there, key=lambda item: (item.priority, item.step, item.draw))
            stay = {item.id for item in ranked[-settings.max_size :]}
            return [item for item in there if item.id in stay]


def probabilities(items: Sequence[Item], settings: PoolSettings) -> NDArray[np.float64]:
    """The chance of each item to be drawn first, float64[N]; all 0 if no item has a priority."""
    if settings.sampler != "prioritised":
        return np.full(len(items), 1.0 / max(len(items), 1))
    mass = np.array([item.priority for item in items]) ** settings.priority_exponent
    mass = np.where([item.priority > 0 for item in items], mass, 0.0)
    return mass / mass.sum() if mass.sum() > 0 else mass


def draw_items(
    items: Sequence[Item],
    uses: Uses,
    settings: PoolSettings,
    count: int,
    generator: np.random.Generator,
) -> list[Drawn]:
    """Up to `count` draws from the items that are there, one after the other.

    prioritised: with replacement, as its weights suppose, until an item is used up; the others: each item at
    most once. `uses`: of the steps before, which count towards `max_times_sampled`.
    """
    if settings.sampler != "prioritised":
        size = len(items)
        order = list(range(size))
        if settings.sampler == "uniform":
            order = generator.permutation(size).tolist()
        elif settings.sampler == "newest":
            order.reverse()
        return [Drawn(items[i], 1.0 / size, size) for i in order[:count]]
    left = _left(items, uses, settings)
    there = list(items)
    drawn: list[Drawn] = []
    while len(drawn) < count:
        chance = probabilities(there, settings)
        if not chance.any():
            break
        i = int(generator.choice(len(there), p=chance))
        drawn.append(Drawn(there[i], float(chance[i]), len(there)))
        left[there[i].id] -= 1
        if left[there[i].id] <= 0:
            there.pop(i)
    return drawn


def _left(items: Sequence[Item], uses: Uses, settings: PoolSettings) -> dict[int, float]:
    """Uses that each item has left."""
    if settings.max_times_sampled is None:
        return dict.fromkeys((item.id for item in items), np.inf)
    used: Counter[int] = Counter()
    for (item_id, _), times in uses.items():
        used[item_id] += times
    return {item.id: settings.max_times_sampled - used[item.id] for item in items}


class Pool:
    """One pool of one run in the store."""

    def __init__(self, store: Store, run_id: str, name: str, settings: PoolSettings) -> None:
        self.store, self.settings = store, settings
        table = schema.pool
        row = {
            "run_id": run_id,
            "name": name,
            "sampler": settings.sampler,
            "remover": settings.remover,
            "max_size": settings.max_size,
            "max_times_sampled": settings.max_times_sampled,
            "max_age": settings.max_age,
        }
        known = sa.select(table.c.id).where(table.c.run_id == run_id, table.c.name == name)
        with store.write() as connection:
            statement = insert_new(connection.dialect.name, table, ("run_id", "name"))
            connection.execute(statement, row)
            self.id = int(connection.execute(known).scalar_one())

    def put(self, draws: Mapping[int, float], *, step: int) -> None:
        """Puts in the paths that these draws end, with their priorities (>= 0); one that is there stays."""
        rows = [
            {"pool_id": self.id, "draw_id": draw, "priority": priority, "step": step}
            for draw, priority in draws.items()
        ]
        if not rows:
            return
        with self.store.write() as connection:
            statement = insert_new(connection.dialect.name, schema.item, ("pool_id", "draw_id"))
            connection.execute(statement, rows)

    def at(self, step: int) -> tuple[list[Item], dict[tuple[int, int], int]]:
        """The pool when `step` begins, oldest first, and its items' uses before that."""
        item, use, settings = schema.item, schema.item_use, self.settings
        of_pool = (item.c.pool_id == self.id) & (item.c.step < step)
        if settings.remover == "oldest" and settings.max_age is not None:
            # What is too old by now went before anything younger did, and need not be read again.
            of_pool &= item.c.step >= step - settings.max_age
        columns = [item.c[name] for name in ("id", "draw_id", "priority", "step")]
        used = (
            sa.select(use.c.item_id, use.c.step, use.c.times)
            .join(item, item.c.id == use.c.item_id)
            .where(of_pool, use.c.step < step)
        )
        with self.store.read() as connection:
            items = [Item(*row) for row in connection.execute(sa.select(*columns).where(of_pool))]
            uses = {(row.item_id, row.step): row.times for row in connection.execute(used)}
        return alive(items, uses, settings, step), uses

    def draw(self, count: int, *, step: int, generator: np.random.Generator) -> list[Drawn]:
        """Draws up to `count` items as of `step` and records their use at it.

        What an interrupted attempt at this step or a later one recorded is forgotten.
        """
        items, uses = self.at(step)
        drawn = draw_items(items, uses, self.settings, count, generator)
        times = Counter(one.item.id for one in drawn)
        first = {one.item.id: one for one in reversed(drawn)}
        rows = [
            {
                "item_id": item_id,
                "step": step,
                "times": times[item_id],
                "probability": one.probability,
                "size": one.size,
            }
            for item_id, one in sorted(first.items())
        ]
        mine = sa.select(schema.item.c.id).where(schema.item.c.pool_id == self.id)
        use = schema.item_use
        with self.store.write() as connection:
            stale = (use.c.step >= step) & use.c.item_id.in_(mine)
            connection.execute(sa.delete(use).where(stale))
            if rows:
                connection.execute(use.insert(), rows)
        return drawn


def draws_of_rows(
    store: Store, run_id: str, *, step: int, ends: Iterable[tuple[bytes, int, int]]
) -> dict[tuple[bytes, int, int], int]:
    """Ids of draws of a run's step by (problem key, number of the tree, row of the draw in the tree)."""
    draw, tree, problem = schema.draw, schema.tree, schema.problem
    query = (
        sa.select(problem.c.key, tree.c.number, draw.c.row, draw.c.id)
        .select_from(tree)
        .join(problem, problem.c.id == tree.c.problem_id)
        .join(draw, draw.c.tree_id == tree.c.id)
        .where(tree.c.run_id == run_id, tree.c.step == step, tree.c.state == "done")
    )
    wanted = set(ends)
    with store.read() as connection:
        found: dict[Any, int] = {
            (bytes(row.key), row.number, row.row): row.id for row in connection.execute(query)
        }
    return {end: found[end] for end in wanted if end in found}
