"""Exact text: equal after white space at both ends is dropped. Nothing else is forgiven, case included."""


def reward(truth: str, answer: str) -> float:
    """1.0 where the texts are equal, else 0.0."""
    return float(answer.strip() == truth.strip())
