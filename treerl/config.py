"""Every setting of a run, with its default and meaning: pydantic models, frozen, unknown keys refused.

Reading recipe files is in treerl.recipe. Nothing heavy is imported here.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, docstrings under fields become descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# Task ----------------------------------------------------------------------------------------------------


class PromptSettings(Section):
    """How a problem becomes prompt tokens."""

    template: str = "{question}"
    """Text with `{question}`; the raw prompt, or the user's turn when `chat` is on."""
    chat: bool = False
    """Use the tokenizer's chat template."""
    system: str | None = None
    """System message of the chat template."""


class ChainTask(Section):
    """The built-in task: chains of equalities, made from a seed (treerl.tasks.chain)."""

    kind: Literal["chain"] = "chain"
    seed: int = 0
    """Names the stream of training problems."""
    min_operators: Positive = 5
    max_operators: Positive = 7
    heldout: Positive = 256
    """Held-out problems, the same for every seed."""
    prompt: PromptSettings = PromptSettings()


class FileTask(Section):
    """Problems from a JSONL, JSON, CSV or Parquet file."""

    kind: Literal["file"] = "file"
    path: str
    """Training problems."""
    heldout_path: str | None = None
    """Problems for evaluation; without it, the last `heldout` lines of `path` are kept apart."""
    heldout: NonNegative = 0
    """Lines of `path` kept apart for evaluation when `heldout_path` is not given."""
    question: str | None = None
    """Column of the question; detected from the known data sets when not given."""
    answer: str | None = None
    """Column of the answer."""
    judge: Literal["math", "exact", "number", "choice"] = "math"
    """Kind of judgement of these problems."""
    skip_malformed: bool = False
    """Count and skip malformed lines instead of stopping at the first."""
    limit: Positive | None = None
    """Use the first lines only."""
    seed: int = 0
    """Names the order of the problems."""
    prompt: PromptSettings = PromptSettings()


class DatasetTask(Section):
    """Problems from a Hugging Face data set (needs the `datasets` package)."""

    kind: Literal["dataset"] = "dataset"
    name: str
    subset: str | None = None
    split: str = "train"
    heldout_split: str | None = "test"
    question: str | None = None
    answer: str | None = None
    judge: Literal["math", "exact", "number", "choice"] = "math"
    limit: Positive | None = None
    seed: int = 0
    prompt: PromptSettings = PromptSettings()


class GymTask(Section):
    """A procedural task of reasoning-gym, scored strictly."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    name: str
    """Name of the task, such as basic_arithmetic."""
    settings: dict[str, Any] = {}
    """Keyword arguments of the task."""
    heldout: Positive = 128
    seed: int = 0
    prompt: PromptSettings = PromptSettings()


TaskSettings = Annotated[ChainTask | FileTask | DatasetTask | GymTask, Field(discriminator="kind")]

# Policy and sampler --------------------------------------------------------------------------------------


class PolicySettings(Section):
    """The model that is trained."""

    model: str = "embedded"
    """`embedded`, a local folder, a GGUF file, or a Hugging Face hub name."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """auto: bfloat16 on a GPU that has it, else float32."""
    device: str = "auto"
    """auto: cuda when there is one, else cpu."""
    attention: Literal["auto", "dense", "runs", "flex"] = "auto"
    """How packed trees attend; auto chooses by device and length of the pack."""
    gradient_checkpointing: bool = False
    threads: Positive | None = None
    """CPU threads of torch; None leaves torch's choice."""


class SamplerSettings(Section):
    """How continuations are drawn."""

    kind: Literal["transformers"] = "transformers"
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: NonNegative = 0
    """0: no limit."""
    max_prompt_length: Positive = 512
    """Longer prompts are dropped and counted, never truncated."""
    max_completion_length: Positive = 512
    """Tokens a path may grow beyond the prompt."""
    max_batch: Positive = 512
    """Rows decoded together."""


# Search --------------------------------------------------------------------------------------------------


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

# Verifier and replay -------------------------------------------------------------------------------------


class FormatPart(Section):
    """One weighted part of a composite reward."""

    kind: Literal["math", "exact", "number", "choice", "format"]
    weight: float = 1.0


