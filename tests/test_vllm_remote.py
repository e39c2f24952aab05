"""Transfer to an engine in another process, and sleep: vLLM's trainer side against clients that record."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support_vllm import NEEDS_VLLM
from treerl.errors import SamplerError
from treerl.samplers.vllm_transfer import EngineWeights
from treerl.samplers.weights import Adapter, Weights

pytestmark = NEEDS_VLLM

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4)}
WEIGHTS = Weights(lambda: iter(TENSORS.items()), {})


class Recorder:
    """An engine that keeps what it is called with."""

    def __init__(self, *, idle: bool = True, can_sleep: bool = True) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._idle = idle
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(enable_sleep_mode=can_sleep, dtype=torch.float32)
        )

    def reset_prefix_cache(self) -> bool:
        self.calls.append(("reset_prefix_cache", ()))
        return self._idle

    def collective_rpc(self, method, args=(), kwargs=None):
        given = {k: dict(v) for k, v in (kwargs or {}).items()}
        if "named" in given.get("update_info", {}):
            given = {"update_info": [name for name, _ in given["update_info"]["named"]]}
        self.calls.append((method, given))

    def add_lora(self, request) -> bool:
        self.calls.append(("add_lora", request.lora_name))
        return True

    def remove_lora(self, number) -> bool:
        self.calls.append(("remove_lora", number))
        return True

    def __getattr__(self, name):
        def call(*given):
            self.calls.append((name, given))

        return call

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def no_cuda(monkeypatch):
    """The few calls of CUDA that vLLM's trainer side makes."""
    from vllm.distributed.weight_transfer import ipc_engine, nccl_engine

    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="GPU-0")
    )
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr(
        ipc_engine, "reduce_tensor", lambda tensor: (None, ("handle", tensor.sum()))
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    trainer = nccl_engine.NCCLTrainerWeightTransferEngine
    monkeypatch.setattr(trainer, "_post_send_sync", staticmethod(lambda: None), raising=False)
    return nccl_engine


def test_ipc_sends_handles_of_all_tensors_and_the_version(no_cuda):
    from treerl.samplers.vllm_remote import ipc_transfer

    engine = Recorder()
    ipc_transfer(engine).send(WEIGHTS, 7)
    assert engine.names == [
        "init_weight_transfer_engine",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
        "reset_prefix_cache",
    ]
    given = dict(engine.calls)
    assert given["init_weight_transfer_engine"] == ({"init_info": {"packed": False}},)
    (request,) = given["update_weights"]
    assert request["update_info"]["names"] == ["a.weight", "b.weight"]
    assert request["update_info"]["shapes"] == [[2, 3], [4]]
    assert request["update_info"]["dtype_names"] == ["float32", "float32"]
    assert [list(handle) for handle in request["update_info"]["ipc_handles"]] == [["GPU-0"]] * 2
    assert given["finish_weight_update"] == ("7",)


def test_nccl_broadcasts_what_it_announced(no_cuda, monkeypatch):
    from treerl.samplers.vllm_remote import nccl_transfer

    sent: list[torch.Tensor] = []
    group = SimpleNamespace(broadcast=lambda tensor, src, stream: sent.append(tensor))
    monkeypatch.setattr(no_cuda, "open_trainer_endpoint", lambda info: group)
    engine = Recorder()
    transfer = nccl_transfer(engine, address="10.0.0.1", port=5001, n_workers=2, packed=False)
    (init,) = dict(engine.calls)["init_weight_transfer_engine"]
    assert init["init_info"]["world_size"] == 3
    assert init["init_info"]["rank_offset"] == 1
    transfer.send(WEIGHTS, 3)
    (request,) = dict(engine.calls)["update_weights"]
    assert request["update_info"]["names"] == ["a.weight", "b.weight"]
    assert [tensor.tolist() for tensor in sent] == [t.tolist() for t in TENSORS.values()]
    assert dict(engine.calls)["finish_weight_update"] == ("3",)
    assert engine.names[-1] == "reset_prefix_cache"


def test_a_cache_that_cannot_be_reset_is_an_error(no_cuda):
    from treerl.samplers.vllm_remote import ipc_transfer

    with pytest.raises(SamplerError, match="requests were under way when version 7 was sent"):
        ipc_transfer(Recorder(idle=False)).send(WEIGHTS, 7)


# Sleep


def test_a_sleeping_engine_wakes_for_weights_first_and_for_the_cache_last():
    engine = Recorder()
    weights = EngineWeights(engine, serve_adapter=False, sleep_level=2)
    weights.sleep()
    weights.sleep()
    with pytest.raises(SamplerError, match="asleep"):
        _ = weights.request
    weights.receive(WEIGHTS, 5)
    assert engine.calls == [
        ("sleep", (2,)),
        ("wake_up", (["weights"],)),
        ("init_weight_transfer_engine", {"init_info": {}}),
        ("start_weight_update", {}),
        ("update_weights", {"update_info": ["a.weight", "b.weight"]}),
        ("finish_weight_update", {}),
        ("set_weight_version", ("5",)),
        ("wake_up", (["kv_cache"],)),
    ]
    assert weights.request is None


@pytest.mark.parametrize("level", [1, 2])
def test_level_two_loses_the_base_weights_of_an_adapter_too(level):
    engine = Recorder()
    weights = EngineWeights(engine, serve_adapter=True, sleep_level=level)
    adapter = Adapter(
        {"r": 4, "lora_alpha": 8}, {"x": torch.ones(2)}, lambda: iter(TENSORS.items())
    )
    given = Weights(lambda: iter(()), {}, adapter)
    weights.receive(given, 1)
    weights.sleep()
    weights.receive(given, 2)
    sent = [call for call in engine.calls if call[0] == "update_weights"]
    assert sent == [("update_weights", {"update_info": ["a.weight", "b.weight"]})] * (level - 1)
    assert ("add_lora", "policy-2") in engine.calls
    assert ("remove_lora", 2) in engine.calls
    assert weights.request.lora_name == "policy-2"
    weights.close()


def test_an_engine_without_sleep_mode_stays_awake():
    engine = Recorder(can_sleep=False)
    weights = EngineWeights(engine, serve_adapter=False, sleep_level=2)
    weights.sleep()
    assert engine.calls == []
