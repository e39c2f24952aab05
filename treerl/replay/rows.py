"""A `Tree` as rows of the tables (back again in treerl.replay.decode); arrays and dicts alone, no SQL.

Encoding is a snapshot: the tree may change afterwards. What cannot be brought back (NaN log-probs of
sampled tokens, infinities) is refused here, before anything is written.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treerl.canon import canonical_json, digest, token_bytes
from treerl.errors import StoreError
from treerl.problem import Problem
from treerl.replay.keys import (
    Provenance,
    columns_key,
    path_key,
    problem_key,
    prompt_key,
    text_key,
)
from treerl.search.sampler import Finish, Origin
from treerl.search.tree import Tree
from treerl.verifiers.verdict import Verdict

Row = dict[str, Any]
Columns = dict[str, list[Any]]
"""Many rows, as one list a column: a batch of trees is entered without a dict for each row."""

RIGHT_AT = 1.0
"""A reward from which a solution counts as right, in counts and as the default of what is reused."""

FINISH_NAMES = {int(finish): finish.name.lower() for finish in Finish}
ORIGIN_NAMES = {int(origin): origin.name.lower() for origin in Origin}


@dataclass(frozen=True)
class Claim:
    """A tree leased to a worker (treerl.replay.lease). `attempts`: claims of it, this one included."""

    ticket: int
    owner: str
    problem: Problem
    step: int
    number: int
    attempts: int


@dataclass(frozen=True)
class TreeRows:
    """Rows of one tree with keys where the tables have ids.

    nodes, draws: one a draw but the prompt, in the order of the tree's draws; visits: one a node. solutions:
    one an ended path. verdicts: one a judged leaf. The last three and `draws` name paths by `path_key`.
    claim: the ticket that the tree replaces, if it was searched under a lease.
    """

    step: int
    number: int
    problem: Row
    prompt: Row
    tree: Row
    nodes: Columns
    solutions: Columns
    draws: Columns
    verdicts: Columns
    visits: Columns
    provenance: Provenance
    claim: Claim | None = None


def encode(
    tree: Tree,
    *,
    step: int,
    number: int,
    problem: Problem,
    provenance: Provenance,
    texts: Mapping[int, str],
    claim: Claim | None = None,
) -> TreeRows:
    """All rows of a tree. `texts`: response text of ended leaves, by node row. Raises StoreError."""
    check(tree)
    problem_id = problem_key(problem)
    prompt = tree.tokens.token[: tree.n_prompt]
    prompt_id = prompt_key(problem_id, provenance.tokenizer, prompt)
    paths = draw_paths(tree)
    keys = [b"", *(path_key(prompt_id, path) for path in paths[1:])]
    ended = tree.leaves().tolist()
    details = {row: _detail(verdict) for row, verdict in tree.verdicts.items()}
    return TreeRows(
        step=step,
        number=number,
        problem=problem_row(problem),
        prompt={
            "key": prompt_id,
            "tokenizer": provenance.tokenizer,
            "n_tokens": len(prompt),
            "tokens": token_bytes(prompt),
        },
        tree=_tree_row(tree),
        nodes=_nodes(tree, keys, paths),
        solutions=_solutions(tree, ended, keys, paths, texts),
        draws=_draws(tree, keys),
        verdicts=_verdicts(tree, ended, keys, details),
        visits=_visits(tree, details),
        provenance=provenance,
        claim=claim,
    )


def problem_row(problem: Problem) -> Row:
    """The `problem` row of a problem, without id."""
    columns = _json(dict(problem.columns), "columns of the problem")
    return {
        "key": problem_key(problem),
        "kind": problem.kind,
        "question": problem.question,
        "truth": problem.truth,
        "columns": columns,
        "columns_key": columns_key(columns),
    }


def check(tree: Tree) -> None:
    """Raises StoreError for a tree that would not come back as it is."""
    draws, tokens = tree.draws, tree.tokens
    ends = np.cumsum(draws.length)
    if ends[-1] != len(tokens) or (draws.start != ends - draws.length).any():
        raise StoreError("a tree to be stored does not have its draws' tokens one after the other")
    sampled = slice(tree.n_prompt, None)
    missing = ~np.isfinite(tokens.logprob[sampled]) & tokens.mask[sampled]
    if missing.any():
        at = int(np.flatnonzero(missing)[0]) + tree.n_prompt
        draw = int(np.searchsorted(ends, at, side="right"))
        raise StoreError(
            f"a tree to be stored has log-prob {tokens.logprob[at]} at token {at - draws.start[draw]} of "
            f"draw {draw}: it could never be used again; check the sampler's precision"
        )
    if np.isinf(tokens.entropy).any():
        raise StoreError("a tree to be stored has an infinite entropy; absent entropies are NaN")
    nodes = tree.nodes
    if not np.isfinite(nodes.value_sum).all() or np.isinf([nodes.prior, nodes.reward]).any():
        raise StoreError("a tree to be stored has an infinite reward, value_sum or prior")
    for row, verdict in tree.verdicts.items():
        if verdict.reward is not None and verdict.reward != nodes.reward[row]:
            raise StoreError(
                f"node {row} has reward {nodes.reward[row]}, its verdict says {verdict.reward}"
            )


def draw_paths(tree: Tree) -> list[NDArray[np.int32]]:
    """Completion tokens up to the end of each draw (entry 0, the prompt: none)."""
    draws, token = tree.draws, tree.tokens.token
    n_prompt = tree.n_prompt
    paths: list[NDArray[np.int32]] = [token[:0]]
    columns = (draws.parent, draws.offset, draws.start, draws.length)
    for parent, offset, start, length in zip(*(c[1:].tolist() for c in columns), strict=True):
        before = (
            offset - n_prompt
            if parent == 0
            else len(paths[parent]) - int(draws.length[parent]) + offset
        )
        paths.append(np.concatenate([paths[parent][:before], token[start : start + length]]))
    return paths


def _tree_row(tree: Tree) -> Row:
    nodes, draws = tree.nodes, tree.draws
    finish = nodes.finish
    ended = (finish == Finish.STOP) | (finish == Finish.LENGTH)
    fresh = ended & (draws.source[nodes.draw] == 0)
    return {
        "seed": tree.seed,
        "max_completion_length": tree.max_completion_length,
        "meta": _json(tree.meta, "meta of the tree"),
        "content_key": content_key(tree),
        "state_key": state_key(tree),
        "n_nodes": len(nodes),
        "n_leaves": int(fresh.sum()),
        "n_right": int((nodes.reward[fresh] >= RIGHT_AT).sum()),
        "n_generated": tree.n_generated,
        "n_cached": int(draws.length[draws.source > 0].sum()),
    }


def content_key(tree: Tree) -> bytes:
    """16 bytes over seed, draws and tokens as drawn: two trees with one key are the same search."""
    draws, tokens = tree.draws, tree.tokens
    columns = (
        draws.parent,
        draws.offset,
        draws.seed,
        draws.finish,
        draws.policy_version,
        draws.source,
    )
    return digest(
        "tree",
        tree.seed,
        *(np.asarray(column, "<i8").tobytes() for column in columns),
        token_bytes(tokens.token),
        np.asarray(tokens.logprob, "<f4").tobytes(),
        np.asarray(tokens.entropy, "<f4").tobytes(),
        np.asarray(tree.nodes.draw, "<i4").tobytes(),
        np.asarray(tree.nodes.stop, "<i8").tobytes(),
    )


_STATE_COLUMNS = {
    "visits": "<i8",
    "parent": "<i4",
    "offset": "<i8",
    "value_sum": "<f8",
    "prior": "<f8",
    "finish": "i1",
    "reward": "<f8",
    "origin": "i1",
    "chosen_by_token": "?",
    "selected": "?",
}


def state_key(tree: Tree) -> bytes:
    """16 bytes over all else that comes back: statistics, verdicts, meta, versions and mask of tokens."""
    nodes, tokens = tree.nodes, tree.tokens
    verdicts = [
        [row, v.outcome, _plain(v.reward), v.answer, dict(v.detail), _plain(v.seconds)]
        for row, v in sorted(tree.verdicts.items())
    ]
    return digest(
        "state",
        tree.max_completion_length,
        # Read back once: what JSON does to keys that are no strings happens before the key is taken.
        canonical_json(json.loads(_json([tree.meta, verdicts], "meta or a verdict's detail"))),
        np.asarray(tree.draws.k, "<i4").tobytes(),
        np.asarray(tokens.policy_version, "<i4").tobytes(),
        np.asarray(tokens.mask, "?").tobytes(),
        *(_plain_bytes(getattr(nodes, name), dtype) for name, dtype in _STATE_COLUMNS.items()),
    )


def _plain(value: float | None) -> float | None:
    """As databases give it back: no integer, no negative zero."""
    return None if value is None else float(value) + 0.0


def _plain_bytes(values: NDArray[Any], dtype: str) -> bytes:
    if dtype == "<f8":
        values = np.where(np.isnan(values), np.nan, values + 0.0)
    return np.asarray(values, dtype).tobytes()


def _nodes(tree: Tree, keys: Sequence[bytes], paths: Sequence[NDArray[np.int32]]) -> Columns:
    tokens = token_bytes(tree.tokens.token)
    starts, lengths = tree.draws.start[1:].tolist(), tree.draws.length[1:].tolist()
    return {
        "path_key": list(keys[1:]),
        "start": [len(path) - length for path, length in zip(paths[1:], lengths, strict=True)],
        "n_tokens": lengths,
        "tokens": [tokens[4 * a : 4 * (a + n)] for a, n in zip(starts, lengths, strict=True)],
    }


def _solutions(
    tree: Tree,
    ended: Sequence[int],
    keys: Sequence[bytes],
    paths: Sequence[NDArray[np.int32]],
    texts: Mapping[int, str],
) -> Columns:
    draws = tree.nodes.draw.tolist()
    rows: dict[bytes, tuple[int, str | None]] = {}
    for leaf in ended:
        draw = draws[leaf]
        rows.setdefault(keys[draw], (len(paths[draw]), texts.get(leaf)))
    return {
        "path_key": list(rows),
        "n_tokens": [length for length, _ in rows.values()],
        "text": [text for _, text in rows.values()],
        "text_key": [text_key(text) for _, text in rows.values()],
    }


def _draws(tree: Tree, keys: Sequence[bytes]) -> Columns:
    draws, tokens = tree.draws, tree.tokens
    names = ("parent", "offset", "k", "seed", "policy_version", "source")
    columns: Columns = {name: getattr(draws, name)[1:].tolist() for name in names}
    spans = [
        slice(start, start + length)
        for start, length in zip(draws.start[1:].tolist(), draws.length[1:].tolist(), strict=True)
    ]
    columns["row"] = list(range(1, len(draws)))
    columns["finish"] = [FINISH_NAMES[value] for value in draws.finish[1:].tolist()]
    columns["path_key"] = list(keys[1:])
    for name, values in (("logprobs", tokens.logprob), ("entropies", tokens.entropy)):
        data = np.asarray(values, "<f4").tobytes()
        columns[name] = [data[4 * span.start : 4 * span.stop] for span in spans]
    version, mask = np.asarray(tokens.policy_version, "<i4"), tokens.mask
    mixed = version != np.repeat(draws.policy_version, draws.length)
    columns["versions"] = _exceptions(version, mixed, spans)
    columns["mask"] = _exceptions(mask, ~mask, spans)
    return columns


def _exceptions(
    values: NDArray[Any], unusual: NDArray[np.bool_], spans: Sequence[slice]
) -> list[bytes | None]:
    """By span its values as bytes, None where no token is unusual."""
    first = spans[0].start if spans else 0
    if not unusual[first:].any():
        return [None] * len(spans)
    return [values[span].tobytes() if unusual[span].any() else None for span in spans]


def _verdicts(
    tree: Tree,
    ended: Sequence[int],
    keys: Sequence[bytes],
    details: Mapping[int, str | None],
) -> Columns:
    leaves = set(ended)
    found = [(leaf, verdict) for leaf, verdict in sorted(tree.verdicts.items()) if leaf in leaves]
    draws = tree.nodes.draw.tolist()
    return {
        "path_key": [keys[draws[leaf]] for leaf, _ in found],
        "outcome": [verdict.outcome for _, verdict in found],
        "reward": [verdict.reward for _, verdict in found],
        "answer": [verdict.answer for _, verdict in found],
        "detail": [details[leaf] for leaf, _ in found],
        "seconds": [verdict.seconds for _, verdict in found],
    }


def _visits(tree: Tree, details: Mapping[int, str | None]) -> Columns:
    nodes = tree.nodes
    plain = ("start", "stop", "offset", "visits", "value_sum", "chosen_by_token", "selected")
    columns: Columns = {name: getattr(nodes, name).tolist() for name in plain}
    columns["parent_row"] = nodes.parent.tolist()
    columns["draw_row"] = nodes.draw.tolist()
    columns["prior"] = absent_as_none(nodes.prior)
    columns["reward"] = absent_as_none(nodes.reward)
    columns["finish"] = [FINISH_NAMES[value] for value in nodes.finish.tolist()]
    columns["origin"] = [ORIGIN_NAMES[value] for value in nodes.origin.tolist()]
    verdicts = [tree.verdicts.get(row) for row in range(len(nodes))]
    columns["outcome"] = [v and v.outcome for v in verdicts]
    columns["answer"] = [v and v.answer for v in verdicts]
    columns["detail"] = [details.get(row) for row in range(len(nodes))]
    columns["seconds"] = [None if v is None else v.seconds for v in verdicts]
    columns["row"] = list(range(len(nodes)))
    return columns


def absent_as_none(values: NDArray[Any]) -> list[float | None]:
    """NaN (absent) as None. float[N] -> N items."""
    return [None if value != value else value for value in values.tolist()]


def _detail(verdict: Verdict) -> str | None:
    return _json(dict(verdict.detail), "detail of a verdict") if verdict.detail else None


def _json(value: Any, what: str) -> str:
    try:
        return canonical_json(value)
    except (TypeError, ValueError) as error:
        raise StoreError(f"the {what} cannot be stored as JSON: {error}") from None
