"""Imported once by the forkserver of tests.support_engine: what a run imports, and nothing that runs."""

import importlib
import os

os.environ["OMP_NUM_THREADS"] = "1"

for name in (
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "tests.support_engine",
    "treerl.engine.train",
):
    importlib.import_module(name)
