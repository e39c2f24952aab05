"""The hand-over of weights from trainer to sampler, and the proof that what was sent is what is served.

After every update the sampler gets the weights under the next version. Then, unless switched off: fingerprints
of what it computes with equal those of what was sent; a continuation of a path it had just cached reuses
nothing; and the trainer finds the log-probs of a few samples that the sampler reports. The first optimizer
step of each update adds a fourth: before it, old log-probs and the sampler's are those of one policy.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from treerl.canon import derive_seed
from treerl.config import SamplerSettings
from treerl.errors import HandoverError
from treerl.policy.lora import (
    adapter_config,
    adapter_tensors,
    base_weights,
    full_weights,
    has_adapter,
)
from treerl.policy.loss_sums import LossSums
from treerl.policy.model import Policy
from treerl.policy.reference import score_trees
from treerl.samplers.weights import Adapter, Compared, Weights
from treerl.search.sampler import Continuation, Failure, Finish, Sampler, Span
from treerl.search.tree import ROOT, Tree

PROBES = 6
"""Paths that a check continues, one a tree."""
PROBE_TOKENS = 2
"""Tokens drawn behind each."""
PATH_TOKENS = 192
"""Tokens of the longest of them: more than a block of any cache, and little to run."""
OTHER_TOKENS = 96
"""Tokens of the others."""
WAIT_SECONDS = 600.0
"""A check waits no longer for its samples."""
_TICKET = -1
"""Tickets of the scheduler are not negative."""

TOLERANCE = {
    torch.float64: 1e-4,
    torch.float32: 5e-5,
    torch.float16: 0.1,
    torch.bfloat16: 0.25,
}
"""Mean |trainer - sampler| log-prob at temperature 1, by the coarser dtype. Seen on a CPU with 135 M
parameters: 6e-6 in float32, .045 in bfloat16; weights one update old or a stale cache give .2 to 3."""
GPU_FLOAT32 = 5e-3
"""float32 on a GPU, whose kernels may multiply in TF32."""


class Served(Sampler, Protocol):
    """A sampler that takes weights."""

    def publish(self, weights: Weights, version: int) -> None:
        """Serves `weights` as `version` from now on, with nothing cached; no request lives across it."""

    def compare(self, weights: Weights) -> Compared | None:
        """Fingerprints of `weights` and of what is served; None: they are the same tensors."""

    def set_version(self, version: int) -> None:
        """Drops what is under way and cached."""

    def rest(self) -> None:
        """The policy is about to be updated."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Trainer and sampler over n tokens: mean |difference| of log-probs."""

    tokens: int
    mean: float


