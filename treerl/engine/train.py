"""`treerl train`: search, verify, store, credit, update, step by step, resumable.

A run's state is its weights, optimizer, random generators and `Progress`; a checkpoint holds all of it.
Trees are in the store before they are trained on, so a resumed run takes them from there.
"""

import gc
import json
import time
from typing import Any

from rich.console import Console

from treerl.canon import generator
from treerl.config import Recipe
from treerl.credit.assign import NEEDS_SIGNALS, assign_with_summary
from treerl.credit.imitate import scaled_cached
from treerl.engine.curriculum import Curriculum
from treerl.engine.display import Display
from treerl.engine.evaluation import Evaluated, evaluate_session
from treerl.engine.folder import fresh_folder, replay_url, resume_command, run_paths
from treerl.engine.imitation import Imitated, Imitation
from treerl.engine.lock import held
from treerl.engine.reading import Reader
from treerl.engine.report import gain_between, render_summary, summarise
from treerl.engine.run import (
    Progress,
    git_commit,
    made_by,
    provenance,
    weights_digest,
    write_header,
)
from treerl.engine.scores import comparable, credit_scores, discount_of
from treerl.engine.session import Session
from treerl.engine.step import Searched, TreeName, put_tree, search_metrics, search_step
from treerl.errors import Interrupted, TreerlError
from treerl.metrics import MetricsLog
from treerl.policy.checkpoint import Checkpoint, latest, load_checkpoint, save_checkpoint
from treerl.policy.optimizer import PolicyOptimizer, Schedule, linear_warmup, warmup_linear
from treerl.policy.reference import freeze
from treerl.policy.selfcheck import check_packing
from treerl.policy.update import update_policy
from treerl.policy.update_report import UpdateReport
from treerl.replay.keys import Provenance
from treerl.replay.store import Store
from treerl.replay.writer import Writer
from treerl.search.tree import Tree


def train_run(recipe: Recipe, *, resume: bool, console: Console, quiet: bool) -> dict[str, Any]:
    """Trains from the recipe, or goes on with its run; returns the summary.

    resume: the recipe is that of a run begun earlier (`treerl.engine.folder.resumed_recipe`).
    Raises Interrupted on a KeyboardInterrupt: the store is then whole and the last checkpoint valid.
    """
    loaded = None
    if resume:
        loaded = latest(run_paths(recipe).checkpoints)
    else:
        recipe = fresh_folder(recipe)
    with (
        Session(recipe) as session,
        held(session.paths.root),
        Display(console, quiet=quiet) as display,
    ):
        try:
            summary = Trainer(session, display, loaded).run()
        except KeyboardInterrupt:
            if not session.paths.recipe.is_file():
                raise
            raise Interrupted(
                f"interrupted; what is stored stays. Go on with: {resume_command(recipe)}"
            ) from None
        except TreerlError as error:
            if session.paths.recipe.is_file():
                error.add_note(f"go on with: {resume_command(recipe)}")
            raise
    if not quiet:
        console.print(render_summary(summary))
    return summary


def lr_schedule(recipe: Recipe) -> Schedule:
    """Factor on the learning rate by optimizer step, over the whole run."""
    update = recipe.update
    if update.lr_schedule == "constant":
        return linear_warmup(update.warmup_steps)
    total = recipe.max_steps * update.num_iterations * update.mini_batches
    return warmup_linear(update.warmup_steps, total)


