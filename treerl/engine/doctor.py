"""`treerl doctor`: what is installed, what a run would use, and why not something else."""

import importlib
import os
import platform
import shutil
import sqlite3
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from treerl import __version__

PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "sqlalchemy",
    "alembic",
    "math-verify",
    "reasoning-gym",
)
EXTRAS = {
    "gguf": ("gguf", "accelerate"),
    "lora": ("peft",),
    "parquet": ("pyarrow",),
}


def diagnose() -> dict[str, str]:
    """Findings by name, in the order to read them."""
    findings = {
        "treerl": __version__,
        "python": f"{platform.python_version()} on {platform.platform(terse=True)}",
        "cores": f"{os.cpu_count()}",
        "sqlite": sqlite3.sqlite_version,
    }
    findings |= {name: _version(name) for name in PACKAGES}
    findings |= _device()
    findings |= {f"extra {name}": _extra(name, parts) for name, parts in EXTRAS.items()}
    findings |= _samplers()
    findings["free disk here"] = f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB"
    return findings


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing: pip install treerl again"


def _extra(name: str, parts: tuple[str, ...]) -> str:
    missing = [part for part in parts if not _installed(part)]
    if missing:
        return f"not installed ({', '.join(missing)}): pip install 'treerl[{name}]'"
    return ", ".join(f"{part} {version(part)}" for part in parts)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _samplers() -> dict[str, str]:
    """What `sampler.kind` may be here, and why not the other."""
    installed = importlib.import_module("treerl.samplers.vllm_installed")
    found, reason = installed.installed_vllm(), installed.obstacle()
    if reason is not None:
        vllm = f"not usable: {reason}"
    else:
        vllm = f'usable: {found.name} {found.version} on {found.device}, with sampler.kind = "vllm"'
        if not found.tested:
            vllm += f" (tested on {' and '.join(installed.TESTED)} only)"
        if found.device == "cpu" and os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
            vllm += "; OMP_WAIT_POLICY=PASSIVE makes it faster where other programs use the CPU too"
    return {
        "sampler transformers": "usable, and used where the recipe names none",
        "sampler vllm": vllm,
    }


def _device() -> dict[str, str]:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        return {"device": f"cuda: {name}", "dtype": dtype, "attention of packed trees": "flex"}
    reason = "this torch is a CPU build" if torch.version.cuda is None else "torch sees no GPU"
    return {
        "device": f"cpu, {torch.get_num_threads()} threads ({reason})",
        "dtype": "float32",
        "attention of packed trees": "dense for short rows, runs for long ones",
    }
