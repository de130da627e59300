"""A full run: recipe, loop, checkpoints, what is shown and kept of it."""
