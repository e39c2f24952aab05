"""`VllmSampler`: continues token prefixes with vLLM's engine, which batches, schedules and caches prefixes.

Several samplers, of different temperatures say, may share one engine.
"""

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from treerl.config import SamplerSettings
from treerl.errors import DoesNotFit, SamplerError
from treerl.samplers.vllm_engine import Drawing, Drawn, VllmEngine
from treerl.samplers.weights import Compared, Weights
from treerl.search.sampler import Continuation, Failure, Finish, Outcome, Span

_numbers = itertools.count()
"""Request ids are never used twice: an aborted request and its successor share a ticket."""
_LOOK_SECONDS = 1.0
"""A step comes back after so long without a result, so that its caller can look at the clock."""


class VllmSampler:
    """Implements `treerl.search.sampler.Sampler` on a `VllmEngine`, whose policy version it reports.

    vocabulary: ids that prefixes may use are below it. stop_token_ids: any of them ends a continuation with
    STOP. The samples of a seed are vLLM's, not those of the transformers sampler.
    """

    def __init__(
        self,
        engine: VllmEngine,
        *,
        settings: SamplerSettings,
        stop_token_ids: Sequence[int],
        vocabulary: int,
    ) -> None:
        self.engine = engine
        self._settings = settings
        self._stops = tuple(stop_token_ids)
        self._vocabulary = vocabulary
        self._live: dict[int, tuple[str, Continuation]] = {}
        self._again: list[tuple[int, Continuation]] = []
        self._ready: list[tuple[int, Outcome]] = []
        self._generated = self._prefilled = self._reused = self._discarded = 0
        self._seconds = 0.0

    @property
    def capacity(self) -> int:
        """Sequences in one pass of the engine at most."""
        return self.engine.max_batch

    @property
    def policy_version(self) -> int:
        """Version of the weights that serve."""
        return self.engine.policy_version

    @property
    def stats(self) -> dict[str, Any]:
        """generated_tokens, in spans handed out; discarded_tokens, drawn for what was aborted; prefill_tokens
        and reused_tokens: prefix tokens of these spans that were run through the model, and that the prefix
        cache had; prefix_hit_rate: the share of the latter; seconds spent in `step`."""
        given = self._prefilled + self._reused
        return {
            "generated_tokens": self._generated,
            "discarded_tokens": self._discarded,
            "prefill_tokens": self._prefilled,
            "reused_tokens": self._reused,
            "prefix_hit_rate": self._reused / given if given else 0.0,
            "seconds": self._seconds,
        }

    def submit(self, ticket: int, work: Continuation) -> None:
        """Queues one continuation. Raises DoesNotFit where prefix and `max_tokens` exceed the context."""
        prefix = work.prefix
        if ticket in self._live:
            raise SamplerError(f"ticket {ticket} is queued already")
        if len(prefix) == 0 or work.max_tokens < 1:
            raise SamplerError("a continuation needs a prefix and max_tokens of at least 1")
        if int(prefix.min()) < 0 or int(prefix.max()) >= self._vocabulary:
            raise SamplerError(
                f"a prefix has token ids outside the model's vocabulary of {self._vocabulary}"
            )
        if len(prefix) + work.max_tokens > self.engine.max_length:
            raise DoesNotFit(
                f"a prefix of {len(prefix)} tokens and max_tokens = {work.max_tokens} exceed the engine's "
                f"context of {self.engine.max_length}: lower sampler.max_completion_length"
            )
        self._add(ticket, work)

    def abort(self, tickets: Iterable[int]) -> None:
        """Drops continuations, queued or under way; the tokens they had are counted in `discarded_tokens`."""
        gone = set(tickets)
        live = [self._live.pop(ticket)[0] for ticket in gone & self._live.keys()]
        self._discarded += sum(len(drawn.tokens) for drawn in self.engine.abort(live))
        self._again = [item for item in self._again if item[0] not in gone]
        ended = sum(
            len(outcome.tokens)
            for ticket, outcome in self._ready
            if ticket in gone and isinstance(outcome, Span)
        )
        self._generated -= ended
        self._discarded += ended
        self._ready = [item for item in self._ready if item[0] not in gone]

    def step(self) -> list[tuple[int, Outcome]]:
        """Runs the engine until a continuation has ended, or for a second; returns what has ended."""
        began = time.perf_counter()
        again, self._again = self._again, []
        for ticket, work in again:
            self._add(ticket, work)
        try:
            while not self._ready and self._live:
                self.engine.step()
                if time.perf_counter() - began > _LOOK_SECONDS:
                    break
        finally:
            self._seconds += time.perf_counter() - began
        ended, self._ready = self._ready, []
        return ended

    def interrupt(self) -> None:
        """Ends what is under way, so that weights may change: CUT with what it has, or to begin again."""
        tickets = {request_id: ticket for ticket, (request_id, _) in self._live.items()}
        for drawn in self.engine.abort(tickets):
            ticket = tickets[drawn.request_id]
            if len(drawn.tokens):
                self._finish(ticket, drawn, Finish.CUT)
            else:
                self._again.append((ticket, self._live[ticket][1]))

    def set_version(self, version: int) -> None:
        """The weights have changed: nothing drawn or cached before goes on."""
        self.interrupt()
        self.engine.reset_prefix_cache()
        self.engine.policy_version = version

    def publish(self, weights: Weights, version: int) -> None:
        """Serves `weights` as `version`; what was under way ends by CUT, or begins again."""
        self.interrupt()
        self.engine.receive(weights, version)

    def compare(self, weights: Weights) -> Compared:
        """Fingerprints of `weights` and of what the engine computes with."""
        return self.engine.weights.compare(weights, self.policy_version)

    def rest(self) -> None:
        """The policy is about to be updated: gives back memory where the settings say so."""
        self.interrupt()
        self.engine.weights.sleep()

    def _add(self, ticket: int, work: Continuation) -> None:
        request_id = str(next(_numbers))
        drawing = Drawing(
            max_tokens=work.max_tokens,
            stop_token_ids=self._stops,
            seed=work.seed,
            temperature=self._settings.temperature,
            top_p=self._settings.top_p,
            top_k=self._settings.top_k,
        )
        self.engine.add(request_id, work.prefix, drawing, lambda drawn: self._end(ticket, drawn))
        self._live[ticket] = request_id, work

    def _end(self, ticket: int, drawn: Drawn) -> None:
        """A continuation ended by itself, or vLLM gave it up: then it may go on from what it has."""
        work = self._live[ticket][1]
        if drawn.given_up and not len(drawn.tokens):
            del self._live[ticket]
            reason = f"vLLM gave up ticket {ticket}: {drawn.given_up}"
            self._ready.append((ticket, Failure("failed", reason)))
            return
        if drawn.stopped:
            finish = Finish.STOP
        elif drawn.given_up:
            finish = Finish.CUT
        else:
            finish = Finish.LENGTH if work.last else Finish.CUT
        self._finish(ticket, drawn, finish)

    def _finish(self, ticket: int, drawn: Drawn, finish: Finish) -> None:
        _, work = self._live.pop(ticket)
        self._check(ticket, drawn)
        self._generated += len(drawn.tokens)
        self._reused += drawn.cached
        self._prefilled += len(work.prefix) - drawn.cached
        version = self.engine.policy_version
        span = Span(drawn.tokens, drawn.logprobs, drawn.entropies, version, finish)
        self._ready.append((ticket, span))

    def _check(self, ticket: int, drawn: Drawn) -> None:
        """Raises SamplerError where logits were NaN or infinite."""
        where = np.flatnonzero(~np.isfinite(drawn.entropies))
        if len(where):
            raise SamplerError(
                f"the model's logits are NaN at token {where[0]} of ticket {ticket}, weights version "
                f"{self.policy_version}: the last update broke the weights; start a new run from a "
                "checkpoint (policy.model) with a lower update.lr"
            )
