"""Training: the step, the state, optimisers, the loop, checkpoints."""
