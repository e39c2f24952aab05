"""`[replay]`: the cache of trees and solutions, and what a run may read from it."""

from treerl.config.section import NonNegative, Positive, Section


class ReplaySettings(Section):
    """The cache of trees and solutions."""

    url: str = "sqlite:///{output_dir}/replay.db"
    """Database; `{output_dir}` is the run's folder. A shared path lets experiments share solutions."""
    reuse: bool = True
    """Use verified solutions that other runs stored for the same problem."""
    max_cached: NonNegative = 0
    """At most this many cached solutions in a tree beside the fresh ones; 0: none."""
    max_staleness: Positive | None = None
    """Optimizer steps a cached solution's policy may be behind, within one run; None: any age."""
