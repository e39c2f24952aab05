"""`[search]`: how a tree grows, and where a rollout is cut to branch again."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from treerl.config.section import Fraction, NonNegative, Positive, Section


class EntropyTopK(Section):
    """CURE's cut: among the `top_k` tokens of highest entropy draw one uniformly."""

    kind: Literal["entropy_top_k"] = "entropy_top_k"
    top_k: Positive = 20
    min_characters: NonNegative = 2
    """Tokens whose stripped text is shorter do not qualify (2: CURE; 1 for character tokens)."""


class EntropyWindow(Section):
    """ARES' cut: the start of a window of `width` tokens whose mean entropy is over the threshold."""

    kind: Literal["entropy_window"] = "entropy_window"
    width: Positive = 4
    quantile: Fraction = 0.95
    """The threshold is the mean over the tree's rollouts of this quantile of token entropy."""


class RandomCut(Section):
    """A uniformly random token: the control every trigger must beat."""

    kind: Literal["random"] = "random"


CutSettings = Annotated[EntropyTopK | EntropyWindow | RandomCut, Field(discriminator="kind")]


class SearchSection(Section):
    """What every strategy has."""

    trees_per_step: Positive = 32
    """Problems a step, one tree each."""
    num_generations: Positive = 8
    """Leaves per tree."""
    budget_tokens: Positive | None = None
    """Generated tokens a tree may spend; None: no limit. No branch is opened once it is spent."""


class FlatSearch(SearchSection):
    """Independent samples from the prompt (GRPO, DAPO)."""

    kind: Literal["flat"] = "flat"


class CureSearch(SearchSection):
    """Branch again at critical tokens of finished rollouts (CURE, arXiv 2508.11016)."""

    kind: Literal["cure"] = "cure"
    num_generations: Positive = 16
    num_branches: Positive = 3
    """New continuations at each rollout's critical token; num_generations = rollouts * (1 + num_branches)."""
    cut: CutSettings = EntropyTopK()
    only_undecided: bool = True
    """Branch only problems whose first rollouts were neither all right nor all wrong (False: CURE)."""

    @property
    def num_initial(self) -> int:
        """Rollouts of the first wave."""
        return self.num_generations // (1 + self.num_branches)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.num_generations % (1 + self.num_branches):
            raise ValueError(
                f"num_generations = {self.num_generations} must be a multiple of "
                f"1 + num_branches = {1 + self.num_branches}"
            )
        return self


class DeepSearchSearch(SearchSection):
    """MCTS with a global frontier (DeepSearch, arXiv 2509.25454).

    improved: full responses first, then branches at the best frontier points, every leaf kept, stop on
    enough right and wrong leaves, on budget or on an empty frontier. faithful: the paper's chunk-wise
    expansion, one recorded leaf an expansion, local selection, exactly `num_generations` recorded leaves.
    """

    kind: Literal["deepsearch"] = "deepsearch"
    form: Literal["improved", "faithful"] = "improved"
    chunk_tokens: Positive = 256
    """Tokens of a chunk: a node in the faithful form, the grid of branch points in the improved one."""
    max_depth: Positive = 64
    """Chunks a path may have (faithful)."""
    width: Positive = 8
    """Children of an expanded node (faithful)."""
    num_initial: Positive = 4
    """Full responses before the first branch (improved)."""
    num_branches: Positive = 2
    """New continuations at a selected frontier point (improved)."""
    enough: Positive | None = None
    """Stop once this many right and this many wrong leaves are there (improved); None: never early."""
    max_share: Fraction = 0.5
    """No more than this share of the leaves below one child of the root (improved)."""
    uct_weight: Annotated[float, Field(ge=0)] = 2.0
    """lambda of the local UCT rule (faithful)."""
    parent_weight: Annotated[float, Field(ge=0)] = 0.4
    """l1: weight of tanh(Q(parent)) in the frontier score."""
    uncertainty_weight: Annotated[float, Field(ge=0)] = 0.0
    """l2: weight of the span's uncertainty (faithful: mean NLL, improved: mean entropy); the paper ships 0."""
    depth_weight: Annotated[float, Field(ge=0)] = 0.01
    """l3: weight of the depth bonus."""
    own_weight: Annotated[float, Field(ge=0)] = 0.0
    """l4: weight of tanh(Q) of the point itself."""
    depth_bonus: Literal["sqrt", "linear", "log"] = "sqrt"
    gamma_min: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Floor of the depth discount in the backup."""
    gamma: Literal["paper", "released"] = "paper"
    """Depth discount max(d/L, gamma_min), or the release's max((d+1)/(L+1), gamma_min)."""


SearchSettings = Annotated[FlatSearch | CureSearch | DeepSearchSearch, Field(discriminator="kind")]
