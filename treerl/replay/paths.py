"""Reading whole paths back: from the draw that ends one, through the draws it branched from, to the prompt."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from treerl.replay import schema
from treerl.replay.entry import chunks

Arrays = dict[str, NDArray[Any]]
"""tokens int32, logprobs float32, entropies float32, versions int32, mask bool; one length."""

NAMES = ("tokens", "logprobs", "entropies", "versions", "mask")


class Shape(NamedTuple):
    """A stored draw without its arrays. `parent`: row of the draw it branches from, after `offset` tokens."""

    id: int
    parent: int
    offset: int
    policy_version: int


def tree_shapes(connection: sa.Connection, trees: Iterable[int]) -> dict[int, dict[int, Shape]]:
    """By tree and row, the draws of these trees."""
    columns = [schema.draw.c[name] for name in ("tree_id", "row", *Shape._fields)]
    query = sa.select(*columns)
    shapes: dict[int, dict[int, Shape]] = {}
    for some in chunks(trees):
        for tree_id, row, *values in connection.execute(
            query.where(schema.draw.c.tree_id.in_(some))
        ):
            shapes.setdefault(tree_id, {})[row] = Shape(*values)
    return shapes


def chain(shapes: Mapping[int, Shape], row: int) -> list[Shape]:
    """Draws from the prompt to `row`, in the order of the path."""
    found = []
    while row != 0:
        found.append(shapes[row])
        row = shapes[row].parent
    return found[::-1]


def draw_arrays(connection: sa.Connection, draws: Iterable[int]) -> dict[int, Arrays]:
    """By draw id, the arrays of the whole draw."""
    draw, node = schema.draw, schema.node
    columns = [
        draw.c[n] for n in ("id", "policy_version", "logprobs", "entropies", "versions", "mask")
    ]
    query = sa.select(*columns, node.c.tokens).join(node, node.c.id == draw.c.node_id)
    arrays: dict[int, Arrays] = {}
    for some in chunks(draws):
        for row in connection.execute(query.where(draw.c.id.in_(some))):
            tokens = np.frombuffer(row.tokens, "<i4")
            full = np.full(len(tokens), row.policy_version, np.int32)
            arrays[row.id] = {
                "tokens": tokens,
                "logprobs": np.frombuffer(row.logprobs, "<f4"),
                "entropies": np.frombuffer(row.entropies, "<f4"),
                "versions": full if row.versions is None else np.frombuffer(row.versions, "<i4"),
                "mask": full == full if row.mask is None else np.frombuffer(row.mask, np.bool_),
            }
    return arrays


def join(path: Sequence[Shape], arrays: Mapping[int, Arrays]) -> Arrays:
    """The arrays of a whole path: of every draw but the last, the tokens before the next one's branch point."""
    ends = [*(draw.offset for draw in path[1:]), None]
    return {
        name: np.concatenate([arrays[d.id][name][:end] for d, end in zip(path, ends, strict=True)])
        for name in NAMES
    }
