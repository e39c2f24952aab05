"""treerl: tree search, replay and process rewards for reinforcement learning with verifiable rewards."""

__version__ = "0.1.0"
