"""`Library`: a replay cache as the inspector reads it: problems, trees, and one tree opened with all about it.

What needs a model (texts of tokens, log-probs under a policy) is handed in by the engine as two functions, and
called when something on the screen needs it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from treerl.config import AdvantageSettings
from treerl.credit.assign import NEEDS_SIGNALS, advantages
from treerl.credit.dense import Signals
from treerl.errors import ConfigError
from treerl.inspect.model import TreeView, view_tree
from treerl.inspect.shade import Credit
from treerl.inspect.text import Decode, token_texts
from treerl.replay.browse import (
    DrawOrigin,
    Judgement,
    ProblemRow,
    browse_problems,
    draw_origins,
    judgements,
    tree_entropies,
)
from treerl.replay.store import RunInfo, Store, StoredTree, TreeInfo
from treerl.search.tree import Tree

ESTIMATORS: tuple[str, ...] = get_args(AdvantageSettings.model_fields["estimator"].annotation)


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probs of one tree under a policy at hand. policy, reference: which, in words."""

    signals: Signals
    policy: str
    reference: str


@dataclass(slots=True)
class Opened:
    """One tree with everything that is shown of it; `kept` holds what was computed on demand."""

    stored: StoredTree
    run: RunInfo
    view: TreeView
    decode: Decode
    origins: Mapping[int, DrawOrigin]
    judgements: Mapping[int, Sequence[Judgement]]
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def tree(self) -> Tree:
        """The tree itself."""
        return self.stored.tree

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The resolved recipe of its run; {} where the run kept none."""
        recipe: Mapping[str, Any] = self.run.config.get("recipe", self.run.config)
        return recipe

    @property
    def estimator(self) -> str:
        """The estimator that its run trained with."""
        own = self.recipe.get("advantage", {}).get("estimator")
        return own if own in ESTIMATORS else "tree_value"

    @property
    def title(self) -> str:
        """Which tree this is, in one line."""
        return f"{self.name} · {self.place}"

    @property
    def name(self) -> str:
        """`tree ID`."""
        return f"tree {self.stored.info.id}"

    @property
    def place(self) -> str:
        """Its run and step."""
        return f"{self.stored.info.run} step {self.stored.info.step}"

    def span_texts(self, row: int) -> list[str]:
        """The text of each token of a span, as it reads behind the tokens before it."""
        name = f"texts {row}"
        if name not in self.kept:
            tree = self.tree
            path = tree.path_tokens(row).tolist()
            count = int(tree.nodes.stop[row] - tree.nodes.start[row])
            lead = min(CONTEXT, len(path) - count)
            self.kept[name] = token_texts(self.decode, path[-count - lead :])[lead:]
        texts: list[str] = self.kept[name]
        return texts


CONTEXT = 4
"""Tokens before a span that settle how its first ones read."""


class Library:
    """One cache, read only. decoder: token ids to text for a run. score: a tree's log-probs under a policy.

    `score` raises TreerlError with the reason where there is no policy to score with.
    """

    def __init__(
        self,
        store: Store,
        decoder: Callable[[RunInfo], Decode],
        score: Callable[[RunInfo, StoredTree], Scored],
    ) -> None:
        self.store = store
        self._decoder = decoder
        self._score = score
        self._decoders: dict[str, Decode] = {}
        self._runs = {run.id: run for run in store.runs()}
        self._turn = Lock()

    def run_id(self, name: str | None) -> str | None:
        """Id of the newest run of that name or id; None for None. Raises ConfigError."""
        if name is None:
            return None
        found = [run.id for run in self._runs.values() if name in (run.name, run.id)]
        if not found:
            raise ConfigError(f"--run {name}: no such run; `treerl replay ls runs` lists them")
        return found[-1]

    def problems(self, run_id: str | None, limit: int) -> list[tuple[ProblemRow, float | None]]:
        """Problems, newest first, each with the mean entropy of its newest tree."""
        rows = browse_problems(self.store, run_id=run_id, limit=limit)
        entropy = tree_entropies(self.store, [row.newest for row in rows])
        return [(row, entropy.get(row.newest)) for row in rows]

    def trees(self, row: ProblemRow, run_id: str | None) -> list[tuple[TreeInfo, float | None]]:
        """The trees of a problem, newest first, each with its mean entropy."""
        infos = self.store.trees(problem=row.problem, run_id=run_id)[::-1]
        entropy = tree_entropies(self.store, [info.id for info in infos])
        return [(info, entropy.get(info.id)) for info in infos]

    def open(self, tree_id: int) -> Opened:
        """A tree with its view and provenance. Raises StoreError if there is none."""
        stored = self.store.load_tree(tree_id)
        run = self._runs.get(stored.info.run_id)
        if run is None:  # made after this library was opened
            self._runs = {run.id: run for run in self.store.runs()}
            run = self._runs[stored.info.run_id]
        decode = self._decode(run)
        problem = stored.problem
        view = view_tree(stored.tree, decode, question=problem.question, truth=problem.truth)
        origins = draw_origins(self.store, tree_id)
        _date_own_cached(view, stored, origins)
        return Opened(stored, run, view, decode, origins, judgements(self.store, tree_id))

    def warm(self) -> None:
        """Loads what the newest run's texts need, so that its trees open fast."""
        for run in list(self._runs.values())[-1:]:
            self._decode(run)

    def _decode(self, run: RunInfo) -> Decode:
        with self._turn:
            if run.id not in self._decoders:
                self._decoders[run.id] = self._decoder(run)
        return self._decoders[run.id]

    # On demand --------------------------------------------------------------------------------------------

    def scored(self, opened: Opened) -> Scored:
        """Log-probs of the tree under policy and reference, computed once. Raises TreerlError."""
        if "scored" not in opened.kept:
            opened.kept["scored"] = self._score(opened.run, opened.stored)
        scored: Scored = opened.kept["scored"]
        return scored

    def credit(self, opened: Opened, estimator: str) -> Credit:
        """What `estimator` pays the tree's tokens, other settings as its run had them. Raises TreerlError."""
        name = f"credit {estimator}"
        if name not in opened.kept:
            if estimator not in ESTIMATORS:
                raise ConfigError(f"estimator {estimator}: choose one of {', '.join(ESTIMATORS)}")
            signals = self.scored(opened).signals if estimator in NEEDS_SIGNALS else None
            settings = credit_settings(opened.recipe, estimator)
            opened.kept[name] = Credit(estimator, advantages(opened.tree, settings, signals))
        credit: Credit = opened.kept[name]
        return credit

    def ratio(self, opened: Opened) -> NDArray[Any]:
        """New over old probability of each token, float64[n_tokens]; NaN on tokens that are not trained."""
        new = np.asarray(self.scored(opened).signals.lp_old, np.float64)
        ratio: NDArray[Any] = np.exp(new - opened.tree.tokens.logprob)
        return ratio


def _date_own_cached(view: TreeView, stored: StoredTree, origins: Mapping[int, DrawOrigin]) -> None:
    """The age of cached spans that the same run drew earlier: their versions do compare."""
    for row, node in view.nodes.items():
        origin = origins.get(int(stored.tree.nodes.draw[row]))
        if node.cached and origin is not None and origin.source_run == stored.info.run:
            node.age = max(0, view.version - node.version)


def credit_settings(recipe: Mapping[str, Any], estimator: str) -> AdvantageSettings:
    """The run's advantage settings with another estimator: those of its own estimator's kind are kept."""
    own = dict(recipe.get("advantage", {}))
    if own.get("estimator") != estimator:
        # What was set for one estimator (its scale, its weights) says nothing about another.
        own = {key: own[key] for key in ("reward_low", "beta", "step_tokens") if key in own}
    own["estimator"] = estimator
    try:
        return AdvantageSettings.model_validate(own)
    except ValueError:  # settings of an older treerl
        return AdvantageSettings.model_validate({"estimator": estimator})