class Handover:
    """Sends the policy's weights to a sampler and checks what came of it.

    context: tokens that a path may have. sampler_dtype: of the weights that serve. check: False: send only.
    """

    def __init__(
        self,
        policy: Policy,
        sampler: Served,
        settings: SamplerSettings,
        *,
        context: int,
        sampler_dtype: torch.dtype | None = None,
        check: bool = True,
    ) -> None:
        self._policy, self._sampler, self._settings = policy, sampler, settings
        self._check, self._context = check, context
        self.tolerance = tolerance(policy, sampler_dtype or policy.dtype, settings.temperature)

    def publish(self, version: int, trees: Sequence[Tree]) -> dict[str, float]:
        """Serves the policy's weights as `version`; returns metrics. Raises HandoverError.

        trees: of the last search, whose paths the sampler may have cached; [] skips what needs one.
        """
        begun = time.perf_counter()
        weights = weights_of(self._policy)
        self._sampler.publish(weights, version)
        row: dict[str, float] = {}
        if self._check:
            row = self._checked(weights, version, probe_paths(trees, self._context))
        return row | {"time/handover": time.perf_counter() - begun}

    def rest(self) -> None:
        """Before an update: the sampler may give back memory until the next `publish`."""
        self._sampler.rest()

    def check_update(self, first: LossSums, version: int) -> None:
        """`first`: of an update's first optimizer step, whose trees `version` drew. Raises HandoverError.

        The ratio of trainer to sampler must be 1 up to the dtype's rounding. Nothing is asked of a truncated
        distribution, whose log-probs are others.
        """
        if not self._check or _is_truncated(self._settings) or not first.compared:
            return
        mean = first.logp_abs / first.compared
        if not mean <= self.tolerance:
            raise HandoverError(
                f"the trees of step {version} were not drawn by the policy that was trained on them: over "
                f"{int(first.compared)} tokens of the first optimizer step, |trainer - sampler| log-prob is "
                f"{mean:.3g} on average (limit {self.tolerance:.2g}), so ratios are not 1. {_REMEDY}"
            )

    def _checked(
        self, weights: Weights, version: int, paths: Sequence[NDArray[np.int32]]
    ) -> dict[str, float]:
        row = {"handover/checked": 0.0}
        if self._sampler.policy_version != version:
            raise HandoverError(
                f"the sampler draws as version {self._sampler.policy_version} after it was given {version}. "
                f"{_REMEDY}"
            )
        compared = self._sampler.compare(weights)
        if compared is not None:
            check_fingerprints(compared, version)
            row["handover/tensors"] = float(len(compared.sent))
            row["handover/checked"] += 1
        if paths:
            spans = [self._first(paths[0], version)]
            row["handover/checked"] += 1
            spans += self._continue(paths[1:], version)
            # What a check cached must not decide what a resumed run, which made another check, reuses.
            self._sampler.set_version(version)
            if not _is_truncated(self._settings):
                found = self._agreement(paths, spans)
                row["handover/logp_difference"] = found.mean
                row["handover/checked"] += 1
                self._check_agreement(found, version)
        return row

    def _first(self, path: NDArray[np.int32], version: int) -> Span:
        """A few tokens behind `path`, which was cached before the hand-over and must not be now."""
        reused = self._sampler.stats["reused_tokens"]
        (span,) = self._continue([path], version)
        reused = self._sampler.stats["reused_tokens"] - reused
        if reused:
            raise HandoverError(
                f"the sampler serves version {version} with a cache of earlier weights: of a path of "
                f"{len(path)} tokens it reused {reused} right after the hand-over, which empties the cache. "
                f"{_REMEDY}"
            )
        return span

    def _continue(self, paths: Sequence[NDArray[np.int32]], version: int) -> list[Span]:
        """A few tokens behind each path, in order."""
        for which, path in enumerate(paths):
            seed = derive_seed("handover", version, path)
            work = Continuation(np.asarray(path, np.int32), seed, PROBE_TOKENS, last=False)
            self._sampler.submit(_TICKET - which, work)
        spans: dict[int, Span] = {}
        began = time.monotonic()
        while len(spans) < len(paths):
            if time.monotonic() - began > WAIT_SECONDS:
                self._sampler.abort([_TICKET - which for which in range(len(paths))])
                raise HandoverError(
                    f"the sampler gave no {PROBE_TOKENS} tokens within {WAIT_SECONDS:.0f} s after it was given "
                    f"version {version}. {_REMEDY}"
                )
            for ticket, span in self._sampler.step():
                if isinstance(span, Failure):
                    raise HandoverError(
                        f"the sampler draws nothing after it was given version {version}: {span.reason}. "
                        f"{_REMEDY}"
                    )
                spans[ticket] = span
        return [spans[_TICKET - which] for which in range(len(paths))]

    def _agreement(self, paths: Sequence[NDArray[np.int32]], spans: Sequence[Span]) -> Agreement:
        """The trainer's log-probs of the spans beside those reported."""
        trees = []
        for path, span in zip(paths, spans, strict=True):
            tree = Tree(path, seed=0, max_completion_length=len(span.tokens))
            row = tree.append(tree.request(ROOT, 1), 0, span)
            tree.nodes.finish[row] = Finish.LENGTH
            trees.append(tree)
        longest = max(len(tree.tokens) for tree in trees)
        scores = score_trees(
            self._policy, trees, temperature=self._settings.temperature, max_tokens=longest
        )
        difference = np.concatenate(
            [
                np.abs(lp[len(path) :] - span.logprobs)
                for path, span, lp in zip(paths, spans, scores, strict=True)
            ]
        )
        return Agreement(len(difference), float(difference.mean()))

    def _check_agreement(self, found: Agreement, version: int) -> None:
        if not found.mean <= self.tolerance:
            raise HandoverError(
                f"what the sampler serves as version {version} is not the policy: over {found.tokens} sampled "
                f"tokens, |trainer - sampler| log-prob is {found.mean:.3g} on average (limit "
                f"{self.tolerance:.2g}). {_REMEDY}"
            )


