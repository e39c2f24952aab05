"""How a tree grows: the tree itself, growth rules, the scheduler that runs them over any sampler.

Knows no torch, no SQL and no model; what a node is worth is in `treerl.credit`.
"""
