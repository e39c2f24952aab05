"""Text of models made safe and short: control characters shown, not obeyed; widths in terminal cells."""

from collections.abc import Callable, Sequence

from rich.cells import cell_len, set_cell_size

Decode = Callable[[Sequence[int]], str]

_SHOWN = {code: chr(0x2400 + code) for code in range(32)} | {
    ord("\n"): "⏎",
    ord("\t"): "⇥",
    0x7F: "␡",
    # C1 controls, and marks that turn the direction of what follows, have no picture.
    **dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "�"),
}


def visible(text: str) -> str:
    """`text` on one line, control characters as signs: what a model writes never steers a terminal."""
    return text.translate(_SHOWN)


def fit(text: str, cells: int) -> str:
    """`text` cut to `cells` terminal cells, with … where it was cut."""
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, cells - 1).rstrip() + "…" if cells > 0 else ""


def token_texts(decode: Decode, ids: Sequence[int]) -> list[str]:
    """The text each token adds to those before it; "" for a token that ends inside a character.

    Decoding tokens alone would lose the spaces that some tokenizers drop at the start, and break characters
    of several tokens: so each is the difference of two short decodings.
    """
    texts = []
    for index in range(len(ids)):
        first = max(0, index - 4)
        before = decode(ids[first:index]).strip("�")
        now = decode(ids[first : index + 1]).strip("�")
        piece = now[len(before) :] if now.startswith(before) else ""
        # Alone, a special token has a name, and a part of a character has no text.
        texts.append(piece or decode([ids[index]]).replace("�", ""))
    return texts
