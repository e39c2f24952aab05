"""`VllmEngine`: vLLM's engine in this process, tokens in and tokens out.

The one module that knows vLLM's names and versions (0.31 and 0.32); what runs inside its worker is in
treerl.samplers.vllm_worker. It knows nothing of trees, and how weights get here is not its business.
"""

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treerl.config import EngineSettings
from treerl.errors import SamplerError
from treerl.samplers.vllm_installed import require_vllm
from treerl.samplers.vllm_transfer import EngineWeights, transfer_fields
from treerl.samplers.weights import Weights

ENTROPY_ID = -7
"""Token id under which the worker hands over the entropy of a step."""
WORKER = "treerl.samplers.vllm_worker.WorkerExtension"
CPU_CACHE_GIB = 1.0
CPU_BLOCK = 32
_CPU_STEP_TOKENS = 4096
"""Tokens of one pass of the model, at least."""

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
"""In this process; with the sampler that the worker replaces; without a call home."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How to draw one continuation. top_k = 0: no limit; temperature = 0: greedy."""

    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a request came to. Columns have one length, 0 only where an aborted request had no token yet.

    tokens: int32[n], the stop token included. logprobs: float32[n], of the distribution drawn from.
    entropies: float32[n], of the raw logits at temperature 1. stopped: the last token is a stop token.
    given_up: why vLLM ended it before its time, "" where it did not.
    cached: tokens of the prefix that the prefix cache had.
    """

    request_id: str
    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    entropies: NDArray[np.float32]
    stopped: bool
    given_up: str
    cached: int


Deliver = Callable[[Drawn], None]


class VllmEngine:
    """vLLM's engine on the model in `folder` (config.json and safetensors), as a context manager.

    One at a time in a process: vLLM keeps its groups in global variables.

    max_length: tokens of prefix and continuation together. dtype: of the weights where `settings` leave it to
    the policy. lora_rank: make room for the policy's adapter of this rank, and serve it beside the weights in
    `folder`; None: full weights alone. options: further fields of vLLM's EngineArgs. Raises ConfigError where
    vLLM is missing and SamplerError where it does not start. The process is left as it was: torch's threads,
    random states, environment variables (those of vLLM apart).
    """

    def __init__(
        self,
        folder: Path | str,
        settings: EngineSettings,
        *,
        max_length: int,
        max_batch: int,
        dtype: torch.dtype,
        lora_rank: int | None = None,
        **options: Any,
    ) -> None:
        require_vllm()
        self.max_length = max_length
        self.max_batch = max_batch
        self.policy_version = 0
        self._internal: dict[str, str] = {}
        self._deliver: dict[str, Deliver] = {}
        self._owns_group = not torch.distributed.is_initialized()
        limits = {"max_model_len": max_length, "max_num_seqs": max_batch}
        try:
            with _undisturbed():
                self.llm_engine: Any = _start(
                    settings, dtype, {"model": str(folder), **limits, **options}, lora_rank
                )
        except Exception as error:
            raise SamplerError(
                f"vLLM's engine does not start on {folder}: {error}\nThe keys under [sampler.vllm] "
                "(kv_cache_gib, gpu_memory_utilization, dtype, block_size) and sampler.max_batch bear on it"
            ) from error
        self.rpc("report_entropies")
        self.weights = EngineWeights(
            self.llm_engine, serve_adapter=lora_rank is not None, sleep_level=settings.sleep
        )

    def __enter__(self) -> "VllmEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def busy(self) -> bool:
        """Whether requests are under way."""
        return bool(self._internal)

    def add(
        self,
        request_id: str,
        tokens: Sequence[int] | NDArray[np.int32],
        drawing: Drawing,
        deliver: Deliver | None = None,
    ) -> None:
        """Queues one continuation of `tokens`; `deliver` gets its result, or `step` returns it.

        Raises SamplerError where vLLM refuses it.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompt = {"type": "token", "prompt_token_ids": [int(token) for token in tokens]}
        adapter = self.weights.request
        try:
            params = SamplingParams(
                temperature=drawing.temperature,
                top_p=drawing.top_p,
                top_k=drawing.top_k,
                seed=drawing.seed,
                max_tokens=drawing.max_tokens,
                stop_token_ids=list(drawing.stop_token_ids),
                logprobs=1,  # the drawn token and, in the place of the likeliest one, the entropy
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._internal[request_id] = self.llm_engine.add_request(
                request_id, prompt, params, lora_request=adapter
            )
        except Exception as error:  # of several unrelated classes
            raise SamplerError(f"vLLM refuses request {request_id}: {error}") from error
        if deliver is not None:
            self._deliver[request_id] = deliver

    def step(self) -> list[Drawn]:
        """One pass of the model over what is under way; requests that ended by it, if not delivered.

        Raises SamplerError where the engine fails; it cannot be used any more then.
        """
        random_state = torch.get_rng_state()  # vLLM draws from it on a CPU, to no effect
        try:
            outputs = self.llm_engine.step()
        except Exception as error:
            raise SamplerError(f"vLLM's engine failed: {type(error).__name__}: {error}") from error
        finally:
            torch.set_rng_state(random_state)
        ended = []
        for output in outputs:
            self._internal.pop(output.request_id, None)
            drawn = _drawn(output)
            deliver = self._deliver.pop(output.request_id, None)
            if deliver is None:
                ended.append(drawn)
            else:
                deliver(drawn)
        return ended

    def abort(self, request_ids: Iterable[str]) -> list[Drawn]:
        """Ends requests now; returns what each of them had drawn, which nobody else will hear of."""
        known = [request_id for request_id in request_ids if request_id in self._internal]
        states = self.llm_engine.output_processor.request_states
        partial = [_partial(r, states[self._internal[r]]) for r in known]
        self.llm_engine.abort_request(known)
        for request_id in known:
            del self._internal[request_id]
            self._deliver.pop(request_id, None)
        return partial

    def rpc(self, method: str | Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Calls a method of the worker (or WorkerExtension), or a function with it; one result a worker."""
        results: list[Any] = self.llm_engine.collective_rpc(method, args=args, kwargs=kwargs)
        return results

    def reset_prefix_cache(self) -> None:
        """Forgets all cached keys and values. Raises SamplerError while requests are under way."""
        if not self.llm_engine.reset_prefix_cache():
            raise SamplerError(
                f"the prefix cache cannot be reset while {len(self._internal)} requests are under way"
            )

    def receive(self, weights: Weights, version: int) -> None:
        """Serves `weights` as `version` from now on, with nothing cached.

        Raises SamplerError while requests are under way: none may live across a hand-over.
        """
        if self.busy:
            raise SamplerError(
                f"weights cannot be handed over while {len(self._internal)} requests are under way"
            )
        self.weights.receive(weights, version)
        self.reset_prefix_cache()
        self.policy_version = version

    def close(self) -> None:
        """Ends the engine and frees its memory; twice does no harm."""
        if self.llm_engine is None:
            return
        from vllm.distributed.parallel_state import (
            destroy_distributed_environment,
            destroy_model_parallel,
        )

        self.weights.close()
        self.llm_engine.engine_core.shutdown()
        self.llm_engine = None
        self._internal.clear()
        self._deliver.clear()
        if self._owns_group:  # else another engine of this process works in it
            destroy_model_parallel()
            destroy_distributed_environment()


def _fields(settings: EngineSettings, dtype: torch.dtype, *, on_cpu: bool) -> dict[str, Any]:
    """Fields of EngineArgs that the recipe decides."""
    cache_gib, block, eager = settings.kv_cache_gib, settings.block_size, settings.enforce_eager
    if on_cpu:
        cache_gib = cache_gib or CPU_CACHE_GIB
        block = block or CPU_BLOCK
        eager = True if eager is None else eager
    name = str(dtype).removeprefix("torch.")
    return {
        "dtype": name if settings.dtype == "auto" else settings.dtype,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "kv_cache_memory_bytes": None if cache_gib is None else int(cache_gib * 2**30),
        "block_size": block,
        "enforce_eager": bool(eager),
        "enable_prefix_caching": True,
        "enable_sleep_mode": settings.sleep > 0 and not on_cpu,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,
        "worker_extension_cls": WORKER,
    }


def _start(
    settings: EngineSettings, dtype: torch.dtype, options: dict[str, Any], lora_rank: int | None
) -> Any:
    """A vLLM engine in this process."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    os.environ.update(_ENVIRONMENT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about vLLM's own code, when it is imported
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        on_cpu = current_platform.is_cpu()
        fields = _fields(settings, dtype, on_cpu=on_cpu) | transfer_fields(lora_rank) | options
        if on_cpu:
            # vLLM rewinds the generator of a request whose prompt it runs in parts, and those of a CPU cannot
            # be. So prompts run whole, and the budget of a step has room for any.
            fields["enable_chunked_prefill"] = False
            room = fields["max_model_len"] + fields["max_num_seqs"]
            fields["max_num_batched_tokens"] = max(_CPU_STEP_TOKENS, room)
        return LLMEngine.from_engine_args(EngineArgs(**fields))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Undoes what the start of vLLM does to this process: threads, random states, environment.

    It puts a function that does nothing in the place of torch.set_num_threads, seeds all global generators,
    and leaves LD_PRELOAD and others to child processes.
    """
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    environment = dict(os.environ)
    try:
        with _real_stdout():
            yield
    finally:
        torch.set_num_threads = set_threads
        set_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        for name in os.environ.keys() - environment.keys():
            if not name.startswith("VLLM_"):
                del os.environ[name]
        os.environ.update({k: v for k, v in environment.items() if not k.startswith("VLLM_")})


@contextlib.contextmanager
def _real_stdout() -> Iterator[None]:
    """vLLM 0.31 wants a descriptor of sys.stdout; that of a notebook has none."""
    try:
        sys.stdout.fileno()
    except (OSError, AttributeError):
        with contextlib.redirect_stdout(sys.__stdout__):
            yield
    else:
        yield


def _drawn(output: Any) -> Drawn:
    """A finished RequestOutput."""
    completion = output.outputs[0]
    return _columns(
        output.request_id,
        completion.token_ids,
        completion.logprobs or [],
        reason=completion.finish_reason,
        cached=output.num_cached_tokens or 0,
    )


def _partial(request_id: str, state: Any) -> Drawn:
    """What a request under way has drawn: its state in vLLM's output processor."""
    tokens, logprobs = state.detokenizer.output_token_ids, state.logprobs_processor.logprobs
    return _columns(request_id, tokens, logprobs, reason="abort", cached=state.num_cached_tokens)


def _columns(
    request_id: str, tokens: Sequence[int], logprobs: Sequence[Any], *, reason: str, cached: int
) -> Drawn:
    return Drawn(
        request_id,
        np.array(tokens, dtype=np.int32),
        np.array([row[t].logprob for row, t in zip(logprobs, tokens, strict=True)], np.float32),
        np.array([row[ENTROPY_ID].logprob for row in logprobs], dtype=np.float32),
        reason == "stop",
        "" if reason in ("stop", "length") else reason,
        cached,
    )
