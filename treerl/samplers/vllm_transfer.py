"""The trainer's weights to a vLLM engine in this process, by vLLM's own four-phase transfer, and back as proof.

Full weights go through the backend in treerl.samplers.vllm_weights; adapters as files in a folder of the
engine's, under a name with their version, so that no cached key or value of another version can be hit.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from treerl.errors import SamplerError
from treerl.samplers.weights import (
    Adapter,
    Compared,
    Fingerprints,
    Weights,
    compare,
    fingerprints_of,
)

BACKEND = "treerl_in_process"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""


def transfer_fields(lora_rank: int | None) -> dict[str, Any]:
    """Fields of EngineArgs: the backend, which this makes known to vLLM, and room for one adapter."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "treerl.samplers.vllm_weights", "InProcessTransfer"
        )
    arguments: dict[str, Any] = {"weight_transfer_config": {"backend": BACKEND}}
    if lora_rank is not None:
        room = next((rank for rank in RANKS if rank >= lora_rank), None)
        if room is None:
            raise SamplerError(f"policy.lora.r = {lora_rank}: vLLM takes up to {RANKS[-1]}")
        arguments |= {"enable_lora": True, "max_lora_rank": room, "max_loras": 1}
    return arguments


class EngineWeights:
    """Hands weights to one engine (vLLM's LLMEngine) and reads back what it serves.

    serve_adapter: the engine has room for an adapter and serves it beside the base weights it was loaded
    with; else full weights go over, an adapter merged. sleep_level: what the engine gives back while the
    policy is updated (1: the cache; 2: the weights too), where it was started with sleep mode, on a GPU.

    Sleep is written to vLLM's documented interface and has not yet run on CUDA.
    """

    def __init__(self, llm_engine: Any, *, serve_adapter: bool, sleep_level: int = 0) -> None:
        self._engine = llm_engine
        self._serve_adapter = serve_adapter
        can_sleep = llm_engine.vllm_config.model_config.enable_sleep_mode
        self._sleep_level = sleep_level if can_sleep else 0
        self._asleep = self._begun = False
        self._folder: TemporaryDirectory[str] | None = None
        self._request: Any = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that serve."""
        dtype: torch.dtype = self._engine.vllm_config.model_config.dtype
        return dtype

    @property
    def request(self) -> Any:
        """What a request must carry to be served by the adapter, if any. Raises SamplerError while asleep."""
        if self._asleep:
            raise SamplerError(
                "vLLM's engine is asleep, and wakes with the next hand-over of weights"
            )
        return self._request

    def sleep(self) -> None:
        """Gives back memory of a GPU until the next `receive`; elsewhere nothing."""
        if self._sleep_level and not self._asleep:
            self._engine.sleep(self._sleep_level)
            self._asleep = True

    def receive(self, weights: Weights, version: int) -> None:
        """Serves `weights` as `version` from the next request on; wakes the engine. Raises SamplerError."""
        adapter = weights.adapter if self._serve_adapter else None
        try:
            if self._asleep:
                self._engine.wake_up(["weights"])
            if adapter is None:
                self._send_full(weights.named(), version)
            else:
                if self._asleep and self._sleep_level == 2:
                    self._send_full(adapter.base(), version)
                self._send_adapter(adapter, version)
            if self._asleep:
                self._engine.wake_up(["kv_cache"])
                self._asleep = False
        except Exception as error:  # of vLLM's, of many classes
            raise SamplerError(
                f"the weights of version {version} did not reach vLLM: {type(error).__name__}: {error}"
            ) from error

    def compare(self, weights: Weights, version: int) -> Compared:
        """Fingerprints of `weights` and of what the engine computes with."""
        if self._serve_adapter and weights.adapter is not None:
            base = self._compare_full(weights.adapter.base(), version, weights)
            return _joined(base, self._compare_adapter(weights.adapter, version))
        return self._compare_full(weights.named(), version, weights)

    def close(self) -> None:
        """Removes the folder of adapters."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    # Full weights -----------------------------------------------------------------------------------

    def _send_full(self, named: Iterator[tuple[str, Tensor]], version: int) -> None:
        """The four phases; tensors go by reference and are copied and cast by the engine."""
        if not self._begun:
            self._rpc("init_weight_transfer_engine", init_info={})
            self._begun = True
        self._rpc("start_weight_update")
        self._rpc("update_weights", update_info={"named": named})
        self._rpc("finish_weight_update")
        self._engine.set_weight_version(str(version))

    def _compare_full(self, named: Any, version: int, weights: Weights) -> Compared:
        served, dtype = self._rpc(_read_served, version)[0]
        return compare(named, served, version, dtype, weights.tied)

    # An adapter -------------------------------------------------------------------------------------

    def _send_adapter(self, adapter: Adapter, version: int) -> None:
        """Writes the adapter where vLLM reads it, has it loaded, and drops the one before."""
        from vllm.lora.request import LoRARequest

        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="treerl-adapter-")
        path = Path(self._folder.name)
        tensors = {name: t.contiguous().cpu() for name, t in adapter.tensors.items()}
        save_file(tensors, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps(dict(adapter.config)))
        old, request = self._request, LoRARequest(f"policy-{version}", version + 1, str(path))
        if old is not None:
            self._engine.remove_lora(old.lora_int_id)
        if not self._engine.add_lora(request):
            raise ValueError(f"vLLM did not take the adapter {request.lora_name}")
        self._request = request
        self._engine.set_weight_version(str(version))

    def _compare_adapter(self, adapter: Adapter, version: int) -> Compared:
        """All tensors of the adapter; those that the engine has not got count as different."""
        rank = int(adapter.config["r"])
        number = 0 if self._request is None else self._request.lora_int_id
        served, dtype = self._rpc(_read_adapter, number, rank, version)[0]
        scaled = {
            name: tensor.to(dtype) * (adapter.scaling if ".lora_B." in name else 1.0)
            for name, tensor in adapter.tensors.items()
        }
        sent = fingerprints_of(scaled.items(), version, dtype)
        nothing = fingerprints_of([("none", torch.zeros(0))], version, dtype)["none"]
        return Compared(sent, {name: served.get(name, nothing) for name in sent})

    def _rpc(self, method: Any, *args: Any, **kwargs: Any) -> list[Any]:
        results: list[Any] = self._engine.collective_rpc(method, args=args, kwargs=kwargs)
        return results


def _joined(*parts: Compared) -> Compared:
    sent: Fingerprints = {}
    served: Fingerprints = {}
    for part in parts:
        sent |= part.sent
        served |= part.served
    return Compared(sent, served)


def _read_served(worker: Any, version: int) -> tuple[Fingerprints, torch.dtype]:
    """Runs in the worker."""
    from treerl.samplers.vllm_weights import served_fingerprints

    runner = worker.model_runner
    dtype = runner.model_config.dtype
    return served_fingerprints(runner.get_model(), version, dtype), dtype


def _read_adapter(
    worker: Any, number: int, rank: int, version: int
) -> tuple[Fingerprints, torch.dtype]:
    """Runs in the worker."""
    from treerl.samplers.vllm_weights import adapter_fingerprints

    runner = worker.model_runner
    found = adapter_fingerprints(runner, number, rank, version) if number else {}
    return found, runner.lora_config.lora_dtype