class VerifierSettings(Section):
    """Who judges, and under which limits."""

    kind: Literal[
        "auto",
        "math",
        "exact",
        "number",
        "choice",
        "chain",
        "reasoning_gym",
        "composite",
        "import",
    ] = "auto"
    """auto: by the problem's kind."""
    answer_format: Literal["auto", "boxed", "hash", "answer_tag", "last_segment", "whole"] = "auto"
    """The one place an answer is read from; auto: the usual one of the problem's kind."""
    target: str | None = None
    """`path/file.py:function` or `package.module:function` for kind = "import"."""
    parts: tuple[FormatPart, ...] = ()
    """Weighted parts for kind = "composite"."""
    timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """Wall-clock seconds an answer may take; then the worker is killed and the outcome is `timeout`."""
    workers: Positive = 1
    memory_mb: Positive = 4096
    """Address space of one worker."""

    @model_validator(mode="after")
    def _target_and_parts(self) -> Self:
        if (self.kind == "import") != (self.target is not None):
            raise ValueError('target = "file.py:function" goes with kind = "import"')
        if (self.kind == "composite") != bool(self.parts):
            raise ValueError('parts go with kind = "composite"')
        return self


class ReplaySettings(Section):
    """The cache of trees and solutions."""

    url: str = "sqlite:///{output_dir}/replay.db"
    """Database; `{output_dir}` is the run's folder. A shared path lets experiments share solutions."""
    reuse: bool = True
    """Use verified solutions that other runs stored for the same problem."""
    max_cached: NonNegative = 0
    """At most this many cached solutions in a tree beside the fresh ones; 0: none."""
    max_staleness: Positive | None = None
    """Optimizer steps a cached solution's policy may be behind, within one run; None: any age."""


# Credit, loss, update ------------------------------------------------------------------------------------


class AdvantageSettings(Section):
    """How a judged tree becomes advantages (treerl.credit)."""

    estimator: Literal[
        "grpo",
        "dr_grpo",
        "rloo",
        "tree_value",
        "sibling_rloo",
        "deepsearch",
        "prl",
        "frpo",
        "implicit_prm",
        "implicit_value",
    ] = "tree_value"
    scale_rewards: Literal["group", "batch", "none"] | None = None
    """Divide by the std of the group (GRPO), the batch, or not; None: the estimator's own."""
    std_ddof: Literal[0, 1] = 1
    node_weight: Literal["n", "sqrt_n", "one"] | None = None
    """c(u), weight of a shared token; None: n for leaf-row estimators, one for node estimators."""
    reward_low: float = 0.0
    """Reward 0 maps to this (DeepSearch and CURE: -1)."""
    zero_variance: Literal["drop", "keep"] = "drop"
    """Trees whose verdicts are all equal leave the batch before batch statistics, or stay."""
    rms_scale: bool = False
    """Divide all advantages by their root mean square over the batch's trained tokens (keeps the sign)."""
    faithful: bool = False
    """deepsearch: tanh node scores minus the mean leaf score as released; breaks both invariants."""
    beta: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the dense part: 1/eta of PRL, beta of FRPO and of implicit rewards."""
    step_tokens: Positive = 1
    """prl: tokens of a step; a step also ends at each node's end."""

    @model_validator(mode="after")
    def _one_normaliser(self) -> Self:
        if self.rms_scale and self.scale_rewards in ("group", "batch"):
            raise ValueError(
                f"rms_scale = true and scale_rewards = {self.scale_rewards!r} are two normalisers: "
                "set one of them"
            )
        return self


class LossSettings(Section):
    """The surrogate and its regularisers (treerl.policy.losses)."""

    clip_ratio_low: Annotated[float, Field(ge=0)] = 0.2
    clip_ratio_high: Annotated[float, Field(ge=0)] = 0.28
    clip_ratio_c: Annotated[float, Field(gt=1)] | None = 10.0
    """Dual clip: cap of the ratio where the advantage is negative; None: no cap."""
    loss_agg_mode: Literal[
        "token-mean",
        "seq-mean-token-mean",
        "seq-mean-token-sum",
        "seq-mean-token-sum-norm",
    ] = "token-mean"
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL to the policy the run started from; 0: no reference is kept."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k2"
    entropy_coef: float = 0.0
    rollout_is: Literal["none", "token"] = "none"
    """Truncated importance weights between sampler and trainer (per token)."""
    rollout_is_threshold: Annotated[float, Field(gt=0)] = 2.0

    @model_validator(mode="after")
    def _dual_clip(self) -> Self:
        if self.clip_ratio_c is not None and self.clip_ratio_c <= 1 + self.clip_ratio_high:
            raise ValueError("clip_ratio_c must be above 1 + clip_ratio_high")
        return self


