"""Imported once by the forkserver of tests.support_engine: what a run imports, and nothing that runs."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import transformers.models.llama.modeling_llama
import transformers.models.auto.modeling_auto
import transformers.models.auto.tokenization_auto

import tests.support_engine
import treerl.engine.cache
import treerl.engine.doctor
import treerl.engine.search
import treerl.engine.show
import treerl.engine.train
import treerl.engine.warm_start
