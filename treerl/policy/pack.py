"""Packing: judged trees to rows in which every tree token stands once, in depth-first preorder.

The parentage is the tree's own; nothing is rebuilt by comparing tokens. Only spans on paths to selected
ended leaves are packed. A tree over the budget is cut along the order of its leaves where it repeats the
fewest tokens; a repeated token is seen but owned by one part only. Attention and loss are elsewhere.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from treerl.credit.masses import TokenCredit
from treerl.errors import ConfigError
from treerl.policy.batch import FloatArray, IntArray, PackedBatch
from treerl.search.sampler import Finish
from treerl.search.tree import NO_PARENT, ROOT, Tree

CALL_TOKENS = 96
"""What one more forward and backward call costs, in tokens: sets how much padding is worth a call less."""
BUCKET = 128
"""Smallest bucket of padded row lengths, and the block of FlexAttention."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A tree, or a part of one, laid out from slot 0: columns of one length T, `prev` and `end` local."""

    tree: int
    source: IntArray
    position: IntArray
    prev: IntArray
    end: IntArray
    own: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.source)


def pack_trees(
    trees: Sequence[Tree],
    credits: Sequence[TokenCredit] | None = None,
    *,
    max_tokens: int,
    row_tokens: int = 0,
    mode: Literal["tree", "flat"] = "tree",
    bucket: bool = False,
    credited_only: bool = False,
) -> list[PackedBatch]:
    """Packs the selected ended leaves of `trees` into batches of at most `max_tokens` slots, padding included.

    row_tokens: trees share a row while it holds no more than this (0: one tree a row); a longer tree has a
    row of its own and is cut only above `max_tokens`. Rows of like length form one batch [B, T].
    `Policy.row_tokens` and `Policy.bucket` are the settings that suit the policy's device.
    bucket: T is rounded up to powers of two and their midpoints, from 128 (static shapes for CUDA).
    mode "flat": one row a leaf. The whole mass of a shared token lies on the first row that holds it
    (`own`): the loss is a sum of mass times a function of the token's log-prob, which is the same in all
    rows, so loss and gradient equal those of masses spread over the rows.
    credited_only: spans without mass in or below them are left out (`credited_ends`). Their gradient is 0, so
    nothing changes for a loss of masses alone; KL and entropy act on every token and need them.
    Without `credits` the masses are 0 and `weight` is 1 on owned tokens. Trees without a selected ended
    leaf are left out. Raises ConfigError if a single path is longer than `max_tokens`.
    """
    pieces: list[_Piece] = []
    for index, tree in enumerate(trees):
        if credited_only and credits is not None:
            ends = credited_ends(tree, credits[index])
        else:
            ends = training_leaves(tree)
        pieces.extend(_cut(tree, index, ends, max_tokens, flat=mode == "flat"))
    capacity = 0 if mode == "flat" else min(row_tokens, max_tokens)
    rows = _first_fit([len(piece) for piece in pieces], capacity)
    lengths = [sum(len(pieces[i]) for i in row) for row in rows]
    batches = []
    for group in _group_rows(lengths, max_tokens, bucket):
        slots = max(lengths[r] for r in group)
        if bucket:
            slots = min(_bucket(slots), max(slots, max_tokens))
        batches.append(_fill([[pieces[i] for i in rows[r]] for r in group], slots, trees, credits))
    return batches


def scatter_to_trees(
    batches: Sequence[PackedBatch], values: Sequence[NDArray[Any]], trees: Sequence[Tree]
) -> list[FloatArray]:
    """Per-slot `values` [B, T], one array a batch, as float64[n_tokens] a tree; NaN where no slot owns."""
    columns: list[FloatArray] = [np.full(len(tree.tokens), np.nan) for tree in trees]
    starts = np.cumsum([0, *(len(column) for column in columns)])
    flat = np.full(starts[-1], np.nan)
    for batch, value in zip(batches, values, strict=True):
        own = batch.own
        flat[starts[batch.tree[own]] + batch.source[own]] = value[own]
    return [flat[starts[i] : starts[i + 1]] for i in range(len(columns))]


