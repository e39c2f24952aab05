"""What search asks of a sampler and gets back: `Continuation` in, `Span` out, `Sampler` between.

A sampler is token-in token-out: it never sees text. Implementations live in treerl.samplers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray


class Finish(IntEnum):
    """How a span ended, as the sampler reported it; never guessed from padding.

    OPEN: an inner span, made by a split. STOP: EOS or a stop token, which is the span's last token.
    CUT: the request's `max_tokens` ended or it was aborted; the path can go on.
    LENGTH: the path reached `max_completion_length` (the request said `last`).
    """

    OPEN = 0
    STOP = 1
    CUT = 2
    LENGTH = 3


STOP, CUT, LENGTH = Finish.STOP, Finish.CUT, Finish.LENGTH
"""For inner loops: before Python 3.12 the name of a member is a slow look-up on its class."""


class Origin(IntEnum):
    """Why a span was opened."""

    PROMPT = 0
    SAMPLE = 1
    EXTEND = 2
    ENTROPY = 3
    WINDOW = 4
    FRONTIER = 5
    RANDOM = 6
    CACHE = 7


@dataclass(frozen=True, slots=True)
class Request:
    """Continuations a strategy wants from the end of `node`, one a seed.

    `ks` number the draws from that point (see `Tree.request`). `last`: `max_tokens` is all that the path
    may still grow, so a span that uses it up is finished by LENGTH, not CUT.
    """

    node: int
    ks: tuple[int, ...]
    seeds: tuple[int, ...]
    max_tokens: int
    last: bool
    origin: Origin = Origin.SAMPLE
    chosen_by_token: bool = False


@dataclass(frozen=True, slots=True)
class Continuation:
    """One sampled continuation to make: token prefix int32[n], its own seed, at most `max_tokens` tokens."""

    prefix: NDArray[np.int32]
    seed: int
    max_tokens: int
    last: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Sampled tokens. Columns have one length, at least 1.

    tokens: int32. logprobs: float32, of the distribution actually sampled from (temperature and truncation
    included). entropies: float32, nats, of the raw logits at temperature 1 over the full vocabulary,
    before the token was drawn. The stop token, if any, is the last token.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    entropies: NDArray[np.float32]
    policy_version: int
    finish: Finish

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.logprobs) == len(self.entropies) > 0:
            raise ValueError("a span needs at least one token, and columns of one length")


@dataclass(frozen=True, slots=True)
class Failure:
    """A continuation that came to nothing, while others can go on. reason: for people.

    too_long: it does not fit the context or the memory of the sampler. timeout: it did not come back in
    time. failed: the sampler gave it up.
    """

    exit: Literal["too_long", "timeout", "failed"]
    reason: str


Outcome = Span | Failure
"""What comes of a continuation."""


class Sampler(Protocol):
    """Continues many token prefixes at once.

    Results depend on the continuation and the weights alone, not on how work was batched (fp32). What
    concerns one continuation is a `Failure` or DoesNotFit; any other SamplerError means that none can go on.
    """

    @property
    def capacity(self) -> int:
        """Continuations that are drawn together at most; what is submitted beyond it waits."""

    @property
    def policy_version(self) -> int:
        """Version of the weights that serve; goes into every span drawn from now on."""

    @property
    def stats(self) -> dict[str, Any]:
        """Counters since the start: generated_tokens (in the spans returned), discarded_tokens (drawn and
        never returned), prefill_tokens, reused_tokens, seconds."""

    def submit(self, ticket: int, work: Continuation) -> None:
        """Queues one continuation. Raises DoesNotFit if prefix and `max_tokens` exceed the context."""

    def step(self) -> Sequence[tuple[int, Outcome]]:
        """Works for a while and returns what ended; [] where nothing has yet, or nothing is queued.

        Raises SamplerError where no continuation can go on: the engine is lost, the weights are broken.
        """

    def abort(self, tickets: Iterable[int]) -> None:
        """Drops continuations; their tickets are never returned, their tokens are counted as discarded."""
