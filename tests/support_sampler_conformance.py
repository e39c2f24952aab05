"""What every sampler must do: checks over a `Subject`, run by the tests of each sampler.

A subject can tell the raw logits of its policy, so that log-probabilities, entropies and frequencies are
compared with numbers computed here from scratch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from treerl.config import SamplerSettings
from treerl.errors import DoesNotFit, SamplerError
from treerl.search.sampler import Continuation, Finish, Sampler, Span


@dataclass(frozen=True)
class Subject:
    """A sampler to check.

    make: a fresh sampler with these settings, policy version 0. logits: raw logits of the next token.
    letters: ids that prefixes may use. stops: ids that end a path; likely enough that paths of 30 tokens
    often stop. top_k: whether the sampler has it.
    """

    make: Callable[[SamplerSettings], Sampler]
    logits: Callable[[Sequence[int]], np.ndarray]
    letters: range
    stops: frozenset[int]
    context: int
    top_k: bool = True


PLAIN = SamplerSettings()
NUCLEUS = SamplerSettings(temperature=0.7, top_p=0.9)
TOP_K = SamplerSettings(temperature=1.3, top_p=0.8, top_k=5)
_MOST_STEPS = 100_000


def check_tokens_in_tokens_out(subject: Subject) -> None:
    work = continuations(subject, 20)
    for item, span in zip(work, run(subject.make(PLAIN), work), strict=True):
        assert span.tokens.dtype == np.int32
        assert span.logprobs.dtype == span.entropies.dtype == np.float32
        assert 1 <= len(span.tokens) <= item.max_tokens
        assert len(span.tokens) == len(span.logprobs) == len(span.entropies)
        assert span.policy_version == 0


def check_prefixes_of_one_token(subject: Subject) -> None:
    work = [prefixed([letter], seed=letter, max_tokens=4) for letter in subject.letters]
    compare_columns(subject, PLAIN, work)


def check_one_token_at_most(subject: Subject) -> None:
    work = [prefixed([2, 3, letter], seed=9, max_tokens=1) for letter in subject.letters]
    spans = run(subject.make(PLAIN), work)
    assert [len(span.tokens) for span in spans] == [1] * len(work)
    for span in spans:
        stopped = int(span.tokens[0]) in subject.stops
        assert span.finish == (Finish.STOP if stopped else Finish.CUT)


def check_finish(subject: Subject) -> None:
    seen = set()
    for last in (False, True):
        work = continuations(subject, 60, last=last)
        for item, span in zip(work, run(subject.make(PLAIN), work), strict=True):
            tokens = span.tokens.tolist()
            assert not subject.stops.intersection(tokens[:-1])
            if tokens[-1] in subject.stops:
                assert span.finish == Finish.STOP
            else:
                assert len(tokens) == item.max_tokens
                assert span.finish == (Finish.LENGTH if last else Finish.CUT)
            seen.add(span.finish)
    assert seen == {Finish.STOP, Finish.CUT, Finish.LENGTH}


def check_stop_in_the_last_slot(subject: Subject) -> None:
    work, span = stopped_span(subject)
    n = len(span.tokens)
    for last in (False, True):
        (again,) = run(subject.make(PLAIN), [prefixed(work.prefix, work.seed, n, last)])
        assert again.finish == Finish.STOP
        assert again.tokens.tolist() == span.tokens.tolist()


def check_one_slot_before_the_stop(subject: Subject) -> None:
    work, span = stopped_span(subject)
    n = len(span.tokens) - 1
    for last, finish in ((False, Finish.CUT), (True, Finish.LENGTH)):
        (shorter,) = run(subject.make(PLAIN), [prefixed(work.prefix, work.seed, n, last)])
        assert shorter.finish == finish
        assert shorter.tokens.tolist() == span.tokens[:n].tolist()


def check_seeds(subject: Subject) -> None:
    prefix = [2, 3, 4]
    work = [prefixed(prefix, seed, 12) for seed in (0, 1, 2, 3, 2**62 + 1, 0)]
    spans = run(subject.make(PLAIN), work)
    assert spans[0].tokens.tolist() == spans[5].tokens.tolist()
    assert len({tuple(span.tokens.tolist()) for span in spans}) > 2


def check_batching_changes_nothing(subject: Subject) -> None:
    work = continuations(subject, 30)
    for settings in (PLAIN, NUCLEUS):
        together = run(subject.make(settings), work)
        backwards = run(subject.make(settings), work[::-1])[::-1]
        sampler = subject.make(settings)
        alone = [run(sampler, [item])[0] for item in work[:9]]
        for others in (backwards, alone, trickled(subject.make(settings), work)):
            for span, other in zip(together, others, strict=others is not alone):
                assert span.tokens.tolist() == other.tokens.tolist()
                assert span.finish == other.finish
                np.testing.assert_allclose(span.logprobs, other.logprobs, atol=1e-4)
                np.testing.assert_allclose(span.entropies, other.entropies, atol=1e-4)


def check_logprobs_and_entropies(subject: Subject) -> None:
    work = continuations(subject, 12)
    for settings in (PLAIN, NUCLEUS, TOP_K):
        if settings.top_k == 0 or subject.top_k:
            compare_columns(subject, settings, work)


def check_frequencies(subject: Subject) -> None:
    prefixes = [[a, b] for a in subject.letters for b in subject.letters]
    settings, draws = NUCLEUS, 4000
    widest = [(distribution(subject.logits(p), settings) > 0).sum() for p in prefixes]
    prefix = prefixes[int(np.argmax(widest))]
    exact = distribution(subject.logits(prefix), settings)
    work = [prefixed(prefix, seed, 1) for seed in range(draws)]
    drawn = [int(span.tokens[0]) for span in run(subject.make(settings), work)]
    counts = np.bincount(drawn, minlength=len(exact))
    assert counts[exact == 0].sum() == 0
    expected = exact[exact > 0] * draws
    chi_square = float(((counts[exact > 0] - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    assert freedom >= 3, "the subject's distribution is too narrow for this check"
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def check_successive_tokens_are_independent(subject: Subject) -> None:
    # One uniform for all tokens of a row would pass every other check.
    prefix, draws = [2, 5, 3], 1500
    work = [prefixed(prefix, seed, 2) for seed in range(draws)]
    spans = run(subject.make(PLAIN), work)
    first = int(distribution(subject.logits(prefix), PLAIN).argmax())
    exact = distribution(subject.logits([*prefix, first]), PLAIN)
    second = [int(s.tokens[1]) for s in spans if s.tokens[0] == first and len(s.tokens) == 2]
    assert len(second) > 100
    frequency = np.bincount(second, minlength=len(exact)) / len(second)
    assert np.abs(frequency - exact).max() < 4 * 0.5 / np.sqrt(len(second))


def check_greedy(subject: Subject) -> None:
    work = continuations(subject, 6)
    for item, span in zip(
        work, run(subject.make(SamplerSettings(temperature=0.0)), work), strict=True
    ):
        path = item.prefix.tolist()
        for token in span.tokens.tolist():
            assert token == int(subject.logits(path).argmax())
            path.append(token)
        assert span.logprobs.tolist() == [0.0] * len(span.tokens)
        assert span.entropies.min() > 0


def check_200_tickets(subject: Subject) -> None:
    work = continuations(subject, 200)
    sampler = subject.make(PLAIN)
    for ticket, item in enumerate(work):
        sampler.submit(1000 - ticket, item)
    returned = [ticket for ticket, _ in drained(sampler, 200)]
    assert sorted(returned) == sorted(1000 - ticket for ticket in range(200))
    assert sampler.step() == []


def check_abort(subject: Subject) -> None:
    work = continuations(subject, 40)
    whole = run(subject.make(PLAIN), work)
    sampler = subject.make(PLAIN)
    for ticket, item in enumerate(work):
        sampler.submit(ticket, item)
    sampler.abort([3, 4, 999])
    spans = dict(sampler.step())
    gone = {3, 4} | {ticket for ticket in (7, 21, 30, 39) if ticket not in spans}
    sampler.abort(gone)
    spans |= dict(drained(sampler, 40 - len(spans) - len(gone)))
    assert set(spans) == set(range(40)) - gone
    assert len(gone) > 2
    for ticket, span in spans.items():
        assert span.tokens.tolist() == whole[ticket].tokens.tolist()
    sampler.submit(3, work[3])
    assert [ticket for ticket, _ in drained(sampler, 1)] == [3]


def check_cut_path_goes_on(subject: Subject) -> None:
    sampler = subject.make(PLAIN)
    work = continuations(subject, 30)
    spans = run(sampler, work)
    longer = [
        prefixed([*item.prefix, *span.tokens], seed, 6)
        for item, span in zip(work, spans, strict=True)
        if span.finish == Finish.CUT
        for seed in (1, 2)
    ]
    branches = [
        prefixed([*item.prefix, *span.tokens[: len(span.tokens) // 2]], 5, 6)
        for item, span in zip(work, spans, strict=True)
    ]
    assert len(longer) > 4
    compare_columns(subject, PLAIN, longer + branches, sampler)


def check_stats(subject: Subject) -> None:
    sampler = subject.make(PLAIN)
    work = continuations(subject, 20)
    spans = run(sampler, work + work)
    stats = sampler.stats
    assert stats["generated_tokens"] == sum(len(span.tokens) for span in spans)
    given = 2 * sum(len(item.prefix) for item in work)
    assert stats["prefill_tokens"] + stats["reused_tokens"] == given
    assert stats["seconds"] >= 0


def check_refusals(subject: Subject) -> None:
    sampler = subject.make(PLAIN)
    for prefix, most in ((subject.context, 1), (subject.context - 3, 4)):
        with pytest.raises(DoesNotFit, match="context"):
            sampler.submit(1, prefixed([2] * prefix, 0, most))
    sampler.submit(2, prefixed([2], 0, 1))
    with pytest.raises(SamplerError, match="ticket 2"):
        sampler.submit(2, prefixed([3], 0, 1))
    assert [ticket for ticket, _ in drained(sampler, 1)] == [2]


def check_the_last_token_of_the_context_can_be_drawn(subject: Subject) -> None:
    work = prefixed([2] * (subject.context - 1), 0, 1, last=True)
    (span,) = run(subject.make(PLAIN), [work])
    assert len(span.tokens) == 1


def check_every_drawn_token_is_returned_or_counted(subject: Subject) -> None:
    sampler = subject.make(PLAIN)
    work = continuations(subject, 40)
    for ticket, item in enumerate(work):
        sampler.submit(ticket, item)
    spans = dict(sampler.step())
    sampler.abort(ticket for ticket in range(0, 40, 2) if ticket not in spans)
    spans |= dict(drained(sampler, sum(t not in spans for t in range(1, 40, 2))))
    stats = sampler.stats
    assert stats["generated_tokens"] == sum(len(span.tokens) for span in spans.values())
    most = sum(item.max_tokens for ticket, item in enumerate(work) if ticket not in spans)
    assert 0 <= stats["discarded_tokens"] < max(1, most)


def check_capacity(subject: Subject) -> None:
    assert subject.make(PLAIN).capacity >= 1


def check_idle(subject: Subject) -> None:
    assert subject.make(PLAIN).step() == []


CHECKS: list[Any] = [value for name, value in list(globals().items()) if name.startswith("check_")]


# Steps of the checks -------------------------------------------------------------------------------------


def prefixed(prefix: Iterable[int], seed: int, max_tokens: int, last: bool = False) -> Continuation:
    return Continuation(np.array(list(prefix), dtype=np.int32), seed, max_tokens, last)


def continuations(subject: Subject, count: int, last: bool = False) -> list[Continuation]:
    """Ragged ones: prefixes of 1 to 20 tokens, some equal, some beginning with another one."""
    rng = np.random.default_rng(count)
    letters = np.array(subject.letters)
    trunk = rng.choice(letters, size=20)
    work = []
    for index in range(count):
        own = rng.choice(letters, size=rng.integers(1, 8))
        prefix = (trunk[: rng.integers(1, 20)], own, np.append(trunk[:9], own))[index % 3]
        work.append(prefixed(prefix, int(rng.integers(2**62)), int(rng.integers(1, 31)), last))
    return work


def run(sampler: Sampler, work: Sequence[Continuation]) -> list[Span]:
    """Spans in the order of `work`, submitted all at once."""
    for ticket, item in enumerate(work):
        sampler.submit(ticket, item)
    spans = dict(drained(sampler, len(work)))
    return [spans[ticket] for ticket in range(len(work))]


def trickled(sampler: Sampler, work: Sequence[Continuation]) -> list[Span]:
    """The same, a few submitted between steps."""
    spans: dict[int, Span] = {}
    for ticket, item in enumerate(work):
        sampler.submit(ticket, item)
        if ticket % 7 == 6:
            spans.update(sampler.step())
    spans.update(drained(sampler, len(work) - len(spans)))
    return [spans[ticket] for ticket in range(len(work))]


def drained(sampler: Sampler, count: int) -> list[tuple[int, Span]]:
    """Steps until `count` continuations have ended, and nothing is left."""
    ended: list[tuple[int, Span]] = []
    steps = 0
    while len(ended) < count:
        for ticket, outcome in sampler.step():
            assert isinstance(outcome, Span), outcome
            ended.append((ticket, outcome))
        steps += 1
        assert steps < _MOST_STEPS, f"{count - len(ended)} continuations never ended"
    assert len(ended) == count
    assert not sampler.step()
    return ended


def stopped_span(subject: Subject) -> tuple[Continuation, Span]:
    """A continuation that stopped by itself after two tokens or more."""
    work = [prefixed([2, 3], seed, 30) for seed in range(40)]
    for item, span in zip(work, run(subject.make(PLAIN), work), strict=True):
        if span.finish == Finish.STOP and 2 <= len(span.tokens) < 30:
            return item, span
    raise AssertionError("no path stopped: make the stop token of the subject likelier")


def compare_columns(
    subject: Subject,
    settings: SamplerSettings,
    work: Sequence[Continuation],
    sampler: Sampler | None = None,
) -> None:
    """Log-probs and entropies of what is drawn are those of the subject's own logits."""
    for item, span in zip(work, run(sampler or subject.make(settings), work), strict=True):
        path = item.prefix.tolist()
        for token, logprob, entropy in zip(
            span.tokens.tolist(), span.logprobs, span.entropies, strict=True
        ):
            logits = subject.logits(path)
            drawn_from, raw = distribution(logits, settings), distribution(logits, PLAIN)
            assert abs(logprob - np.log(drawn_from[token])) < 1e-4
            assert abs(entropy + (raw[raw > 0] * np.log(raw[raw > 0])).sum()) < 2e-4
            path.append(token)


def distribution(logits: np.ndarray, settings: SamplerSettings) -> np.ndarray:
    """Temperature, then top-k, then top-p; float64."""
    scaled = logits / settings.temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    if settings.top_k:
        p[order[settings.top_k :]] = 0
        p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= settings.top_p]] = 0
    return p / p.sum()
