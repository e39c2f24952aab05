"""Wires the parts into runs: train, search, evaluate, warm start, and what the command line shows."""
