"""The group of workers that a training loop runs in: one process, or Ray Train's workers."""
