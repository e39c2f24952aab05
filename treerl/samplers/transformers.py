"""`TransformersSampler`: continues token prefixes with a Hugging Face causal LM in this process.

Rows decode together; a row that ends makes place, and what is queued joins at the next `step`. Distinct
prefixes are encoded once a call. It holds the model it is given and changes none of its weights.
"""

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from treerl.config import SamplerSettings
from treerl.errors import DoesNotFit, SamplerError
from treerl.samplers.attention import additive, can_decode, decoding
from treerl.samplers.cache import RowCache, moves
from treerl.samplers.draw import draw, uniforms
from treerl.samplers.fused import FusedLlama, can_fuse
from treerl.samplers.reuse import Kept, Reuse
from treerl.samplers.rows import Rows
from treerl.samplers.weights import Weights
from treerl.search.sampler import Continuation, Finish, Span

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
_ENCODE_TOKENS = 8192
"""Padded tokens encoded in one forward pass, at most (a single longer prefix apart)."""
_RETURN_SHARE = 16
"""`step` returns once one in so many of its rows has ended."""
_ASYNC_TOKENS = 8
"""Tokens drawn between looks at the results where that means waiting for a device."""

_Group = list[tuple[int, Continuation]]  # tickets and continuations of one prefix


class TransformersSampler:
    """Implements `treerl.search.sampler.Sampler` on `model`, a causal LM of transformers.

    At temperature 0 the distribution sampled from has all its mass on one token: log-probs are 0.
    `stop_token_ids`: any of them ends a continuation with STOP. Raises SamplerError where the model keeps
    a recurrent state, which cannot be padded.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        settings: SamplerSettings,
        stop_token_ids: Sequence[int],
        pad_token_id: int,
        device: torch.device | str,
        version: int = 0,
        reuse_bytes: int = 256 << 20,
    ) -> None:
        config = model.config.get_text_config()
        recurrent = set(getattr(config, "layer_types", None) or ()) - _ATTENTION
        if recurrent:
            raise SamplerError(
                f"{type(model).__name__} has layers {sorted(recurrent)}: only attention can be sampled"
            )
        self._model = model
        self._settings = settings
        self._pad, self._device = pad_token_id, torch.device(device)
        self._version = version
        self._look_every = 1 if self._device.type == "cpu" else _ASYNC_TOKENS
        self._context: int | None = getattr(config, "max_position_embeddings", None)
        self._vocabulary: int = config.vocab_size
        self._n_layers: int = config.num_hidden_layers
        self._grouped = can_decode(model)
        self._fused = FusedLlama(model) if can_fuse(model) else None
        self._masks_by_hand = self._grouped and _attends_to_all(config)
        self._stops = np.zeros(self._vocabulary, dtype=np.bool_)
        self._stops[list(stop_token_ids)] = True
        self._queue: deque[tuple[int, Continuation]] = deque()
        self._tickets: set[int] = set()
        self._ready: list[tuple[int, Span]] = []
        self._cache = RowCache(self._n_layers)
        self._reuse = Reuse(reuse_bytes)
        self._rows = Rows(settings.max_batch)
        self._generated = self._discarded = self._prefilled = self._reused = 0
        self._seconds = 0.0

    @property
    def capacity(self) -> int:
        """Rows that decode together at most."""
        return self._settings.max_batch

    @property
    def policy_version(self) -> int:
        """Version of the weights that serve."""
        return self._version

    @property
    def stats(self) -> dict[str, Any]:
        """generated_tokens; discarded_tokens: of rows that were aborted or lost; prefill_tokens: prefix
        tokens run through the model; reused_tokens: prefix tokens that were not, because another row had
        them; seconds spent in `step`."""
        return {
            "generated_tokens": self._generated,
            "discarded_tokens": self._discarded,
            "prefill_tokens": self._prefilled,
            "reused_tokens": self._reused,
            "seconds": self._seconds,
        }

    def set_version(self, version: int) -> None:
        """The weights have changed: rows under way end as CUT with what they have, and begin no more."""
        for row in range(self._rows.count):
            ticket, work = self._rows.tickets[row], self._rows.works[row]
            if self._rows.made[row]:
                self._ready.append((ticket, self._span(row, Finish.CUT)))
                self._tickets.discard(ticket)
            else:
                self._queue.appendleft((ticket, work))
        self._cache.clear()
        self._reuse.clear()
        self._rows.count = 0
        self._version = version
        if self._fused is not None:
            self._fused.forget()

    def publish(self, weights: Weights, version: int) -> None:
        """The weights, which are the model's own, are those of `version`."""
        self.set_version(version)

    def compare(self, weights: Weights) -> None:
        """There is nothing to compare: what is served are the trainer's tensors themselves."""

    def rest(self) -> None:
        """The policy is about to be updated: nothing to give back."""

    def submit(self, ticket: int, work: Continuation) -> None:
        """Queues one continuation. Raises DoesNotFit where prefix and `max_tokens` exceed the context."""
        prefix = work.prefix
        if ticket in self._tickets:
            raise SamplerError(f"ticket {ticket} is queued already")
        if len(prefix) == 0 or work.max_tokens < 1:
            raise SamplerError("a continuation needs a prefix and max_tokens of at least 1")
        if int(prefix.min()) < 0 or int(prefix.max()) >= self._vocabulary:
            raise SamplerError(
                f"a prefix has token ids outside the model's vocabulary of {self._vocabulary}"
            )
        if self._context is not None and len(prefix) + work.max_tokens > self._context:
            raise DoesNotFit(
                f"a prefix of {len(prefix)} tokens and max_tokens = {work.max_tokens} exceed the model's "
                f"context of {self._context}: lower sampler.max_completion_length"
            )
        self._tickets.add(ticket)
        self._queue.append((ticket, work))

    def abort(self, tickets: Iterable[int]) -> None:
        """Drops continuations: queued, under way, or ended and not handed out yet."""
        asked = set(tickets)
        lost = sum(len(span.tokens) for ticket, span in self._ready if ticket in asked)
        self._ready = [item for item in self._ready if item[0] not in asked]
        self._generated -= lost
        self._discarded += lost
        gone = asked & self._tickets
        if not gone:
            return
        self._tickets -= gone
        self._queue = deque(item for item in self._queue if item[0] not in gone)
        aborted = np.array([ticket in gone for ticket in self._rows.tickets_in_use], dtype=np.bool_)
        self._discarded += int(self._rows.made[: self._rows.count][aborted].sum())
        self._close(aborted)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Span]]:
        """Decodes until a share of the rows has ended; returns the ended ones, [] if there is no work."""
        began, training = time.perf_counter(), self._model.training
        if training:
            self._model.eval()  # type: ignore[no-untyped-call]
        try:
            while self._queue and self._rows.count < self._settings.max_batch:
                self._admit()
            enough = -(-self._rows.count // _RETURN_SHARE)
            while self._rows.count and len(self._ready) < enough:
                self._decode()
        except BaseException:
            # Rows may be half-way through a token, or half admitted: none of them can go on.
            self._drop_rows()
            self._tickets = {ticket for ticket, _ in self._queue}
            raise
        finally:
            if training:
                self._model.train()
            self._seconds += time.perf_counter() - began
        ended, self._ready = self._ready, []
        return ended

    # Rows -------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Moves queued work into rows, distinct prefixes encoded once, shortest first."""
        room = self._settings.max_batch - self._rows.count
        work = [self._queue.popleft() for _ in range(min(room, len(self._queue)))]
        groups: dict[bytes, _Group] = {}
        for ticket, item in work:
            groups.setdefault(item.prefix.tobytes(), []).append((ticket, item))
        fresh: list[_Group] = []
        for group in groups.values():
            prefix = group[0][1].prefix
            kept = self._reuse.find(prefix[:-1]) if len(prefix) > 1 else None
            if kept is None:
                fresh.append(group)
            else:
                self._resume(group, kept)
        for batch in _batches(sorted(fresh, key=lambda group: len(group[0][1].prefix))):
            self._encode(batch)

    def _resume(self, group: _Group, kept: Kept) -> None:
        """Adds the rows of one group, all but the last token of whose prefix an ended row had."""
        length, count = len(group[0][1].prefix) - 1, len(group)
        rows = self._cache.append(np.full(count, length, dtype=np.int64), 1)
        self._cache.put(rows, kept, length)
        self._rows.append(group)
        self._prefilled += count
        self._reused += count * length

    def _encode(self, groups: list[_Group]) -> None:
        """Adds the rows of some groups of equal prefix; all but the last token of each is encoded here."""
        prefixes = [group[0][1].prefix for group in groups]
        lengths = np.array([len(prefix) - 1 for prefix in prefixes], dtype=np.int64)
        which = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        encoded = RowCache(self._n_layers)
        encoded.append(lengths, 0)
        width = encoded.window.column
        if width:
            encoded.window.column = 0
            ids = np.full((len(groups), width), self._pad, dtype=np.int64)
            for row, prefix in enumerate(prefixes):
                ids[row, width - len(prefix) + 1 :] = prefix[:-1]
            columns = np.arange(width)
            start = encoded.start[:, None]
            self._forward(
                encoded,
                torch.from_numpy(ids).to(self._device),
                torch.from_numpy(columns >= start).to(self._device),
                torch.from_numpy(np.maximum(columns - start, 0)).to(self._device),
            )
            encoded.window.column = width
            if self._fused is not None:
                self._fused.reorder(encoded)
        rows = self._cache.append(lengths[which], 1)
        self._cache.fill(rows, encoded, torch.from_numpy(which).to(self._device))
        self._rows.append([item for group in groups for item in group])
        self._prefilled += int(lengths.sum()) + len(which)
        self._reused += int(lengths[which].sum() - lengths.sum())

    @torch.inference_mode()
    def _close(self, ended: NDArray[np.bool_]) -> None:
        """Takes the rows `ended` (bool[rows]) out of the batch."""
        if ended.any():
            left, holes, movers = moves(ended)
            self._cache.keep(left, holes, movers)
            self._rows.keep(left, holes, movers)

    def _drop_rows(self) -> None:
        """Drops all rows under way and all cached keys and values."""
        self._discarded += int(self._rows.made[: self._rows.count].sum())
        self._cache = RowCache(self._n_layers)
        self._reuse.clear()
        self._rows.count = 0

    # Decoding ---------------------------------------------------------------------------------------

    def _forward(self, cache: RowCache, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Logits behind the last column, float[rows, V]. ids, positions: int64[rows, q]; mask: bool."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _decode(self) -> None:
        """Draws a few tokens for every row and takes out those that ended."""
        rows, cache = self._rows, self._cache
        n = rows.count
        left = int((rows.limit[:n] - rows.made[:n]).min())
        count = min(self._look_every, left)
        cache.reserve(n, count)
        drawn = list(self._draw(count))
        tokens, logprobs, entropies = (
            torch.stack(column).cpu().numpy() for column in zip(*drawn, strict=True)
        )
        self._check(entropies)
        rows.write(tokens, logprobs, entropies)
        ended = np.zeros(n, dtype=np.bool_)
        for index in range(count):
            running = ~ended
            rows.made[:n] += running
            ended |= running & (self._stops[tokens[index]] | (rows.made[:n] == rows.limit[:n]))
        for row in np.flatnonzero(ended).tolist():
            self._finish(row)
        self._store(np.flatnonzero(ended))
        self._close(ended)

    def _draw(self, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """`count` tokens for every row: tokens int64[n], logprobs and entropies float32[n] of each."""
        rows, cache, device = self._rows, self._cache, self._device
        n = rows.count
        uniform = torch.from_numpy(uniforms(rows.seeds[:n], rows.made[:n], count)).to(device)
        positions = torch.from_numpy(cache.lengths).to(device)
        start = torch.from_numpy(cache.start[:n].copy()).to(device)
        tokens = torch.from_numpy(rows.last[:n].copy()).to(device)
        for index in range(count):
            window = cache.window
            mask = torch.arange(window.low, window.column + 1, device=device) >= start[:, None]
            logits = self._one_token(cache, tokens[:, None], mask, (positions + index)[:, None])
            cache.advance()
            tokens, logprobs, entropies = draw(logits, uniform[index], self._settings)
            yield tokens, logprobs, entropies

    def _one_token(self, cache: RowCache, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Logits float[rows, V] of a step; mask bool[rows, t]."""
        if self._fused is not None:
            bias = additive(mask, torch.float32)[:, None]
            return self._fused.step(ids[:, 0], bias, positions[:, 0], cache)
        if self._masks_by_hand:
            mask = additive(mask, self._model.dtype)[:, None, None]
        attention = decoding(self._model) if self._grouped else contextlib.nullcontext()
        with attention:
            return self._forward(cache, ids, mask, positions)

    def _check(self, entropies: NDArray[np.float32]) -> None:
        """Raises SamplerError where logits were NaN or infinite."""
        where = np.argwhere(~np.isfinite(entropies.T))
        if not len(where):
            return
        row, index = where[0].tolist()
        step = int(self._rows.made[row]) + index
        raise SamplerError(
            f"the model's logits are NaN at token {step} of ticket {self._rows.tickets[row]} "
            f"({len(np.unique(where[:, 0]))} of {entropies.shape[1]} rows), weights version {self._version}: "
            "the last update broke the weights; start a new run from a checkpoint (policy.model) with a "
            "lower update.lr"
        )

    def _store(self, ended: NDArray[np.int64]) -> None:
        """Keeps keys and values of rows that ended, for their branches."""
        if self._reuse.capacity == 0 or len(ended) == 0:
            return
        works = [self._rows.works[row] for row in ended]
        # The last token drawn was never run.
        drawn = [self._rows.tokens[row, : self._rows.made[row] - 1] for row in ended]
        tokens = [np.concatenate([w.prefix, d]) for w, d in zip(works, drawn, strict=True)]
        states, first = self._cache.take(ended)
        self._reuse.keep(states, first, tokens, [len(w.prefix) - 1 for w in works])

    def _finish(self, row: int) -> None:
        """Hands out the span of a row that ended."""
        ticket, work = self._rows.tickets[row], self._rows.works[row]
        if self._stops[self._rows.tokens[row, self._rows.made[row] - 1]]:
            finish = Finish.STOP
        else:
            finish = Finish.LENGTH if work.last else Finish.CUT
        self._tickets.discard(ticket)
        self._ready.append((ticket, self._span(row, finish)))

    def _span(self, row: int, finish: Finish) -> Span:
        rows, count = self._rows, int(self._rows.made[row])
        self._generated += count
        return Span(
            rows.tokens[row, :count].copy(),
            rows.logprobs[row, :count].copy(),
            rows.entropies[row, :count].copy(),
            self._version,
            finish,
        )


def _attends_to_all(config: Any) -> bool:
    """Whether each token sees all before it in every layer, so that one mask serves all layers."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return set(kinds) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None


def _batches(groups: list[_Group]) -> Iterator[list[_Group]]:
    """Groups in order, as many at once as fit `_ENCODE_TOKENS` when padded to the longest (the last)."""
    batch: list[_Group] = []
    for group in groups:
        if batch and len(group[0][1].prefix) * (len(batch) + 1) > _ENCODE_TOKENS:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch
