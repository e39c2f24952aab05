"""`treerl replay ...`: what a cache holds, and files in and out."""

import dataclasses
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from treerl.engine.progress import bar
from treerl.errors import ConfigError, StoreError
from treerl.inspect.render import render_mapping, render_rows
from treerl.replay import database
from treerl.replay import stats as figures
from treerl.replay.check import check as check_store
from treerl.replay.gc import collect as collect_store
from treerl.replay.lease import queue_of
from treerl.replay.store import Store
from treerl.replay.transfer import export_parquet, export_solutions, import_solutions

LISTINGS = ("runs", "trees", "problems", "queue")


def stats(url: str, *, console: Console | None) -> dict[str, Any]:
    """Totals of a cache, and what each run drew from others."""
    with Store.open(url, create=False) as store:
        found = figures.stats(store)
    if console is not None:
        totals = {
            field.name: getattr(found, field.name)
            for field in dataclasses.fields(found)
            if field.name not in ("runs", "verdicts")
        }
        totals |= {f"verdicts {name}": count for name, count in found.verdicts.items()}
        console.print(render_mapping("", totals))
        names = (
            "name",
            "steps",
            "trees",
            "leaves",
            "right",
            "generated",
            "cached",
            "saved",
            "replayed",
        )
        rows = [
            [getattr(run, name) for name in names]
            + [", ".join(f"{d.run}: {d.solutions} ({d.tokens} tokens)" for d in run.drawn_from)]
            for run in found.runs
        ]
        console.print()
        console.print(render_rows("", (*names, "solutions taken from"), rows))
    return dataclasses.asdict(found)


def listing(url: str, what: str, *, limit: int, console: Console | None) -> list[dict[str, Any]]:
    """Runs, trees, problems, or what workers have still to search of each run."""
    if what not in LISTINGS:
        raise ConfigError(f"replay ls {what}: choose one of {', '.join(LISTINGS)}")
    if what == "trees":
        from treerl.engine.show import list_trees

        return list_trees(url, run=None, limit=limit, console=console)
    with Store.open(url, create=False) as store:
        if what == "runs":
            rows = [_run_row(run) for run in store.runs()[-limit:]]
        elif what == "queue":
            rows = _queues(store)[-limit:]
        else:
            rows = [_problem_row(found) for found in figures.problems(store, limit=limit)]
    if console is not None:
        names = list(rows[0]) if rows else ["nothing stored"]
        console.print(render_rows("", names, [list(row.values()) for row in rows]))
    return rows


def show_problem(url: str, key: str, *, console: Console | None) -> dict[str, Any]:
    """A problem by the beginning of its key, with its trees."""
    with Store.open(url, create=False) as store:
        found = [p for p in figures.problems(store) if p.problem.key.startswith(key)]
        if len(found) != 1:
            raise ConfigError(
                f"replay show {key}: {len(found)} problems begin so; `treerl replay ls problems` has keys"
            )
        trees = [info for info in store.trees() if info.problem.key == found[0].problem.key]
        leaves = [
            {"tree": info.id, "run": info.run, "reward": verdict.reward, "answer": verdict.answer}
            | {"text": stored.texts.get(row, "")}
            for info in trees
            for stored in [store.load_tree(info.id)]
            for row, verdict in sorted(stored.tree.verdicts.items())
        ]
    result = {**_problem_row(found[0]), "truth": found[0].problem.truth, "solutions": leaves}
    if console is not None:
        console.print(render_mapping("", {k: v for k, v in result.items() if k != "solutions"}))
        names = ("tree", "run", "reward", "answer", "text")
        console.print(render_rows("", names, [[leaf[n] for n in names] for leaf in leaves]))
    return result


def export(url: str, file: Path) -> int:
    """Writes all solutions to `file`, whole or not at all; returns how many."""
    draft = file.with_name(file.name + ".tmp")
    try:
        with Store.open(url, create=False) as store:
            if file.suffix == ".parquet":
                count = export_parquet(store, draft)
            else:
                with draft.open("w", encoding="utf-8") as stream:
                    count = export_solutions(store, stream)
        os.replace(draft, file)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise StoreError(f"cannot write {file}: {error.strerror}") from error
    return count


def import_file(url: str, file: Path, *, dry_run: bool) -> dict[str, int]:
    """Merges an exported file into the cache; `dry_run` reads it into a database in memory instead."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    with Store.open("sqlite:///:memory:" if dry_run else url) as store:
        return dataclasses.asdict(import_solutions(store, file))


def collect(
    url: str, runs: Sequence[str], *, dry_run: bool, console: Console | None
) -> dict[str, int]:
    """Deletes these runs and what nothing uses; `dry_run` counts."""
    with Store.open(url, create=False) as store:
        found = dataclasses.asdict(collect_store(store, runs, dry_run=dry_run))
    if console is not None:
        console.print(render_mapping("", {k.replace("_", " "): v for k, v in found.items()}))
        console.print("nothing was deleted" if dry_run else "deleted", highlight=False)
    return found


def upgrade(url: str) -> str:
    """Brings a database to this version's schema; says what was done."""
    before, after = database.upgrade(url)
    return (
        f"{url}: schema {before} is current" if before == after else f"{url}: {before} to {after}"
    )


def check(url: str, *, console: Console | None) -> list[str]:
    """Re-hashes every key; returns what does not match."""
    with Store.open(url, create=False) as store, bar("checking trees", console) as progress:
        problems = list(check_store(store, progress))
    if console is not None:
        for line in problems:
            console.print(line, highlight=False)
        console.print(f"{len(problems)} problems found" if problems else "every key matches")
    return problems


def _queues(store: Store) -> list[dict[str, Any]]:
    """A line a run that has trees to be searched."""
    counts = [(run.name, dataclasses.asdict(queue_of(store, run.id))) for run in store.runs()]
    return [{"run": name, **count} for name, count in counts if any(count.values())]


def _run_row(run: Any) -> dict[str, Any]:
    recipe = run.config.get("recipe", {})
    when = datetime.fromtimestamp(run.created_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%MZ")
    return {
        "run": run.name,
        "model": recipe.get("policy", {}).get("model"),
        "search": recipe.get("search", {}).get("kind"),
        "estimator": recipe.get("advantage", {}).get("estimator"),
        "seed": recipe.get("seed"),
        "when": when,
        "id": run.id,
    }


def _problem_row(found: Any) -> dict[str, Any]:
    return {
        "key": found.problem.key,
        "question": found.problem.question,
        "kind": found.problem.kind,
        "trees": found.trees,
        "leaves": found.leaves,
        "right": found.right,
        "solutions": found.solutions,
    }
