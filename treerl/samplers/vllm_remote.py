"""Weights to a vLLM engine in another process: CUDA IPC within one GPU, NCCL between GPUs.

Written to vLLM's weight transfer (0.32; trainer side: WeightTransferTrainerFactory) and tested here against a
client that records; it has not yet run on CUDA. The engine must have been started with
`weight_transfer_config={"backend": "ipc"}` or "nccl", and have no request under way when weights are sent.
Imported where vllm is.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from treerl.errors import SamplerError
from treerl.samplers.weights import Weights


class RemoteEngine(Protocol):
    """The methods of vLLM's `LLM` that a transfer drives, called in the engine's process."""

    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None:
        """request: {"init_info": ...}"""

    def start_weight_update(self) -> None:
        """First phase."""

    def update_weights(self, request: dict[str, Any]) -> None:
        """request: {"update_info": ...}; with NCCL it returns once the broadcast has arrived."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Last phase."""

    def reset_prefix_cache(self) -> bool:
        """False while requests are under way: nothing was reset."""


class _Client:
    """vLLM's weight sync client over a `RemoteEngine`: plain dicts become requests, the version is added."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self.version: str | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._engine.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self._engine.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        self._engine.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._engine.finish_weight_update(weight_version or self.version)


class _Source(WeightSource):  # type: ignore[misc]
    """The tensors of the `Weights` at hand, read anew at every transfer."""

    def __init__(self) -> None:
        self.weights: Weights | None = None

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in self]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        assert self.weights is not None
        return self.weights.named()


class RemoteTransfer:
    """Sends full weights to one engine; made by `ipc_transfer` or `nccl_transfer`."""

    def __init__(self, engine: RemoteEngine, init_info: Any) -> None:
        self._engine, self._client, self._source = engine, _Client(engine), _Source()
        self._trainer = WeightTransferTrainerFactory.trainer_init(
            init_info=init_info, client=self._client, source=self._source
        )

    def send(self, weights: Weights, version: int) -> None:
        """Serves `weights` as `version` with nothing cached. Raises SamplerError if requests are under way."""
        self._source.weights, self._client.version = weights, str(version)
        self._trainer.send_weights()
        if not self._engine.reset_prefix_cache():
            raise SamplerError(
                f"requests were under way when version {version} was sent: their keys and values are those of "
                "earlier weights"
            )

    def close(self) -> None:
        """Releases communicators."""
        self._trainer.shutdown()


def ipc_transfer(engine: RemoteEngine, *, packed: bool = False) -> RemoteTransfer:
    """Between two processes on one GPU: tensors are shared by handle. Not yet run on CUDA.

    Handles travel pickled: VLLM_ALLOW_INSECURE_SERIALIZATION=1 where calls cross processes.
    """
    return RemoteTransfer(engine, IPCTrainerInitInfo(rank=0, packed=packed))


def nccl_transfer(
    engine: RemoteEngine, *, address: str, port: int, n_workers: int, packed: bool = True
) -> RemoteTransfer:
    """Between GPUs: this process is rank 0 of a group with the engine's `n_workers`. Not yet run on CUDA.

    `engine`'s calls are made from another thread than the broadcast, and both wait for each other.
    """
    info = NCCLTrainerInitInfo(
        master_address=address, master_port=port, world_size=1 + n_workers, rank=0, packed=packed
    )
    return RemoteTransfer(engine, info)
