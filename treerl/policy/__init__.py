"""The model and its update: packing, tree attention, losses, optimizer, checkpoints, warm start."""