def gather_from_trees(batch: PackedBatch, columns: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Columns over each tree's tokens as float32[B, T] of `batch`; NaN on padding."""
    starts = np.cumsum([0, *(len(column) for column in columns)])
    flat = np.concatenate(columns).astype(np.float32)
    real = batch.source >= 0
    value = np.full(batch.shape, np.nan, np.float32)
    value[real] = flat[starts[batch.tree[real]] + batch.source[real]]
    return value


# One tree --------------------------------------------------------------------------------------------------


def training_leaves(tree: Tree) -> list[int]:
    """Rows of the selected ended leaves, depth-first with children in order of creation."""
    finish, selected = tree.nodes.finish, tree.nodes.selected
    ended = (finish == Finish.STOP) | (finish == Finish.LENGTH)
    wanted = np.flatnonzero(ended & selected)
    if len(wanted) < 2:
        return [int(row) for row in wanted]
    keep = set(wanted.tolist())
    return [row for row in tree.walk() if row in keep]


def credited_ends(tree: Tree, credit: TokenCredit) -> list[int]:
    """Rows with mass and none below them, depth-first: where the paths end that a gradient needs."""
    nodes = tree.nodes
    counted = np.concatenate([[0], np.cumsum((credit.positive > 0) | (credit.negative > 0))])
    has_mass = counted[nodes.stop] > counted[nodes.start]
    below = tree.subtree_sum(has_mass.astype(np.float64)) - has_mass
    ends = set(np.flatnonzero(has_mass & (below == 0)).tolist())
    return [row for row in tree.walk() if row in ends]


def _cut(tree: Tree, index: int, leaves: list[int], budget: int, *, flat: bool) -> list[_Piece]:
    if not leaves:
        return []
    depth, shared = _leaf_depths(tree, leaves)
    if depth.max() > budget:
        raise ConfigError(
            f"tree {index} has a path of {int(depth.max())} tokens, above "
            f"update.max_tokens_per_microbatch = {budget}: raise it to at least the path, or lower "
            "sampler.max_prompt_length + sampler.max_completion_length"
        )
    if flat:
        cuts = list(range(len(leaves) + 1))
    else:
        cuts = cut_leaves(depth, shared, budget)
    owned: set[int] = set()
    return [_lay_out(tree, index, leaves[a:b], owned) for a, b in pairwise(cuts)]


def _leaf_depths(tree: Tree, leaves: list[int]) -> tuple[IntArray, IntArray]:
    """Tokens on each leaf's path, and of the path it shares with the leaf before (0 for the first)."""
    nodes = tree.nodes
    stop = (nodes.offset + nodes.stop - nodes.start).tolist()
    parent = nodes.parent.tolist()
    before: set[int] = set()
    shared = []
    for leaf in leaves:
        path, row = set(), leaf
        fork = 0
        while row != NO_PARENT:
            if row in before and not fork:
                fork = stop[row]
            path.add(row)
            row = parent[row]
        shared.append(fork)
        before = path
    return np.array([stop[leaf] for leaf in leaves]), np.array(shared)


def cut_leaves(depth: IntArray, shared: IntArray, budget: int) -> list[int]:
    """Bounds of the parts [0, ..., n_leaves] that repeat the fewest tokens, each part within `budget`.

    T' = T + sum over cuts of `shared` at the cut, by dynamic programming over the last cut.
    """
    grown = np.cumsum(depth - shared).tolist()
    first, repeat = depth.tolist(), shared.tolist()
    best, cut = [0], [0]
    for stop in range(1, len(first) + 1):
        cost, at = sys.maxsize, stop - 1
        for start in range(stop - 1, -1, -1):
            if first[start] + grown[stop - 1] - grown[start] > budget:
                break
            total = best[start] + repeat[start]
            if total <= cost:
                cost, at = total, start
        best.append(cost)
        cut.append(at)
    bounds = [len(first)]
    while bounds[-1]:
        bounds.append(cut[bounds[-1]])
    return bounds[::-1]


def _lay_out(tree: Tree, index: int, leaves: list[int], owned: set[int]) -> _Piece:
    """The spans above `leaves` in preorder; spans not in `owned` are owned here and enter it."""
    nodes = tree.nodes
    parents = nodes.parent
    kept: set[int] = set()
    for leaf in leaves:
        row = leaf
        while row != NO_PARENT and row not in kept:
            kept.add(row)
            row = int(parents[row])
    preorder: list[int] = []
    stack = [ROOT]
    while stack:
        row = stack.pop()
        preorder.append(row)
        stack.extend(child for child in reversed(tree.children(row)) if child in kept)
    spans = np.array(preorder)
    start = nodes.start[spans]
    length = nodes.stop[spans] - start
    stop_slot = np.cumsum(length)
    first = stop_slot - length
    slot = np.arange(stop_slot[-1])
    place = {row: i for i, row in enumerate(preorder)}
    parent = [place[row] for row in parents[spans[1:]].tolist()]
    below = stop_slot.tolist()
    for i in range(len(parent), 0, -1):
        below[parent[i - 1]] = max(below[parent[i - 1]], below[i])
    prev = slot - 1
    prev[first[1:]] = stop_slot[parent] - 1
    source = np.repeat(start - first, length) + slot
    mine = np.array([row not in owned and row != ROOT for row in preorder])
    owned.update(preorder)
    return _Piece(
        tree=index,
        source=source,
        position=np.repeat(nodes.offset[spans] - first, length) + slot,
        prev=prev,
        end=np.repeat(below, length),
        own=np.repeat(mine, length) & tree.tokens.mask[source],
    )


# Rows and batches ------------------------------------------------------------------------------------------


def _first_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """First-fit decreasing: indices of the pieces of each row. A piece above `capacity` stands alone."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row, free in enumerate(room):
            if lengths[i] <= free:
                rows[row].append(i)
                room[row] -= lengths[i]
                break
        else:
            rows.append([i])
            room.append(capacity - lengths[i])
    return rows


def _group_rows(lengths: list[int], max_tokens: int, bucket: bool) -> list[list[int]]:
    """Rows of each batch: like lengths together, least slots plus `CALL_TOKENS` a batch, by dynamic program."""
    order = sorted(range(len(lengths)), key=lambda r: -lengths[r])
    width = [_bucket(lengths[r]) if bucket else lengths[r] for r in order]
    best, cut = [0], [0]
    for stop in range(1, len(order) + 1):
        cost, at = best[-1] + CALL_TOKENS + width[stop - 1], stop - 1
        for start in range(stop - 2, -1, -1):
            slots = (stop - start) * width[start]
            if slots > max_tokens:
                break
            total = best[start] + CALL_TOKENS + slots
            if total <= cost:
                cost, at = total, start
        best.append(cost)
        cut.append(at)
    groups = []
    stop = len(order)
    while stop:
        groups.append(order[cut[stop] : stop])
        stop = cut[stop]
    return groups[::-1]


def _bucket(length: int) -> int:
    """The next length of the ladder 128, 192, 256, 384, 512, ... (at most a third is padding)."""
    size = BUCKET
    while size < length:
        if size * 3 // 2 >= length and size * 3 // 2 % BUCKET == 0:
            return size * 3 // 2
        size *= 2
    return size


def _fill(
    rows: list[list[_Piece]],
    slots: int,
    trees: Sequence[Tree],
    credits: Sequence[TokenCredit] | None,
) -> PackedBatch:
    shape = (len(rows), slots)
    own = np.arange(slots, dtype=np.int32)
    batch = PackedBatch(
        token=np.zeros(shape, np.int32),
        position=np.zeros(shape, np.int32),
        prev=np.full(shape, -1, np.int32),
        end=np.broadcast_to(own + 1, shape).copy(),
        tree=np.full(shape, -1, np.int32),
        source=np.full(shape, -1, np.int32),
        own=np.zeros(shape, np.bool_),
        positive=np.zeros(shape),
        negative=np.zeros(shape),
        weight=np.zeros(shape),
        lp_old=np.full(shape, np.nan, np.float32),
        lp_beh=np.full(shape, np.nan, np.float32),
        lp_ref=np.full(shape, np.nan, np.float32),
    )
    for b, row in enumerate(rows):
        at = 0
        for piece in row:
            _place(batch, b, at, piece, trees, credits)
            at += len(piece)
    return batch


def _place(
    batch: PackedBatch,
    b: int,
    at: int,
    piece: _Piece,
    trees: Sequence[Tree],
    credits: Sequence[TokenCredit] | None,
) -> None:
    here = b, slice(at, at + len(piece))
    source, tokens = piece.source, trees[piece.tree].tokens
    batch.token[here] = tokens.token[source]
    batch.position[here] = piece.position
    batch.prev[here] = np.where(piece.prev < 0, -1, piece.prev + (b * batch.shape[1] + at))
    batch.end[here] = piece.end + at
    batch.tree[here] = piece.tree
    batch.source[here] = source
    batch.own[here] = piece.own
    batch.lp_beh[here] = tokens.logprob[source]
    if credits is None:
        batch.weight[here] = piece.own
        return
    credit = credits[piece.tree]
    batch.positive[here] = np.where(piece.own, credit.positive[source], 0.0)
    batch.negative[here] = np.where(piece.own, credit.negative[source], 0.0)
    batch.weight[here] = np.where(piece.own, credit.weight[source], 0.0)
