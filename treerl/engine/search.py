"""`treerl search`: grow trees without training, from the task or one prompt, into the replay cache.

The trees of a search are queued in the store first. So one that was interrupted can be gone on with, and
other processes, on any host that reaches the database, can help: both by `--join`.
"""

import shlex
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from treerl.config import Recipe
from treerl.engine.display import Display
from treerl.engine.folder import replay_url
from treerl.engine.run import git_commit, made_by, provenance, weights_digest
from treerl.engine.session import Session
from treerl.engine.step import Searched, search_metrics
from treerl.engine.tickets import Worker, enter_tickets
from treerl.engine.watch import Watcher
from treerl.errors import ConfigError, Interrupted
from treerl.inspect.live import count
from treerl.inspect.model import view_tree
from treerl.inspect.render import render_mapping, render_tree
from treerl.problem import Problem
from treerl.recipe import parse_recipe
from treerl.replay.faults import shown
from treerl.replay.lease import Queue
from treerl.replay.store import RunInfo, Store

WEIGHTS = "searches_with"
"""Key of a run's header that tells a search: digest of the weights that all its workers must have."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What to search: so many problems of the task, the one of `prompt`, or what is left of the run `join`."""

    problems: int
    prompt: str | None
    truth: str | None
    join: RunInfo | None


def search_run(
    recipe: Recipe, asked: Asked, *, lease_s: float, watch: bool, console: Console, quiet: bool
) -> dict[str, Any]:
    """Searches, alone or beside others; returns figures of what was done here, and the ids of all trees.

    lease_s: see `treerl.engine.tickets.Worker`. watch: show the current tree as it grows, and a line for each
    that is finished.

    Without `truth` the leaves of a prompt cannot be judged right: they count as wrong by any verifier.
    Raises Interrupted on a KeyboardInterrupt: finished trees are stored, the others go back to the queue.
    """
    if asked.truth is not None and asked.prompt is None:
        raise ConfigError("--truth goes with --prompt")
    with Session(recipe) as session, Display(console, quiet=quiet, brisk=watch) as display:
        assert session.store is not None
        digest = weights_digest(session.policy.model)
        run = _joined(asked.join, digest) if asked.join else _begun(session, asked, digest)
        worker = Worker(session, run.id, provenance(session, digest, run.id), lease_s=lease_s)
        worker.searched.dropped_prompts = run.config["dropped_prompts"]
        try:
            _work(worker, session, display, watch=watch)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; finished trees are stored. Go on with: {join_command(recipe, run)}"
            ) from None
        left, ids = worker.queue, [info.id for info in session.store.trees(run_id=run.id)]
        searched = worker.searched
        if not quiet and asked.prompt is not None:
            view = view_tree(
                searched.trees[0],
                session.decode_text,
                question=asked.prompt,
                truth=asked.truth or "?",
            )
            console.print(render_tree(view, width=console.width))
    figures = search_metrics(searched) if searched.trees else {}
    if not quiet:
        told = {name: value for name, value in figures.items() if not name.startswith("verify/")}
        if told:
            console.print(render_mapping("", told))
        else:
            console.print("nothing was left to search", highlight=False)
        console.print(_ending(recipe, ids, worker.lost, left), highlight=False, soft_wrap=True)
    return {"url": replay_url(recipe), "run": run.name, "trees": ids, **figures}


def run_to_join(name: str, url: str) -> tuple[Recipe, RunInfo]:
    """The search of this name or id in the cache at `url`, and its recipe. Raises ConfigError without one."""
    with Store.open(url, create=False) as store:
        searches = [run for run in store.runs() if WEIGHTS in run.config]
    found = next((run for run in searches if name in (run.name, run.id)), None)
    if found is None:
        known = ", ".join(run.name for run in searches[-5:]) or "none"
        raise ConfigError(f"--join {name}: no such search in {shown(url)}; the newest are: {known}")
    recipe = parse_recipe(found.config["recipe"], source=f"run {found.name} in {shown(url)}")
    replay = recipe.replay.model_copy(update={"url": url})
    return recipe.model_copy(update={"replay": replay}), found


def join_command(recipe: Recipe, run: RunInfo) -> str:
    """What to type to go on with a search, or to help it."""
    return f"treerl search --join {run.name} --url {shlex.quote(shown(replay_url(recipe)))}"


def _begun(session: Session, asked: Asked, digest: str) -> RunInfo:
    """A new run with all its trees in the queue. Raises ConfigError if no prompt fits."""
    store = session.store
    assert store is not None
    problems = session.task.problems_for_step(0, asked.problems)
    if asked.prompt is not None:
        problems = [Problem(asked.prompt, asked.truth or "", problems[0].kind)]
    prompts = zip(problems, session.prompts(problems), strict=True)
    fitting = [problem for problem, prompt in prompts if prompt is not None]
    if not fitting:
        raise session.no_prompt_fits("search")
    header = {
        "recipe": session.recipe.model_dump(mode="json"),
        "made_by": made_by(),
        WEIGHTS: digest,
        "dropped_prompts": len(problems) - len(fitting),
    }
    run_id = store.start_run(f"search-{session.recipe.run.name}", header, git_commit=git_commit())
    enter_tickets(store, run_id, fitting)
    return next(run for run in store.runs() if run.id == run_id)


def _joined(run: RunInfo, digest: str) -> RunInfo:
    if run.config[WEIGHTS] != digest:
        raise ConfigError(
            f"--join {run.name}: policy.model here has other weights than that of the search; "
            "every worker needs the same"
        )
    return run


def _work(worker: Worker, session: Session, display: Display, *, watch: bool) -> None:
    queue = worker.queue
    total = queue.queued + queue.running + queue.expired
    watcher = Watcher(session, display, total) if watch else None

    def progress(searched: Searched, note: str) -> None:
        left = worker.queue
        undone = left.queued + left.running + left.expired
        display.advance("searching", total - undone, total, note)

    def finished(searched: Searched, index: int) -> None:
        progress(searched, f"{count(searched.counts.generated_tokens)} tokens")
        if watcher:
            watcher.finished(searched, index)

    def waiting(left: Queue) -> None:
        progress(worker.searched, f"waiting for other workers, who have {left.running}")

    worker.work(
        on_tree=finished,
        on_round=watcher.look if watcher else lambda searched: None,
        on_wait=waiting,
    )


def _ending(recipe: Recipe, ids: list[int], lost: int, left: Queue) -> str:
    lines = [f"{len(ids)} trees stored"]
    if ids:
        url = shlex.quote(shown(replay_url(recipe)))
        lines[0] += f"; look at one: treerl inspect {ids[-1]} --url {url}"
    if lost:
        lines.append(f"{lost} trees were finished here too late: their leases had ended (--lease)")
    if left.given_up:
        lines.append(f"{left.given_up} trees were given up: each ended several workers")
    return "\n".join(lines)
