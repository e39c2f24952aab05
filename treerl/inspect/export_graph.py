"""A tree as a graph for other programs: GraphML through networkx, and DOT, which networkx alone cannot write.

Node columns are those of `Tree.to_networkx`, with the text, answer and advantage of each span. What is unknown
(NaN) is absent, so that typed readers see numbers only.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import Any

from treerl.inspect.export_svg import xml_characters
from treerl.inspect.export_values import header
from treerl.inspect.library import Opened
from treerl.inspect.shade import Credit
from treerl.inspect.text import fit, visible
from treerl.search.sampler import Finish, Origin

_WORDS_MOST = 40


def tree_graph(opened: Opened, credits: Sequence[Credit] = ()) -> Any:
    """A networkx.DiGraph; every attribute is a bool, int, float or str."""
    graph = opened.tree.to_networkx()
    graph.graph |= {"question": opened.view.question, "truth": opened.view.truth}
    graph.graph |= {k: v for k, v in header(opened).items() if isinstance(v, bool | int | str)}
    means = {credit.estimator: credit.shade(opened.tree).values for credit in credits}
    for row, node in opened.view.nodes.items():
        columns = graph.nodes[row]
        columns["finish"] = Finish(columns["finish"]).name.lower()
        columns["origin"] = Origin(columns["origin"]).name.lower()
        columns |= {
            "text": node.text,
            "tokens": node.n_tokens,
            "mark": node.mark,
            "q": node.q,
            "entropy": node.entropy,
            "logprob": node.logprob,
            "leaves": node.leaves,
            "right_leaves": node.right_leaves,
            "cached": node.cached,
            "best": node.best,
            "answer": node.answer,
            "outcome": node.outcome,
            **{f"advantage_{name}": mean[row] for name, mean in means.items()},
        }
        for name in [name for name, value in columns.items() if _unknown(value)]:
            del columns[name]
    return graph


def _unknown(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def to_graphml(opened: Opened, credits: Sequence[Credit] = ()) -> str:
    """GraphML with typed attributes; characters that XML cannot hold are replaced."""
    import networkx as nx

    graph = tree_graph(opened, credits)
    for columns in (graph.graph, *(graph.nodes[row] for row in graph)):
        for name, value in columns.items():
            if isinstance(value, str):
                columns[name] = xml_characters(value)
    out = io.BytesIO()
    nx.write_graphml_xml(graph, out, infer_numeric_types=True)
    return out.getvalue().decode("utf-8")


def to_dot(opened: Opened, credits: Sequence[Credit] = ()) -> str:
    """DOT for Graphviz: a label to read a span by, all other columns as attributes of the same names.

    What belongs to the whole tree is `treerl_...`, since Graphviz has a `model` and a `start` of its own.
    """
    graph = tree_graph(opened, credits)
    lines = ["digraph tree {"]
    lines += [f"  treerl_{name}={_quoted(value)};" for name, value in graph.graph.items()]
    lines.append('  rankdir=LR; node [shape=box, style=rounded, fontname="monospace"];')
    for row in graph:
        columns = {"label": _label(opened, row), **graph.nodes[row]}
        given = ", ".join(f"{_identifier(name)}={_quoted(v)}" for name, v in columns.items())
        lines.append(f"  {row} [{given}];")
    lines += [f"  {parent} -> {child};" for parent, child in graph.edges]
    return "\n".join(lines) + "\n}\n"


def _label(opened: Opened, row: int) -> str:
    node = opened.view.nodes[row]
    figures = [f"{node.mark}", "q -" if node.q is None else f"q {node.q:.2f}", f"n {node.visits}"]
    figures += [f"→ {visible(node.answer)}"] if node.answer is not None else []
    return f"{' '.join(figures)}\n{fit(visible(node.text), _WORDS_MOST)}"


def _quoted(value: object) -> str:
    """A DOT string: quotes, backslashes and line ends escaped."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r")
    return '"' + text.replace("\n", "\\n").replace("\0", "�") + '"'


def _identifier(name: str) -> str:
    return name if re.fullmatch("[A-Za-z_][A-Za-z_0-9]*", name) else _quoted(name)
