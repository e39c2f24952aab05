"""Files shipped with treerl: the embedded policy, made by scripts/make_embedded_policy.py."""

from pathlib import Path

EMBEDDED_POLICY = Path(__file__).parent / "chain-0.4m"
"""Folder of the embedded policy, as `from_pretrained` of transformers takes it."""
