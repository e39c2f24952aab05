"""Attention by blocks: chunks of tokens, each over the keys of its own path, in a few padded batches.

Packs of many small trees have few true query-key pairs for their length. A chunk is at most `CHUNK` tokens of
one span; its queries and the keys of its path are gathered, chunks of like depth together, so that all
products are batched. Only the gathered copies are padded: everything outside attention works on real tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from treerl.policy.batch import PackedBatch

CHUNK = 16
"""Queries of a chunk, at most."""
BLOCKS = 4
"""Batches of chunks, at most: each is padded to its deepest chunk."""

_Chunk = tuple[int, int, NDArray[np.int64]]
"""First token, the one behind the last, and the keys: the path down to the last."""


@dataclass(frozen=True, slots=True)
class Block:
    """Chunks computed together. queries int64[c, q], keys int64[c, k]: real tokens, 0 as padding.

    mask: additive, [c * K, q * H/K, k]; heads of one key-value group are rows of one product.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Blocks:
    """A batch as chunks. slots int64[n]: flat slots of its real tokens, in order; the blocks number these.

    back int64[n]: where each token stands among the queries of all blocks. groups: K.
    """

    slots: NDArray[np.int64]
    blocks: tuple[Block, ...]
    back: Tensor
    groups: int


def find_blocks(batch: PackedBatch, *, heads: int, groups: int, dtype: torch.dtype) -> Blocks:
    """The chunks of `batch`, from `prev` alone, for H = `heads` and K = `groups`."""
    slots = np.flatnonzero(batch.source.reshape(-1) >= 0)
    number = np.full(batch.source.size + 1, -1)
    number[slots] = np.arange(len(slots))
    chunks = sorted(_chunks(number[batch.prev.reshape(-1)[slots]]), key=lambda item: len(item[2]))
    depths = np.array([len(keys) for _, _, keys in chunks])
    back = np.empty(len(slots), np.int64)
    blocks, at = [], 0
    for first, last in _alike(depths):
        queries, keys, depth = _padded(chunks[first:last], back, at)
        at += queries.size
        hidden = torch.from_numpy(np.arange(keys.shape[1]) > depth[..., None])
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
        mask = mask.repeat_interleave(heads // groups, 1).repeat_interleave(groups, 0)
        blocks.append(Block(torch.from_numpy(queries), torch.from_numpy(keys), mask))
    return Blocks(slots, tuple(blocks), torch.from_numpy(back), groups)


def _padded(
    chunks: list[_Chunk], back: NDArray[np.int64], at: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Queries [c, q], keys [c, k] and each query's place on its path [c, q] (padding: 0, which it sees).

    Writes where each token stands, counted from `at`, into `back`.
    """
    queries = np.zeros((len(chunks), max(stop - start for start, stop, _ in chunks)), np.int64)
    keys = np.zeros((len(chunks), len(chunks[-1][2])), np.int64)
    depth = np.zeros(queries.shape, np.int64)
    columns = np.arange(queries.shape[1])
    for row, (start, stop, path) in enumerate(chunks):
        count = stop - start
        queries[row, :count] = columns[:count] + start
        keys[row, : len(path)] = path
        depth[row, :count] = columns[:count] + (len(path) - count)
        back[start:stop] = columns[:count] + (at + row * len(columns))
    return queries, keys, depth


def _chunks(prev: NDArray[np.int64]) -> Iterator[_Chunk]:
    """Runs of tokens that follow one another, cut every `CHUNK`; prev int64[n], -1 for first tokens."""
    index = np.arange(len(prev))
    starts = np.flatnonzero((prev != index - 1) | (prev < 0))
    stops = np.append(starts[1:], len(prev)).tolist()
    above = (np.searchsorted(starts, prev[starts], side="right") - 1).tolist()
    paths: list[NDArray[np.int64]] = []
    for run, (start, stop) in enumerate(zip(starts.tolist(), stops, strict=True)):
        path = index[start:stop]
        if prev[start] >= 0:
            upper = paths[above[run]]
            cut = stops[above[run]] - 1 - int(prev[start])
            path = np.concatenate([upper[: len(upper) - cut], path])
        paths.append(path)
        depth = len(path) - (stop - start)
        for first in range(start, stop, CHUNK):
            last = min(first + CHUNK, stop)
            yield first, last, path[: depth + last - start]


def _alike(depths: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Stretches of the ascending `depths` that hold about equally many keys."""
    share = np.cumsum(depths) / depths.sum()
    cuts = np.searchsorted(share, np.arange(1, BLOCKS) / BLOCKS)
    bounds = np.unique([0, *cuts, len(depths)]).tolist()
    yield from pairwise(bounds)


def attend_blocks(query: Tensor, key_value: Tensor, blocks: Blocks) -> Tensor:
    """query [n, H D], key_value [n, 2 K D] (keys, then values), positions applied: mixed values [n, H D]."""
    parts = [_attend(query, key_value, block, blocks.groups) for block in blocks.blocks]
    # Gathers by embedding: its backward adds rows much faster than that of indexing.
    return F.embedding(blocks.back, torch.cat(parts))


def _attend(query: Tensor, key_value: Tensor, block: Block, groups: int) -> Tensor:
    """One block: [c * q, H D]."""
    chunks, width = block.queries.shape
    size = key_value.shape[1] // (2 * groups)
    queries = F.embedding(block.queries, query).view(chunks, width, groups, -1)
    queries = queries.transpose(1, 2).reshape(chunks * groups, -1, size)
    both = F.embedding(block.keys, key_value).view(chunks, -1, 2, groups, size)
    keys, values = (
        part.squeeze(2).transpose(1, 2).reshape(chunks * groups, -1, size)
        for part in torch.split(both, 1, 2)
    )
    scores = torch.baddbmm(block.mask, queries, keys.transpose(1, 2), alpha=size**-0.5)
    mixed = torch.bmm(scores.softmax(-1), values).view(chunks, groups, width, -1)
    return mixed.transpose(1, 2).reshape(chunks * width, -1)
