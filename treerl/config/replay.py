"""`[replay]`: the cache of trees and solutions, what a run may read from it, and how rows come back."""

from typing import Annotated, Literal

from pydantic import Field

from treerl.config.section import Fraction, NonNegative, Positive, Section


class ReadSettings(Section):
    """What a run may read from the cache, beside the bound that makes a resumed run equal the unbroken one.

    A solution fits only the same problem, prompt tokens and tokenizer, and needs a scored verdict.
    """

    runs: tuple[str, ...] = ("*",)
    """Names of other runs, `*` and `?` as in file names; (): no other run."""
    exclude_runs: tuple[str, ...] = ()
    """Names of other runs that are not read, though `runs` names them."""
    own: bool = True
    """Also read what this run stored at earlier steps."""
    policies: tuple[str, ...] = ("*",)
    """Names of the models that drew, as policy.model gives them, with `*` and `?`."""
    same_policy: bool = False
    """Only draws of policies that were trained from the very weights this run starts from."""
    same_sampling: bool = True
    """Only draws at this run's temperature, top_p and top_k: the log-probs of others are no denominators."""
    from_step: NonNegative = 0
    """Of other runs, only trees from this step on: a trained policy's rather than a beginner's."""
    max_age_days: Annotated[float, Field(gt=0)] | None = None
    """Days a tree may have been stored before this run began; None: any age."""
    label: Literal["right", "wrong", "any"] = "right"
    """Solutions to put beside the fresh ones: right (reward at least 1), wrong, or either."""
    verifier_versions: tuple[str, ...] = ()
    """Older versions of the run's verifier whose verdicts count where its own has not judged;
    `treerl replay rejudge` judges by the new one."""
    max_rate: Fraction | None = None
    """Only for problems of which at most this share of the stored responses was right; None: all. Counted
    are full responses drawn from the prompt, not branches that a search chose."""


class CollapseSettings(Section):
    """Cross-context replay into groups whose advantage collapsed (R^3, arXiv 2601.19620).

    Beside leaves that are all wrong come stored right rows of the same prompt, beside all right ones wrong
    rows; groups that are mixed stay as they are.
    """

    rows: NonNegative = 0
    """Stored rows put into a collapsed group; 0: off."""
    label: Literal["right", "wrong", "any"] = "any"
    """Rows to bring: right ones into groups that are all wrong, wrong ones into groups all right, or either."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """alpha: factor on the advantages of all cached rows."""


class ImitateSettings(Section):
    """Self-imitation from a pool of the run's own good rows, re-based (SPEAR, arXiv 2509.22601)."""

    rows: NonNegative = 0
    """Rows drawn from the pool a step; 0: off."""
    pool_size: Positive = 2048
    remover: Literal["oldest", "lowest"] = "oldest"
    """Which item leaves a full pool: the oldest, or that of the lowest priority."""
    min_size: Positive = 1
    """Nothing is drawn from a pool of fewer items."""
    max_age: Positive | None = 10
    """Steps an item may be old; None: any age."""
    max_times_sampled: Positive | None = 1
    """How often an item may be used; None: without limit."""
    sampler: Literal["uniform", "prioritised", "oldest", "newest"] = "uniform"
    """prioritised: in proportion to priority ** priority_exponent, priority being reward - group mean."""
    priority_exponent: Annotated[float, Field(ge=0)] = 1.0
    importance_exponent: Fraction = 1.0
    """b of the weights (1 / (N P)) ** b that make up for drawing by priority."""
    warmup_steps: Positive = 200
    """Steps over which the weight of the replayed rows rises from 0 to `weight`, along a half cosine."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of a replayed token beside a fresh one after the warm-up."""
    max_mean_ratio: Annotated[float, Field(gt=1)] | None = 10.0
    """A row whose mean ratio of policy to sampler is above this is not used; None: all are."""
    min_ess: Fraction = 0.5
    """A step replays nothing if the effective share of its replayed tokens, by these ratios, is below this."""
    history: Positive = 10240
    """Group means whose median is the baseline that stored rewards are compared with."""


class ReplaySettings(Section):
    """The cache of trees and solutions."""

    url: str = "sqlite:///{output_dir}/replay.db"
    """Database; `{output_dir}` is the run's folder. A shared path lets experiments share solutions."""
    reuse: bool = True
    """Use solutions that are stored for the same problem."""
    max_cached: NonNegative = 0
    """At most this many cached solutions in a tree beside the fresh ones; 0: none."""
    max_staleness: Positive | None = None
    """Optimizer steps a cached solution's policy may be behind, within one run; None: any age."""
    read: ReadSettings = ReadSettings()
    collapse: CollapseSettings = CollapseSettings()
    imitate: ImitateSettings = ImitateSettings()

    @property
    def trains_on_cached(self) -> bool:
        """Do cached rows join updates?"""
        read = self.reuse and self.max_cached + self.collapse.rows > 0
        return read or self.imitate.rows > 0
