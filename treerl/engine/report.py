"""What a training run says at its end: before and after, what it cost, how to look at its trees."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from treerl.engine.evaluation import Evaluated
from treerl.engine.run import Progress
from treerl.evaluate import paired_gain


def summarise(
    progress: Progress,
    before: dict[str, Any],
    after: dict[str, Any],
    *,
    gain: tuple[float, float] | None,
    run: dict[str, Any],
) -> dict[str, Any]:
    """The summary of a run, as `--json` prints it. gain: paired mean difference and its standard error."""
    return {
        **run,
        "steps": progress.step,
        "before": before,
        "after": after,
        "gain": None if gain is None else gain[0],
        "gain_standard_error": None if gain is None else gain[1],
        "generated_tokens": progress.num_tokens,
        "trained_tokens": progress.trained_tokens,
        "cached_leaves": progress.cached_leaves,
        "train_seconds": round(progress.train_time, 2),
    }


def gain_between(before: Evaluated | None, after: Evaluated) -> tuple[float, float] | None:
    """Paired gain on the same held-out problems, None if the start was not evaluated in this process."""
    return None if before is None else paired_gain(before.sampled, after.sampled)


def render_summary(summary: dict[str, Any]) -> RenderableType:
    """Before and after side by side, then costs and the command that opens the trees."""
    table = Table(box=None, pad_edge=False)
    table.add_column("held-out")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    before, after = summary["before"], summary["after"]
    for name, value in after.items():
        label = name.removeprefix("eval/")
        if label.startswith(("avg@", "pass@", "maj@", "greedy")):
            start = before.get(name)
            shown = "-" if start is None else f"{start:.3f}"
            change = "-" if start is None else f"{value - start:+.3f}"
            table.add_row(label, shown, f"{value:.3f}", change)
    lines: list[Table | Text] = [table, Text()]
    if summary["gain"] is not None:
        error = summary["gain_standard_error"]
        shown = f"; {summary['gain'] / error:.0f} times it" if error else ""
        lines.append(
            Text(
                f"gain {summary['gain']:+.3f} ± {error:.3f} (standard error over the same "
                f"{after['eval/problems']:.0f} problems{shown})"
            )
        )
    lines.append(
        Text(
            f"{summary['steps']} steps in {summary['train_seconds']:.0f} s of search and training: "
            f"{summary['generated_tokens']:,} tokens generated, {summary['trained_tokens']:,} trained, "
            f"{summary['cached_leaves']:,} solutions from the cache"
        )
    )
    lines.append(Text(f"metrics and checkpoints: {summary['folder']}"))
    lines.append(
        Text.assemble(
            ("look at the trees: ", ""), (f"treerl inspect --url {summary['url']}", "bold")
        )
    )
    return Group(*lines)
