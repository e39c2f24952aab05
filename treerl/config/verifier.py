"""`[verifier]`: who judges, and under which limits."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from treerl.config.section import Positive, Section


class FormatPart(Section):
    """One weighted part of a composite reward."""

    kind: Literal["math", "exact", "number", "choice", "format"]
    weight: float = 1.0


class VerifierSettings(Section):
    """Who judges, and under which limits."""

    kind: Literal[
        "auto",
        "math",
        "exact",
        "number",
        "choice",
        "chain",
        "reasoning_gym",
        "composite",
        "import",
    ] = "auto"
    """auto: by the problem's kind."""
    answer_format: Literal["auto", "boxed", "hash", "answer_tag", "last_segment", "whole"] = "auto"
    """The one place an answer is read from; auto: the usual one of the problem's kind."""
    target: str | None = None
    """`path/file.py:function` or `package.module:function` for kind = "import"."""
    parts: tuple[FormatPart, ...] = ()
    """Weighted parts for kind = "composite"."""
    timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """Wall-clock seconds an answer may take; then the worker is killed and the outcome is `timeout`."""
    workers: Positive = 1
    memory_mb: Positive = 4096
    """Address space of one worker."""

    @model_validator(mode="after")
    def _target_and_parts(self) -> Self:
        if (self.kind == "import") != (self.target is not None):
            raise ValueError('target = "file.py:function" goes with kind = "import"')
        if (self.kind == "composite") != bool(self.parts):
            raise ValueError('parts go with kind = "composite"')
        return self
