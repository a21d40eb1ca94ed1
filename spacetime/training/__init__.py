"""The training run: set-up, tasks and losses, step, loop, state, metrics.

Knows nothing of the sampling pipeline; both meet in models and checkpoints.
"""
