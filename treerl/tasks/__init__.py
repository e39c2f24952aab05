"""Where problems come from: files, Hugging Face data sets, reasoning-gym, and the built-in chain task."""

from treerl.tasks.load import TaskData, load_task

__all__ = ["TaskData", "load_task"]
