"""`Frontier`: points that can be branched, best first by DeepSearch's score, at a cost that does not grow.

Points with one parent share the parent's part of the score, and that is the part that changes: a backup
touches the points of one path, and only their families are scored again. Scores closer than 1e-9 tie, so
that the order of additions behind them does not matter; ties are broken by a seed of the point itself.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from treerl.canon import derive_seed
from treerl.config import DeepSearchSearch
from treerl.search.backup import Tally
from treerl.search.select import own_score, parent_score

K = TypeVar("K", bound=Hashable)
_DIGITS = 9
_SLACK = 64


@dataclass(slots=True, eq=False)
class Point(Generic[K]):
    """A point that can be branched, until it is used. tally: what was backed up through it; tie: its seed.

    above: the points over it, from the first one below the root. own: its part of the score, and entry what
    stands for it in its family's heap. uncertainty: NaN where unknown; depth in chunks. below: the points
    under it.
    """

    key: K
    family: "Family[K]"
    above: "tuple[Point[K], ...]"
    tally: Tally
    uncertainty: float
    depth: int
    tie: int
    own: float = 0.0
    entry: float = 0.0
    is_open: bool = True
    below: "Family[K] | None" = None

    @property
    def lane(self) -> int:
        """Where it lies."""
        return self.family.lane

    @property
    def path(self) -> "list[Point[K]]":
        """The points from the first one below the root to this."""
        return [*self.above, self]


@dataclass(slots=True, eq=False)
class Family(Generic[K]):
    """The points of one lane below one parent. best: their own parts in a heap; version: of its entry."""

    lane: int
    parent: Tally
    best: list[tuple[float, int, int, Point[K]]] = field(default_factory=list)
    version: int = 0


_Entry = tuple[float, int, int, int, Family[K]]
"""-score, tie, version and identity of a family, and the family."""


class Frontier(Generic[K]):
    """Open points in lanes, the best of each lane at hand.

    seed: of the tree, which the ties hang on. max_depth: chunks of the longest path. root: what was backed
    up through the root, which is no point itself.
    """

    def __init__(
        self, settings: DeepSearchSearch, *, seed: int, max_depth: int, root: Tally
    ) -> None:
        self._settings, self._seed, self._max_depth = settings, seed, max_depth
        self._root, self._weighs_own = root, settings.own_weight > 0
        self._tops: dict[int, Family[K]] = {}
        self._lanes: dict[int, list[_Entry[K]]] = {}
        self._changed: dict[Family[K], None] = {}
        self._families = self._points = 0

    def add(
        self,
        key: K,
        *,
        lane: int,
        above: Point[K] | None,
        tally: Tally,
        uncertainty: float,
        depth: int,
        tie: tuple[int, int],
    ) -> Point[K]:
        """Opens a point below `above` (None: the root). tie: (seed of its draw, offset)."""
        family = self._tops.get(lane) if above is None else above.below
        if family is None:
            self._families += 1
            family = Family(lane, self._root if above is None else above.tally)
            if above is None:
                self._tops[lane] = family
            else:
                above.below = family
        number = derive_seed(self._seed, "tie", *tie)
        over = () if above is None else (*above.above, above)
        point = Point(key, family, over, tally, uncertainty, depth, number)
        self._enter(point)
        return point

    def use(self, point: Point[K]) -> None:
        """Closes a point: it is no more to be branched."""
        point.is_open = False
        self._changed[point.family] = None

    def backed_up(self, points: Iterable[Point[K]]) -> None:
        """Something was backed up through the root and these points."""
        changed = self._changed
        for family in self._tops.values():
            if family.best:
                changed[family] = None
        for point in points:
            if (below := point.below) is not None and below.best:
                changed[below] = None
            if self._weighs_own and point.is_open:
                self._enter(point)

    def best(self) -> list[Point[K]]:
        """The best open point of each lane, from the best to the worst."""
        for family in self._changed:
            if family.best:
                self._rank(family)
        self._changed.clear()
        tops = []
        for entries in self._lanes.values():
            while entries and entries[0][2] != entries[0][4].version:
                heappop(entries)
            if entries:
                tops.append(entries[0])
        return [entry[4].best[0][3] for entry in sorted(tops)]

    def _enter(self, point: Point[K]) -> None:
        """Scores the point's own part, into its family."""
        point.own = own_score(
            self._settings,
            own_mean=point.tally.mean,
            uncertainty=point.uncertainty,
            depth=point.depth,
            max_depth=self._max_depth,
        )
        self._points += 1
        point.entry = -round(point.own, _DIGITS)
        heappush(point.family.best, (point.entry, point.tie, self._points, point))
        self._changed[point.family] = None

    def _rank(self, family: Family[K]) -> None:
        """A new entry for a family, by its best open point; none if it has no open point."""
        best = family.best
        while best and not (best[0][3].is_open and best[0][0] == best[0][3].entry):
            heappop(best)
        family.version += 1
        if not best:
            return
        point = best[0][3]
        score = parent_score(self._settings, family.parent.mean) + point.own
        entries = self._lanes.get(family.lane)
        if entries is None:
            entries = self._lanes[family.lane] = []
        elif len(entries) > _SLACK + 4 * self._families:
            entries[:] = [entry for entry in entries if entry[2] == entry[4].version]
            heapify(entries)
        entry = (-round(score, _DIGITS), point.tie, family.version, id(family), family)
        heappush(entries, entry)
