"""Training: the step, the compiled loop, optimizers, schedules and augmentations."""
