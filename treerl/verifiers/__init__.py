"""Judging answers: strict extraction, the judgements, users' reward functions, and killable workers.

Knows problems and texts, no trees and no models. Nothing is imported here, so that the worker processes
start cheaply: `treerl.verifiers.workers.VerifierPool` is the entry for most callers.
"""
