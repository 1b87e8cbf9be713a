"""Training: the program, the step, the state, optimisers, schedules, the loop, checkpoints."""