class Trainer:
    """One run under way: its session, optimizer, writer and counters."""

    def __init__(self, session: Session, display: Display, loaded: Checkpoint | None) -> None:
        assert session.store is not None
        self.session, self.display = session, display
        self.recipe: Recipe = session.recipe
        self.store: Store = session.store
        if self.recipe.update.pack == "tree":
            sampler = self.recipe.sampler
            longest = sampler.max_prompt_length + sampler.max_completion_length
            check_packing(session.policy, max_path=longest)
        self.optimizer = PolicyOptimizer(
            session.policy.model, self.recipe.update, schedule=lr_schedule(self.recipe)
        )
        # Both name the weights that the run starts from, so they come before a checkpoint's are loaded.
        self.reference = freeze(session.policy) if self._needs_reference() else None
        base_weights = weights_digest(session.policy.model)
        self.progress = self._begin(loaded)
        self._saved = self.progress.step if loaded else -1
        self.provenance: Provenance = provenance(session, base_weights, self.progress.run_id)
        self.reader = Reader.of(
            self.store,
            self.recipe,
            self.provenance,
            run_id=self.progress.run_id,
            position=self.progress.replay_position,
            base_weights=base_weights,
        )
        self.imitation = self._imitation()
        self.curriculum = Curriculum(
            session,
            self.store,
            self.provenance.verifier,
            self.progress.run_id,
            self.progress.replay_position,
        )
        self.handover = session.handover()
        self.handover.publish(self.progress.step, [])

    def _imitation(self) -> Imitation | None:
        if self.recipe.replay.imitate.rows == 0:
            return None
        progress = self.progress
        return Imitation(
            self.store,
            self.recipe,
            self.provenance,
            run_id=progress.run_id,
            history=progress.group_means,
        )

    def _begin(self, loaded: Checkpoint | None) -> Progress:
        """Counters of the checkpoint, of a run stopped before its first one, or of a new run."""
        paths, name = self.session.paths, self.recipe.run.name or "run"
        header = {"recipe": self.recipe.model_dump(mode="json"), "made_by": made_by()}
        if loaded is not None:
            state = load_checkpoint(loaded.path, self.session.policy, self.optimizer)
            progress = Progress(**state)
        elif paths.recipe.is_file():
            # It keeps its id, and with it its trees, and the bound of what it reads.
            begun = json.loads(paths.recipe.read_text(encoding="utf-8"))
            progress = Progress(begun["run_id"], begun["replay_position"])
        else:
            position = self.store.position()
            run_id = self.store.start_run(name, header, git_commit=git_commit())
            write_header(paths, self.recipe, run_id, position)
            return Progress(run_id, position)
        # A no-op unless the cache is another one than before.
        self.store.start_run(name, header, run_id=progress.run_id)
        return progress

    def _needs_reference(self) -> bool:
        return self.recipe.loss.kl_coef > 0 or self.recipe.advantage.estimator in NEEDS_SIGNALS

    # The run ---------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Evaluates, trains to `max_steps` or `max_minutes`, evaluates; returns the summary."""
        # What is loaded now stays to the end: the collector need not walk it at every step.
        gc.collect()
        gc.freeze()
        recipe, progress, display = self.recipe, self.progress, self.display
        self._announce()
        started = self._evaluate("before") if not progress.before else None
        if started is not None:
            progress.before = started.metrics(recipe.eval.k)
        display.begin_training(progress.step, recipe.max_steps, self.session.decode_text)
        display.evaluated("before", progress.before)
        paths = self.session.paths
        with (
            MetricsLog(paths.metrics, keep_until=self._saved) as metrics,
            Writer(self.store, progress.run_id) as writer,
        ):
            if self._saved < 0:
                metrics.write({"step": 0, "seed": recipe.seed, **progress.before})
            newest: Evaluated | None = None
            while not self._is_finished():
                row = self._step(writer)
                newest = None
                if recipe.eval.every and progress.step % recipe.eval.every == 0:
                    newest = self._evaluate(f"step {progress.step}")
                    row |= newest.metrics(recipe.eval.k)
                metrics.write(row)
                display.step(row, recipe.max_steps)
                if recipe.run.checkpoint_every and progress.step % recipe.run.checkpoint_every == 0:
                    self._save(writer)
            if progress.step != self._saved:
                self._save(writer)
        after = newest or self._evaluate("after")
        return self._summary(started, after)

    def _announce(self) -> None:
        recipe, policy = self.recipe, self.session.policy
        size = sum(p.numel() for p in policy.model.parameters())
        self.display.say(
            f"run {recipe.run.name} (seed {recipe.seed}): {recipe.policy.model}, {size:,} parameters, "
            f"{policy.dtype} on {policy.device}".replace("torch.", "")
        )
        self.display.say(f"problems: {self.session.task.mapping}")
        search = recipe.search
        self.display.say(
            f"search: {search.kind}, {search.trees_per_step} trees x {search.num_generations} leaves a "
            f"step; credit: {recipe.advantage.estimator}; cache: {replay_url(recipe)}"
        )
        if self._is_finished():
            self.display.say(
                f"this run is finished ({self.progress.step} steps); --set max_steps=N takes it further"
            )
        elif self._saved >= 0:
            self.display.say(f"going on behind step {self._saved}, its last whole checkpoint")

    def _is_finished(self) -> bool:
        return self.progress.step >= self.recipe.max_steps or self._out_of_time()

    def _out_of_time(self) -> bool:
        limit = self.recipe.max_minutes
        return limit is not None and self.progress.train_time >= 60 * limit

    def _evaluate(self, label: str) -> Evaluated:
        found = evaluate_session(self.session, self.display.advance)
        figures = found.metrics(self.recipe.eval.k)
        shown = "  ".join(
            f"{name.removeprefix('eval/')} {value:.3f}"
            for name, value in figures.items()
            if name.startswith(("eval/avg", "eval/pass", "eval/greedy"))
        )
        self.display.say(f"{label}: {shown}")
        self.display.evaluated(label, figures)
        return found

    # One step --------------------------------------------------------------------------------------------

    def _step(self, writer: Writer) -> dict[str, Any]:
        """Search, write, credit, update; returns the metrics row."""
        begun, cpu_begun = time.perf_counter(), time.process_time()
        recipe, progress = self.recipe, self.progress
        step = progress.step
        problems = self.curriculum.problems(step, recipe.search.trees_per_step)
        if self.reader.reads_own:
            writer.flush()
        stored = self._stored(step)
        waited = 0.0

        def write(searched: Searched, index: int) -> None:
            nonlocal waited
            self.reader.repair(searched.trees[index], searched.problems[index], step)
            if searched.names[index] not in stored:
                waited += self._write(writer, searched, index, step)

        searched = search_step(
            self.session,
            problems,
            step=step,
            stored=stored,
            cached=self.reader.for_step(problems, self.session.prompts(problems), step),
            on_tree=write,
            on_round=self.display.searching,
        )
        if step == 0 and not searched.trees:
            raise self.session.no_prompt_fits(f"the {len(problems)} problems of the first step")
        self.display.searched(searched, step + 1)
        self.handover.rest()
        report, credit_row = self._update(searched.trees, step)
        self.handover.check_update(report.first, step)
        if self.imitation is not None:
            writer.flush()
            self.imitation.keep(searched, step)
        progress.step = step + 1
        handed = self.handover.publish(progress.step, searched.trees)
        progress.num_tokens += searched.generated_tokens + self.curriculum.tokens_at(step)
        progress.trained_tokens += report.tokens_trained
        progress.cached_leaves += searched.cached_leaves
        seconds = time.perf_counter() - begun
        progress.train_time += seconds
        progress.train_cpu_time += time.process_time() - cpu_begun
        trained = comparable(recipe.sampler, report.metrics())
        if "entropy" in trained:
            trained["train/entropy"] = trained.pop("entropy")
        return {
            "step": progress.step,
            **search_metrics(searched),
            **self.reader.metrics(searched.trees, step),
            **self.curriculum.metrics(step),
            "replay/write_seconds": waited,
            **credit_row,
            **trained,
            **handed,
            "num_tokens": progress.num_tokens,
            "train/total_tokens_trained": progress.trained_tokens,
            "step_time": seconds,
            "train_time": progress.train_time,
            "train_cpu_time": progress.train_cpu_time,
        }

    def _stored(self, step: int) -> dict[TreeName, Tree]:
        """Trees of this step that an interrupted attempt of this run left in the store."""
        infos = self.store.trees(run_id=self.progress.run_id, step=step)
        return {(i.problem.key, i.number): self.store.load_tree(i.id).tree for i in infos}

    def _write(self, writer: Writer, searched: Searched, index: int, step: int) -> float:
        """Hands a finished tree to the writer; returns seconds spent."""
        begun = time.perf_counter()
        put_tree(self.session, writer, searched, index, step=step, provenance=self.provenance)
        return time.perf_counter() - begun

    def _update(self, trees: list[Tree], step: int) -> tuple[UpdateReport, dict[str, float]]:
        """Credit and optimizer steps on the trees of a step."""
        begun = time.perf_counter()
        recipe, policy = self.recipe, self.session.policy
        signals, importance = credit_scores(recipe, policy, self.reference, trees)
        credits, summary = assign_with_summary(
            trees,
            recipe.advantage,
            loss_agg_mode=recipe.loss.loss_agg_mode,
            signals=signals,
            discount=discount_of(recipe.search),
            importance=importance,
        )
        scale = recipe.replay.collapse.scale
        if scale != 1:
            credits = [scaled_cached(t, c, scale) for t, c in zip(trees, credits, strict=True)]
        imitated = self.imitation.replay(policy, step) if self.imitation else Imitated()
        credited = time.perf_counter()
        report = update_policy(
            policy,
            self.optimizer,
            [*trees, *imitated.trees],
            [*credits, *imitated.credits],
            loss=recipe.loss,
            update=recipe.update,
            temperature=recipe.sampler.temperature,
            generator=generator("update", recipe.seed, step),
            reference=self.reference if recipe.loss.kl_coef > 0 else None,
        )
        ended = time.perf_counter()
        row = {
            "credit/advantage_mean": summary.advantage_mean,
            "credit/advantage_abs": summary.advantage_abs,
            "credit/positive_on_wrong": summary.positive_on_wrong,
            "credit/negative_on_right": summary.negative_on_right,
            "credit/dropped_trees": summary.dropped,
            **imitated.metrics,
            "credit/seconds": credited - begun,
            "train/seconds": ended - credited,
            "train/tokens_per_second": report.tokens_trained / max(ended - credited, 1e-9),
        }
        return report, row | summary.weight_metrics()

    # The end ---------------------------------------------------------------------------------------------

    def _save(self, writer: Writer) -> None:
        """A checkpoint; every tree that it counts as trained on is in the store first."""
        writer.flush()
        self._saved = self.progress.step
        save_checkpoint(
            self.session.paths.checkpoints,
            self.session.policy,
            self.optimizer,
            step=self.progress.step,
            state=self.progress.as_json(),
            keep=self.recipe.run.keep_checkpoints,
        )

    def _summary(self, started: Evaluated | None, after: Evaluated) -> dict[str, Any]:
        recipe = self.recipe
        run = {
            "run": recipe.run.name,
            "folder": str(self.session.paths.root),
            "url": replay_url(recipe),
            "model": recipe.policy.model,
            "task": self.session.task.mapping,
            "seed": recipe.seed,
            "search": recipe.search.kind,
            "estimator": recipe.advantage.estimator,
            **made_by(),
        }
        return summarise(
            self.progress,
            self.progress.before,
            after.metrics(recipe.eval.k),
            gain=gain_between(started, after),
            run=run,
        )
