"""Step accuracy: does credit blame the step that is wrong? One table, on trees of the embedded policy.

The built-in task's steps can be checked, so the first wrong step of a wrong answer is known, and so is the
first wrong token: where the answer departs from every right next step. For each estimator: how often the
most negative span of a wrong path holds that step, and that token, against a span drawn at random.
Trees whose answers are all right or all wrong are left out: no estimator that holds its invariants blames
anything there. DeepSearch's released score always blames the last span of a wrong path (|tanh q| < 1), so
its line is that control. Needs no GPU; a few minutes on one core.

    python scripts/bench_credit.py [--problems 512] [--search cure] [--policy PATH] [--json]
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from treerl.canon import derive_seed
from treerl.config import (
    AdvantageSettings,
    CureSearch,
    DeepSearchSearch,
    EntropyTopK,
    PolicySettings,
    RandomCut,
    Recipe,
    SearchSettings,
    TransformersSettings,
)
from treerl.credit.assign import NEEDS_SIGNALS
from treerl.credit.dense import Signals
from treerl.credit.step_accuracy import FirstError, StepAccuracy, step_accuracy
from treerl.engine.session import Session
from treerl.policy.model import load_policy
from treerl.policy.reference import score_trees
from treerl.problem import Problem
from treerl.search.scheduler import Growth, grow
from treerl.search.tree import Tree
from treerl.tasks.chain import Expression, check_steps, parse_expression

ESTIMATORS: dict[str, AdvantageSettings] = {
    "grpo": AdvantageSettings(estimator="grpo"),
    "rloo": AdvantageSettings(estimator="rloo"),
    "dr_grpo": AdvantageSettings(estimator="dr_grpo"),
    "tree_value": AdvantageSettings(estimator="tree_value"),
    "sibling_rloo": AdvantageSettings(estimator="sibling_rloo"),
    "deepsearch, faithful": AdvantageSettings(estimator="deepsearch", faithful=True),
    "frpo": AdvantageSettings(estimator="frpo"),
    "prl, step 8": AdvantageSettings(estimator="prl", step_tokens=8),
    "implicit_prm": AdvantageSettings(estimator="implicit_prm", beta=0.05),
    "implicit_value": AdvantageSettings(estimator="implicit_value", beta=0.05),
}

SEARCHES: dict[str, Callable[[int], SearchSettings]] = {
    "cure": lambda leaves: CureSearch(
        num_generations=leaves,
        num_branches=1,
        only_undecided=False,
        cut=EntropyTopK(top_k=3, min_characters=1),
    ),
    "random": lambda leaves: CureSearch(
        num_generations=leaves, num_branches=1, only_undecided=False, cut=RandomCut()
    ),
    "deepsearch": lambda leaves: DeepSearchSearch(
        num_generations=leaves, num_initial=max(leaves // 4, 2), chunk_tokens=8
    ),
}


# Where a wrong answer goes wrong


@dataclass(frozen=True, slots=True)
class Error:
    """The first wrong step and, within it, the first wrong token of an answer, in response tokens."""

    step: FirstError
    token: FirstError


def first_error(question: str, text: str) -> Error | None:
    """None where every step is right. The embedded tokenizer has one token a character, and one for the end."""
    report = check_steps(question, text)
    if report.start is None or report.stop is None:
        return None
    wrong = text[report.start : report.stop].removeprefix("=")
    begin = report.stop - len(wrong) if report.start < len(text) else report.start
    before = (question.removesuffix("=") + "=" + text[: report.start]).rstrip("=").split("=")[-1]
    expression = parse_expression(before)
    shared = 0
    if expression is not None and report.start < len(text):
        shared = max((common_length(s, wrong) for s in right_steps(expression)), default=0)
    return Error((report.start, report.stop), (begin + shared, begin + shared + 1))


def common_length(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def right_steps(expression: Expression) -> list[str]:
    """Every right next step."""
    return [
        str(expression.contract(i, expression.result(i)))
        for i in range(len(expression.operators))
        if expression.may_contract(i)
    ]


def first_errors(
    tree: Tree, question: str, decode: Callable[[Sequence[int]], str]
) -> dict[int, Error]:
    """The errors of the wrong leaves of a tree, by node."""
    found = {}
    for leaf in tree.leaves().tolist():
        if tree.nodes.reward[leaf] == 0.0:
            error = first_error(question, decode(tree.completion_tokens(leaf).tolist()))
            if error is not None:
                found[leaf] = error
    return found


# Trees and the table


def search_trees(session: Session, problems: Sequence[Problem], seed: int) -> list[Growth]:
    """One judged tree a problem, in the order of `problems`."""
    growths = []
    for problem, prompt in zip(problems, session.prompts(problems), strict=True):
        if prompt is None:
            continue
        tree = Tree(
            np.asarray(prompt, np.int32),
            seed=derive_seed(seed, "bench-credit", problem.key),
            max_completion_length=session.recipe.sampler.max_completion_length,
        )
        growths.append(Growth(tree, session.strategy, problem, problem.question))
    for _ in grow(growths, session.sampler, session.pool.submit, session.decode_text):
        pass
    return growths


def reference_signals(session: Session, trees: list[Tree]) -> list[Signals]:
    """Log-probs of the trees under the policy and under the embedded start."""
    start = load_policy(PolicySettings(model="embedded"))
    old, ref = (
        score_trees(policy, trees, temperature=1.0, max_tokens=16384)
        for policy in (session.policy, start)
    )
    return [Signals(a, b) for a, b in zip(old, ref, strict=True)]


def measure(
    growths: list[Growth], session: Session, with_signals: bool
) -> tuple[dict[str, tuple[StepAccuracy, StepAccuracy]], dict[str, int]]:
    """By estimator: accuracy for the wrong step and for the wrong token; and how many trees there were."""
    mixed = [g for g in growths if not g.tree.is_uniform()]
    trees = [g.tree for g in mixed]
    errors = [first_errors(g.tree, g.problem.question, session.decode_text) for g in mixed]
    steps = [{leaf: error.step for leaf, error in by_leaf.items()} for by_leaf in errors]
    tokens = [{leaf: error.token for leaf, error in by_leaf.items()} for by_leaf in errors]
    signals = reference_signals(session, trees) if with_signals else None
    found = {}
    for name, settings in ESTIMATORS.items():
        if settings.estimator in NEEDS_SIGNALS and signals is None:
            continue
        found[name] = (
            step_accuracy(trees, settings, steps, signals=signals),
            step_accuracy(trees, settings, tokens, signals=signals),
        )
    wrong = sum(int((tree.nodes.reward == 0).sum()) for tree in trees)
    return found, {"trees": len(growths), "mixed_trees": len(trees), "wrong_leaves": wrong}


def show(found: dict[str, tuple[StepAccuracy, StepAccuracy]], title: str) -> None:
    table = Table(title=title)
    for column in ("estimator", "leaves", "wrong step", "wrong token", "no negative span"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    for name, (step, token) in found.items():
        cells = (str(token.leaves), f"{step.hit:.3f}", f"{token.hit:.3f}", f"{token.silent:.3f}")
        table.add_row(name, *cells)
    table.add_section()
    step, token = next(iter(found.values()))
    for name, field in (("a span at random", "chance_span"), ("by its length", "chance_length")):
        table.add_row(
            name,
            str(token.leaves),
            f"{getattr(step, field):.3f}",
            f"{getattr(token, field):.3f}",
            "",
        )
    Console().print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("--leaves", type=int, default=8)
    parser.add_argument("--search", choices=sorted(SEARCHES), default="cure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--policy",
        default="embedded",
        help="a trained model folder: adds the estimators that need a reference (the embedded start)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    recipe = Recipe(
        seed=options.seed,
        policy=PolicySettings(model=options.policy, threads=1),
        sampler=TransformersSettings(max_prompt_length=32, max_completion_length=80),
        search=SEARCHES[options.search](options.leaves),
    )
    with Session(recipe, with_store=False) as session:
        problems = session.task.problems_for_step(0, options.problems)
        growths = search_trees(session, problems, options.seed)
        found, counts = measure(growths, session, options.policy != "embedded")
    settings: dict[str, Any] = {k: v for k, v in vars(options).items() if k != "json"}
    if options.json:
        rows = {
            name: {"step": asdict(step), "token": asdict(token)}
            for name, (step, token) in found.items()
        }
        print(json.dumps({"settings": settings, "counts": counts, "estimators": rows}, indent=2))
        return
    title = ", ".join(f"{v} {k.replace('_', ' ')}" for k, v in counts.items())
    show(found, f"{options.search}: {title}")


if __name__ == "__main__":
    main()
