"""`treerl train`: search, verify, store, credit, update, step by step, resumable.

The run's state is the weights, the optimizer, the random generators and `Progress`; a checkpoint holds all
of it. Trees are in the store before they are trained on, so a resumed run takes them from there.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from treerl.canon import generator
from treerl.config import Recipe
from treerl.credit.assign import assign
from treerl.engine.display import Display
from treerl.engine.evaluation import evaluate_session
from treerl.engine.report import render_summary, summarise
from treerl.engine.run import Progress, fresh_folder, git_commit, provenance, write_header
from treerl.engine.session import Session, replay_url, run_paths
from treerl.engine.signals import needs_signals, token_signals
from treerl.engine.step import Searched, search_metrics, search_step
from treerl.errors import ConfigError
from treerl.evaluate import Evaluation
from treerl.metrics import MetricsLog
from treerl.policy import checkpoint
from treerl.policy.optimizer import make_optimizer
from treerl.policy.reference import Reference
from treerl.policy.update import UpdateReport, update_policy
from treerl.problem import Problem
from treerl.recipe import parse_recipe
from treerl.replay.reuse import Asked, CachedSolution, ReadBound, cached_solutions
from treerl.replay.writer import Writer
from treerl.search.tree import Tree
