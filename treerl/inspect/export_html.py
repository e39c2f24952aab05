"""A tree as one HTML page that needs neither network nor treerl: fold, find, colour, look at tokens.

What a model wrote is hostile until proven otherwise: it travels as JSON without `<`, reaches the page as text
only, and a content security policy lets no script run but the page's own, by its hash, and nothing load.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

from treerl.inspect.export_values import shades_json, tree_values
from treerl.inspect.library import Opened
from treerl.inspect.shade import ABOVE, FALLING, RISING, Credit
from treerl.inspect.text import fit, visible


def to_html(opened: Opened, credits: Sequence[Credit] = (), *, colour: str = "q") -> str:
    """The page. colour: the name of the shade it opens with."""
    shades = shades_json(opened, credits)
    chosen = next((s["name"] for s in shades if s["name"].split()[0] == colour), "q")
    values = {
        "tree": tree_values(opened, credits),
        "shades": shades,
        "colour": chosen,
        "ramps": {
            "rising": _ramp(RISING),
            "falling": _ramp(FALLING),
            "above": _ramp(ABOVE),
        },
    }
    script, style = _part("page.js"), _part("page.css")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = f"{opened.title}: {fit(visible(opened.view.question), 60)}"
    return Template(_part("page.html")).substitute(
        policy=policy,
        title=html.escape(title.encode("utf-8", "replace").decode()),
        style=style,
        script=script,
        data=script_json(values),
    )


def script_json(values: Any) -> str:
    """JSON in ASCII that cannot end or open an element of the page it stands in."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _ramp(styles: Sequence[str]) -> list[tuple[str, str]]:
    """Ink and fill of each level; empty where the page's own colours stay."""
    pairs = [style.partition(" on ")[::2] if style else ("", "") for style in styles]
    return [(ink, fill) for ink, fill in pairs]


def _part(name: str) -> str:
    return (files("treerl.inspect") / "page" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    found = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest())
    return f"sha256-{found.decode()}"
