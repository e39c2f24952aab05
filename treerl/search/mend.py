"""Brings a tree whose growth was interrupted (Ctrl-C inside an append or a split) back to whole spans.

What an exception can tear is bounded by the order in which `Tree` writes: tokens, then the draw, then the
node. A draw without a node is dropped; starts, parents and offsets follow from (draw, stop) of the nodes.
"""

import numpy as np

from treerl.search.sampler import Origin
from treerl.search.tree import ROOT, Tree


def mend(tree: Tree) -> Tree:
    """A tree with the complete spans of `tree`, nothing of torn ones, and no memory of open requests.

    An untorn tree comes back equal. Row ids, verdicts and meta are kept.
    """
    nodes, draws, tokens = tree.nodes.arrays(), tree.draws.arrays(), tree.tokens.arrays()
    whole = int(nodes["draw"].max()) + 1
    draws = {name: column[:whole] for name, column in draws.items()}
    end = int((draws["start"] + draws["length"]).max())
    tokens = {name: column[:end] for name, column in tokens.items()}
    by_end: dict[tuple[int, int], int] = {}
    pieces = np.lexsort((nodes["stop"], nodes["draw"])).tolist()
    for row in pieces:
        draw, stop = int(nodes["draw"][row]), int(nodes["stop"][row])
        by_end[draw, stop - int(draws["start"][draw])] = row
    before = ROOT
    for row in pieces:
        draw = int(nodes["draw"][row])
        if row == ROOT:
            continue
        if nodes["draw"][before] == draw:
            parent, start = before, int(nodes["stop"][before])
            nodes["origin"][row], nodes["chosen_by_token"][row] = Origin.EXTEND, False
        else:
            start = int(draws["start"][draw])
            parent = by_end[int(draws["parent"][draw]), int(draws["offset"][draw])]
        nodes["start"][row], nodes["parent"][row] = start, parent
        length = nodes["stop"][parent] - nodes["start"][parent]
        nodes["offset"][row] = nodes["offset"][parent] + length
        before = row
    for row, verdict in tree.verdicts.items():
        nodes["reward"][row] = np.nan if verdict.reward is None else verdict.reward
    tree.nodes.load(nodes)
    tree.draws.load(draws)
    tree.tokens.load(tokens)
    tree.reindex()
    return tree
