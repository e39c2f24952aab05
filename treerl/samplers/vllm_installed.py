"""Whether vLLM can be used here, found out without importing it."""

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch

from treerl.errors import ConfigError

TESTED = ("0.31", "0.32")
"""Minor versions that the tests were run on."""
_CPU_DISTRIBUTION = "vllm-cpu"
_BREAKING = ("torchvision", "torchaudio", "torchcodec")


class Installed(NamedTuple):
    """A distribution that has the import package `vllm`."""

    name: str
    version: str

    @property
    def device(self) -> str:
        """What it was built for."""
        return "cpu" if self.name == _CPU_DISTRIBUTION or "cpu" in self.version else "cuda"

    @property
    def tested(self) -> bool:
        """Whether treerl's tests were run on its minor version."""
        return ".".join(self.version.split(".")[:2]) in TESTED


def installed_vllm() -> Installed | None:
    """The installed vLLM, if any."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for name in (_CPU_DISTRIBUTION, "vllm"):
        if (found := _version(name)) is not None:
            return Installed(name, found)
    return Installed("vllm", "unknown")


def obstacle() -> str | None:
    """Why vLLM cannot be used here, and the remedy; None: it can."""
    found = installed_vllm()
    if found is None:
        return (
            "vLLM is not installed. For CUDA: pip install 'treerl[vllm]'; for a CPU: "
            "scripts/install_vllm_cpu of the repository"
        )
    if found.device == "cuda":
        if torch.cuda.is_available():
            return None
        return (
            f"{found.name} {found.version} is a build for GPUs and torch sees none; for a CPU: "
            "scripts/install_vllm_cpu of the repository"
        )
    builds = {name: _version(name) for name in _BREAKING}
    wrong = [f"{name} {v}" for name, v in builds.items() if v is not None and "+cpu" not in v]
    if wrong:
        names = " ".join(item.split()[0] for item in wrong)
        return (
            f"{', '.join(wrong)}: builds for CUDA, with which {found.name} does not load models; text models "
            f"need none of them: pip uninstall {names}"
        )
    return None


def require_vllm() -> None:
    """Raises ConfigError where vLLM cannot be used here; loads nothing."""
    reason = obstacle()
    if reason is not None:
        raise ConfigError(f'sampler.kind = "vllm": {reason}. Or set sampler.kind = "transformers"')


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