_REMEDY = (
    "Trees that are stored and the last checkpoint are whole; nothing was saved since. Go on from there, with "
    'sampler.kind = "transformers" if it comes again, or with update.check_handover = false if the difference '
    "is known"
)


def check_fingerprints(compared: Compared, version: int) -> None:
    """Raises HandoverError if a tensor is served otherwise than it was sent."""
    if not (wrong := compared.differing):
        return
    first = wrong[0]
    sent, served = compared.sent[first].norm, compared.served[first].norm
    raise HandoverError(
        f"{len(wrong)} of {len(compared.sent)} tensors of version {version} are served otherwise than they "
        f"were sent; the first is {first} (norm of the part compared: sent {sent:.6g}, served {served:.6g}). "
        f"{_REMEDY}"
    )


def tolerance(policy: Policy, sampler_dtype: torch.dtype, temperature: float) -> float:
    """Largest mean |trainer - sampler| log-prob of one policy; logits are divided by the temperature."""
    dtypes = (policy.dtype, sampler_dtype)
    limit = max(TOLERANCE[dtype] for dtype in dtypes)
    if policy.device.type == "cuda":
        limit = max(limit, GPU_FLOAT32)
    return limit / min(max(temperature, 0.01), 1.0)


def weights_of(policy: Policy) -> Weights:
    """The policy's weights as a hand-over sends them."""
    model = policy.model
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = name.replace(".base_layer.", ".")
        other = first.setdefault(id(parameter), plain)
        if other != plain:
            tied[plain] = other
    adapter = None
    if has_adapter(model):
        adapter = Adapter(
            adapter_config(model), adapter_tensors(model), lambda: base_weights(model)
        )
    return Weights(lambda: full_weights(model), tied, adapter)


def probe_paths(trees: Sequence[Tree], context: int) -> list[NDArray[np.int32]]:
    """Paths that the last search ran, one a tree at most, to be gone on with.

    The first is the longest: a cache of blocks keeps nothing of a path shorter than a block. The others end
    before their most uncertain token, where log-probs move most with the weights. context: tokens that a path
    and its continuation may have.
    """
    found = []
    for tree in trees:
        leaves = tree.leaves()
        if len(leaves) == 0:
            continue
        nodes = tree.nodes
        lengths = nodes.offset[leaves] + nodes.stop[leaves] - nodes.start[leaves]
        most = min(context - PROBE_TOKENS, PATH_TOKENS) + 1
        index = tree.path_index(int(leaves[lengths.argmax()]))[:most]
        path = tree.tokens.token[index].astype(np.int32)
        entropy = np.where(tree.tokens.mask[index], tree.tokens.entropy[index], -np.inf)
        entropy = np.where(np.isnan(entropy), -np.inf, entropy)
        if len(path) > 1:
            near = entropy[1 : OTHER_TOKENS + 1]
            found.append((path, float(near.max()), 1 + int(near.argmax())))
    if not found:
        return []
    longest = max(range(len(found)), key=lambda i: len(found[i][0]))
    first = found.pop(longest)[0][:-1]
    found.sort(key=lambda item: -item[1])
    return [first, *(path[:cut] for path, _, cut in found[: PROBES - 1])]


def _is_truncated(settings: SamplerSettings) -> bool:
    return settings.top_p < 1 or settings.top_k > 0
