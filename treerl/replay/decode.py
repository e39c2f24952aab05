"""The rows of a stored tree as a `Tree` again, all columns equal to those that were put."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treerl.replay.rows import FINISH_NAMES, ORIGIN_NAMES
from treerl.search.sampler import Finish
from treerl.search.tree import NO_PARENT, Tree
from treerl.verifiers.verdict import Verdict

Stored = Mapping[Any, Any]
"""A row as the database gives it, by column name."""

_FINISHES = {name: value for value, name in FINISH_NAMES.items()}
_ORIGINS = {name: value for value, name in ORIGIN_NAMES.items()}


def decode(
    head: Stored,
    draws: Sequence[Stored],
    visits: Sequence[Stored],
) -> Tree:
    """The tree from its `tree` row (with the prompt's `tokens`), its draws (with `tokens`), its visits."""

    prompt = np.frombuffer(head["tokens"], "<i4")
    tree = Tree.from_columns(
        _node_columns(visits),
        _draw_columns(draws, len(prompt), head["seed"]),
        _token_columns(draws, prompt),
        seed=head["seed"],
        max_completion_length=head["max_completion_length"],
    )
    tree.meta = json.loads(head["meta"])
    for visit in visits:
        if visit["outcome"] is not None:
            tree.verdicts[visit["row"]] = Verdict(
                visit["outcome"],
                visit["reward"] if visit["outcome"] == "scored" else None,
                visit["answer"],
                json.loads(visit["detail"]) if visit["detail"] else {},
                visit["seconds"],
            )
    return tree


def _node_columns(visits: Sequence[Stored]) -> dict[str, NDArray[Any]]:
    same = ("start", "stop", "offset", "visits", "value_sum", "chosen_by_token", "selected")
    columns: dict[str, NDArray[Any]] = {n: np.array([v[n] for v in visits]) for n in same}
    columns["parent"] = np.array([v["parent_row"] for v in visits])
    columns["draw"] = np.array([v["draw_row"] for v in visits])
    columns["prior"] = np.array([v["prior"] for v in visits], np.float64)
    columns["reward"] = np.array([v["reward"] for v in visits], np.float64)
    columns["finish"] = np.array([_FINISHES[v["finish"]] for v in visits])
    columns["origin"] = np.array([_ORIGINS[v["origin"]] for v in visits])
    return columns


def _draw_columns(draws: Sequence[Stored], n_prompt: int, seed: int) -> dict[str, NDArray[Any]]:
    first = {
        "parent": NO_PARENT,
        "offset": 0,
        "k": 0,
        "seed": seed,
        "policy_version": 0,
        "source": 0,
    }
    columns = {
        name: np.array([value, *(d[name] for d in draws)], np.int64)
        for name, value in first.items()
    }
    columns["finish"] = np.array([Finish.OPEN, *(_FINISHES[d["finish"]] for d in draws)])
    columns["length"] = np.array([n_prompt, *(len(d["tokens"]) // 4 for d in draws)], np.int64)
    columns["start"] = np.cumsum(columns["length"]) - columns["length"]
    return columns


def _token_columns(draws: Sequence[Stored], prompt: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    absent = np.full(len(prompt), np.nan, np.float32)
    versions = [np.full(len(prompt), NO_PARENT, np.int32)]
    masks = [np.zeros(len(prompt), np.bool_)]
    for draw in draws:
        length = len(draw["tokens"]) // 4
        versions.append(
            np.full(length, draw["policy_version"], np.int32)
            if draw["versions"] is None
            else np.frombuffer(draw["versions"], "<i4")
        )
        masks.append(
            np.ones(length, np.bool_)
            if draw["mask"] is None
            else np.frombuffer(draw["mask"], np.bool_)
        )
    floats = {
        name: np.concatenate([absent, *(np.frombuffer(d[source], "<f4") for d in draws)])
        for name, source in (("logprob", "logprobs"), ("entropy", "entropies"))
    }
    token = np.concatenate([prompt, *(np.frombuffer(d["tokens"], "<i4") for d in draws)])
    return {
        "token": token,
        **floats,
        "policy_version": np.concatenate(versions),
        "mask": np.concatenate(masks),
    }
