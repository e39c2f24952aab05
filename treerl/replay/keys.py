"""Content keys of the replay cache: what makes two rows the same fact, in every database.

A path is named by its prompt and all tokens sampled so far, not by its parent: identity does not depend on
where a search cut its spans.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treerl.canon import canonical_json, digest, digest_hex
from treerl.problem import Problem


def problem_key(problem: Problem) -> bytes:
    """16 bytes: question, truth and kind (`Problem.key` as bytes)."""
    return bytes.fromhex(problem.key)


def prompt_key(problem: bytes, tokenizer: str, tokens: NDArray[Any]) -> bytes:
    """16 bytes: problem key, tokenizer identity and the prompt's tokens (int32[n])."""
    return digest("prompt", problem, tokenizer, np.asarray(tokens))


def path_key(prompt: bytes, tokens: NDArray[Any]) -> bytes:
    """16 bytes: prompt key and all tokens sampled up to here (int32[n], prompt excluded)."""
    return digest("path", prompt, np.asarray(tokens))


@dataclass(frozen=True)
class PolicyRef:
    """Whose weights drew. With a draw's policy version it names one set of weights.

    name: for people. digest: what the weights descend from, such as the digest of the base weights joined
    with the run's id; two policies that could differ at one version must differ here.
    """

    name: str
    digest: str

    def key(self, version: int) -> bytes:
        """16 bytes: name, digest and version."""
        return digest("policy", self.name, self.digest, version)


def descent(base_weights: str, run_id: str) -> str:
    """Digest of the policies of a run, for `PolicyRef`: what it started from, and that it trained it."""
    return digest_hex(base_weights, run_id)


@dataclass(frozen=True)
class VerifierRef:
    """Who judged: name, version, and the settings that can change a verdict (JSON values)."""

    name: str
    version: str
    config: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def config_json(self) -> str:
        """Canonical JSON of `config`."""
        return canonical_json(dict(self.config))

    @cached_property
    def key(self) -> bytes:
        """16 bytes: name, version and config."""
        return digest("verifier", self.name, self.version, self.config_json)


@dataclass(frozen=True)
class Provenance:
    """Where the draws of a tree come from; one object serves a whole run.

    tokenizer: identity of tokenizer, revision and chat template. sampler: only what can change a token
    (temperature, top_p, top_k, stop, engine and its version, dtype), JSON values; no seed, no timeout.
    """

    tokenizer: str
    policy: PolicyRef
    sampler: Mapping[str, Any]
    verifier: VerifierRef

    @cached_property
    def sampler_json(self) -> str:
        """Canonical JSON of `sampler`."""
        return canonical_json(dict(self.sampler))

    @cached_property
    def sampler_key(self) -> bytes:
        """16 bytes: the sampler's settings."""
        return sampler_key(self.sampler_json)


def sampler_key(params_json: str) -> bytes:
    """16 bytes from the canonical JSON of a sampler's settings."""
    return digest("sampler", params_json)


def columns_key(columns_json: str) -> bytes:
    """16 bytes: a problem's columns, which its own key leaves out."""
    return digest("columns", columns_json)


def text_key(text: str | None) -> bytes:
    """16 bytes: a solution's text, which its path key, over tokens, leaves out."""
    return digest("text", text)


def verdict_key(
    outcome: str,
    reward: float | None,
    answer: str | None,
    detail: str | None,
    seconds: float,
    position: int,
) -> bytes:
    """16 bytes: all that a verdict says."""
    # Databases may take the sign of a zero.
    paid = None if reward is None else float(reward) + 0.0
    return digest("verdict", outcome, paid, answer, detail, float(seconds) + 0.0, position)
