"""`treerl search`: grow trees without training, from the task or one prompt, into the replay cache."""

from typing import Any

from rich.console import Console

from treerl.config import Recipe
from treerl.engine.display import Display
from treerl.engine.folder import replay_url
from treerl.engine.run import git_commit, made_by, provenance, weights_digest
from treerl.engine.session import Session
from treerl.engine.step import Searched, put_tree, search_metrics, search_step
from treerl.engine.watch import Watcher
from treerl.errors import ConfigError
from treerl.inspect.model import view_tree
from treerl.inspect.render import render_mapping, render_tree
from treerl.problem import Problem
from treerl.replay.writer import Writer


def search_run(
    recipe: Recipe,
    *,
    prompt: str | None,
    truth: str | None,
    problems: int,
    watch: bool,
    console: Console,
    quiet: bool,
) -> dict[str, Any]:
    """Searches `problems` problems of the task, or the one of `prompt`; returns figures and tree ids.

    watch: show the current tree as it grows, and a line for each that is finished.

    Without `truth` the leaves of a prompt cannot be judged right: they count as wrong by any verifier.
    """
    if truth is not None and prompt is None:
        raise ConfigError("--truth goes with --prompt")
    with Session(recipe) as session, Display(console, quiet=quiet, brisk=watch) as display:
        assert session.store is not None
        asked = session.task.problems_for_step(0, problems)
        if prompt is not None:
            asked = [Problem(prompt, truth or "", asked[0].kind)]
        header = {"recipe": recipe.model_dump(mode="json"), "made_by": made_by()}
        run_id = session.store.start_run(
            f"search-{recipe.run.name}", header, git_commit=git_commit()
        )
        source = provenance(session, weights_digest(session.policy.model), run_id)
        watcher = Watcher(session, display) if watch else None
        with Writer(session.store, run_id) as writer:

            def keep(searched: Searched, index: int) -> None:
                put_tree(session, writer, searched, index, step=0, provenance=source)
                display.searching(searched)
                if watcher:
                    watcher.finished(searched, index)

            look = watcher.look if watcher else lambda searched: None
            searched = search_step(session, asked, step=0, on_tree=keep, on_round=look)
        if not searched.trees:
            raise session.no_prompt_fits("search")
        ids = [info.id for info in session.store.trees(run_id=run_id)]
        figures = search_metrics(searched)
        if not quiet and prompt is not None:
            view = view_tree(
                searched.trees[0], session.decode_text, question=prompt, truth=truth or "?"
            )
            console.print(render_tree(view, width=console.width))
    url = replay_url(recipe)
    if not quiet:
        shown = {name: value for name, value in figures.items() if not name.startswith("verify/")}
        console.print(render_mapping("", shown))
        console.print(
            f"{len(ids)} trees stored; look at one: treerl inspect {ids[-1]} --url {url}",
            highlight=False,
        )
    return {"url": url, "trees": ids, **figures}