class UpdateSettings(Section):
    """The optimizer (AdamW)."""

    lr: Annotated[float, Field(gt=0)] = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: NonNegative = 0
    """Optimizer steps over which lr rises linearly."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up: constant, or falling linearly to 0 at the end of `max_steps`."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    num_iterations: Positive = 1
    """Passes over a step's trees."""
    mini_batches: Positive = 1
    """Optimizer steps a pass; trees are dealt out whole."""
    max_tokens_per_microbatch: Positive = 8192
    """Tokens of a forward and backward pass; a path must fit."""
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    """lp_old of the ratio: a forward pass of the trainer where one is needed, or what the sampler recorded
    (saves the pass; right where sampler and trainer agree to rounding, as in fp32 in one process)."""
    pack: Literal["tree", "flat"] = "tree"
    """tree: each tree token once. flat: one row a leaf (for comparison; another result is a bug)."""


# Run -----------------------------------------------------------------------------------------------------


class EvalSettings(Section):
    """Evaluation on held-out problems."""

    every: NonNegative = 0
    """Steps between evaluations; 0: only before and after."""
    problems: Positive = 256
    num_samples: Positive = 8
    k: tuple[Positive, ...] = (1, 8)
    """pass@k, unbiased; each at most num_samples."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    greedy: bool = True
    """Also report greedy accuracy."""
    seed: int = 1234
    """Fixed, so that evaluations of one run and of several compare."""

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k and max(self.k) > self.num_samples:
            raise ValueError(f"k = {max(self.k)} is above num_samples = {self.num_samples}")
        return self


class RunSettings(Section):
    """Where a run lives."""

    name: str | None = None
    """Name of the run; None: recipe name and seed."""
    output_dir: str = "runs/{name}"
    checkpoint_every: NonNegative = 0
    """Steps between checkpoints; 0: only at the end."""
    keep_checkpoints: Positive = 2


class Recipe(Section):
    """A whole run."""

    seed: int = 0
    max_steps: Positive = 100
    """Optimizer steps of the run: one search, one update each."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop after this much search and training time (evaluation not counted)."""
    deterministic: bool = True
    """Verdicts are taken in a fixed order before the sampler goes on, so that a run repeats to the bit on one
    device; false: the sampler never waits for a verdict, and rounding may depend on timing."""
    run: RunSettings = RunSettings()
    task: TaskSettings = ChainTask()
    policy: PolicySettings = PolicySettings()
    sampler: SamplerSettings = SamplerSettings()
    search: SearchSettings = CureSearch()
    verifier: VerifierSettings = VerifierSettings()
    replay: ReplaySettings = ReplaySettings()
    advantage: AdvantageSettings = AdvantageSettings()
    loss: LossSettings = LossSettings()
    update: UpdateSettings = UpdateSettings()
    eval: EvalSettings = EvalSettings()

    @model_validator(mode="after")
    def _compatible(self) -> Self:
        if self.loss.rollout_is != "none" and (self.sampler.top_p < 1 or self.sampler.top_k > 0):
            raise ValueError(
                "loss.rollout_is needs sampler.top_p = 1 and sampler.top_k = 0: log-probs of a "
                'truncated distribution are no importance weights; set loss.rollout_is = "none"'
            )
        if self.loss.rollout_is != "none" and self.update.old_logprobs == "sampler":
            raise ValueError(
                'update.old_logprobs = "sampler" makes loss.rollout_is count the mismatch twice: '
                'set loss.rollout_is = "none", or old_logprobs = "recompute"'
            )
        if self.replay.max_cached >= self.search.num_generations:
            raise ValueError(
                f"replay.max_cached = {self.replay.max_cached} must be below "
                f"search.num_generations = {self.search.num_generations}: fresh samples must remain"
            )
        return self
