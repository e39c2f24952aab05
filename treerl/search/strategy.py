"""From settings to a growth rule. The rules themselves: `flat`, `cure`, `deepsearch`."""

from collections.abc import Callable, Sequence
from typing import assert_never

from treerl.config import CureSearch, DeepSearchSearch, FlatSearch, SearchSettings
from treerl.search.asktell import Exit, Result, State, Strategy
from treerl.search.cure import Cure
from treerl.search.cut import Cut, TokenLengths
from treerl.search.deepsearch import DeepSearch
from treerl.search.deepsearch_faithful import DeepSearchFaithful
from treerl.search.flat import Flat

__all__ = ["Exit", "Result", "State", "Strategy", "make_strategy"]


def make_strategy(
    settings: SearchSettings, decode: Callable[[Sequence[int]], list[str]]
) -> Strategy:
    """The strategy of a recipe's `[search]` section.

    decode: token ids to the text of each, "" for special tokens; asked once per token id.
    """
    match settings:
        case FlatSearch():
            return Flat(settings)
        case CureSearch():
            return Cure(settings, Cut(settings.cut, TokenLengths(decode)))
        case DeepSearchSearch(form="improved"):
            return DeepSearch(settings)
        case DeepSearchSearch():
            return DeepSearchFaithful(settings)
        case _:
            assert_never(settings)
