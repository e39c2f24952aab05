"""Weights inside vLLM's worker: how they are taken over from the trainer, and read back for fingerprints.

`InProcessTransfer` is a backend of vLLM's own weight transfer for an engine in the trainer's process: tensors
go by reference and are copied in (docs.vllm.ai, "Weight Transfer"). Imported where vllm is, by the worker.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from treerl.samplers.weights import Fingerprints, columns_of, fingerprint


@dataclass
class NoInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """One process: there is nothing to meet about."""


@dataclass
class NamedTensors(WeightTransferUpdateInfo):  # type: ignore[misc]
    """The trainer's tensors by their transformers names."""

    named: Iterable[tuple[str, Tensor]]


class InProcessTransfer(WeightTransferEngine[NoInfo, NamedTensors]):  # type: ignore[misc]
    """start: layers expect a checkpoint again; receive: they take the tensors, cast to their dtype; finish:
    they are repacked for their kernels."""

    init_info_cls = NoInfo
    update_info_cls = NamedTensors

    def init_transfer_engine(self, init_info: NoInfo) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Makes the layers loadable."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: NamedTensors) -> None:
        """Loads the tensors as a checkpoint's."""
        self.model.load_weights(update_info.named)

    def finish_weight_update(self) -> None:
        """Repacks, the tied head included."""
        finalize_layerwise_reload(self.model, self.model_config)
        repack_head(self.model)

    def shutdown(self) -> None:
        """Nothing to do."""


def repack_head(model: Any) -> None:
    """On a CPU, packs the head's weight anew.

    The reload repacks a layer when its own weight is loaded; a head tied to the embeddings has none, and
    would go on with what it had packed (vLLM 0.32), without an error.
    """
    head: Any = getattr(model, "lm_head", None)
    if hasattr(head, "cpu_linear") and head.weight.numel():
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        dispatch_cpu_unquantized_gemm(head, remove_weight=False)


@torch.inference_mode()
def served_fingerprints(model: Any, version: int, dtype: torch.dtype) -> Fingerprints:
    """Of what `model`, a vLLM model that is not split over devices, computes with.

    Names are those of the transformers model: joined layers (qkv_proj) are taken apart. Quantized layers,
    fused experts and what else has no plain weight are left out.
    """
    joined = getattr(model, "packed_modules_mapping", {})
    found: Fingerprints = {}
    for name, layer in model.named_modules():
        plain = name.replace(".base_layer", "")
        if isinstance(layer, LinearBase):
            for part, weight, bias in _linear_parts(plain, layer, joined, version):
                found[f"{part}.weight"] = fingerprint(weight, dtype)
                if bias is not None:
                    found[f"{part}.bias"] = fingerprint(bias, dtype)
        elif isinstance(layer, VocabParallelEmbedding):
            columns = _embedding_columns(plain, layer, version)
            if columns is not None:
                found[f"{plain}.weight"] = fingerprint(columns, dtype)
        else:
            for key, value in layer.named_parameters(recurse=False):
                if value.ndim == 1:
                    found[f"{plain}.{key}"] = fingerprint(value, dtype)
    return found


@torch.inference_mode()
def adapter_fingerprints(runner: Any, adapter_id: int, rank: int, version: int) -> Fingerprints:
    """Of the adapter that lies ready under `adapter_id`, scaling in B; empty where there is none.

    Names are those of peft's file. runner: vLLM's model runner.
    """
    manager = runner.lora_manager._adapter_manager
    if adapter_id not in manager.lora_index_to_id:
        return {}
    slot = manager.lora_index_to_id.index(adapter_id)
    joined = getattr(runner.get_model(), "packed_modules_mapping", {})
    found: Fingerprints = {}
    for name, layer in manager.modules.items():
        parent, _, last = name.rpartition(".")
        parts = joined.get(last, [last])
        # The head's layer, which takes no adapter here, has one tensor and no tuple.
        if not isinstance(layer.lora_a_stacked, tuple) or len(parts) != len(layer.lora_a_stacked):
            continue
        for part, a, b in zip(parts, layer.lora_a_stacked, layer.lora_b_stacked, strict=True):
            # The room is for the largest rank.
            for side, matrix in (("lora_A", a[slot, 0, :rank]), ("lora_B", b[slot, 0, :, :rank])):
                file_name = f"base_model.model.{parent}.{part}.{side}.weight"
                columns = columns_of(file_name, matrix.shape[1], version)
                found[file_name] = fingerprint(matrix[:, columns], matrix.dtype)
    return found


def _linear_parts(
    name: str, layer: Any, joined: dict[str, list[str]], version: int
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """(name, columns, bias) of each transformers layer in a linear layer."""
    if not isinstance(layer.quant_method, UnquantizedLinearMethod):
        return
    parent, _, last = name.rpartition(".")
    names = [f"{parent}.{part}" for part in joined.get(last, [last])]
    sizes = [int(size) for size in getattr(layer, "output_sizes", ())]
    if len(names) == 1:
        sizes = [int(layer.output_size)]
    if len(sizes) != len(names):
        return
    start = 0
    for part, size in zip(names, sizes, strict=True):
        rows = slice(start, start + size)
        columns = columns_of(f"{part}.weight", int(layer.input_size), version)
        bias: Tensor | None = getattr(layer, "bias", None)
        yield part, _columns(layer, columns)[rows], None if bias is None else bias[rows]
        start += size


def _embedding_columns(name: str, layer: Any, version: int) -> Tensor | None:
    """Columns of an embedding or a head, without the rows that pad the vocabulary."""
    if not isinstance(layer.quant_method, UnquantizedEmbeddingMethod):
        return None
    columns = columns_of(f"{name}.weight", int(layer.embedding_dim), version)
    # Embeddings are looked up in `weight`; a head computes, on a CPU with a packed copy.
    is_head = name.rpartition(".")[2] == "lm_head"
    found = _columns(layer, columns) if is_head else layer.weight[:, columns]
    rows: Tensor = found[: layer.org_vocab_size]
    return rows


def _columns(layer: Any, columns: list[int]) -> Tensor:
    """Columns of the weight that the layer computes with, [rows, c]."""
    if not hasattr(layer, "cpu_linear"):
        direct: Tensor = layer.weight[:, columns]
        return direct
    width = getattr(layer, "input_size", None) or layer.embedding_dim
    probe = torch.zeros(len(columns), width, dtype=_dtype(layer))
    probe[range(len(columns)), columns] = 1.0
    packed: Tensor = layer.quant_method.apply(layer, probe, None)
    return packed.t()


def _dtype(layer: Any) -> torch.dtype:
    dtype: torch.dtype = layer.weight.dtype
    return dtype
