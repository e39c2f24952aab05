"""What the tokens of a span can be coloured by."""

from treerl.errors import ConfigError
from treerl.inspect.library import Library, Opened
from treerl.inspect.shade import ENTROPY_TOP, Scale, Shade, plain

HEATS = ("entropy", "logprob", "advantage", "ratio")
LOGPROB_LOW = -3.0
"""Log-prob at the hot end of its scale: one token in twenty."""


def heat_of(name: str, library: Library, opened: Opened, estimator: str) -> Shade:
    """The shade of tokens `name`. Raises TreerlError with the reason where it cannot be had.

    ratio: probability under the policy at hand over that of the sampler, on a scale around 1.
    """
    tokens = opened.tree.tokens
    match name:
        case "entropy":
            legend = f"entropy 0 to {ENTROPY_TOP:g} nats"
            return Shade(name, {}, Scale(0.0, ENTROPY_TOP), plain, legend, tokens.entropy)
        case "logprob":
            legend = f"log-prob 0 to {LOGPROB_LOW:g}"
            return Shade(name, {}, Scale(0.0, LOGPROB_LOW), plain, legend, tokens.logprob)
        case "advantage":
            return library.credit(opened, estimator).shade(opened.tree)
        case "ratio":
            scale = Scale(0.5, 2.0, middle=1.0)
            values = library.ratio(opened)
            return Shade(name, {}, scale, plain, "new/old probability 0.5 to 2", values)
    raise ConfigError(f"heat {name}: choose one of {', '.join(HEATS)}")
