"""The learning rate of every step: a linear warm-up, then half a cosine down to the smallest.

Source: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017), without the restarts.
"""

import math

from train.recipe import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate that optimizer step ``step`` (from 0) is taken with.

    The warm-up ends on step ``warmup_steps``, the first at the full rate; the last step is taken at the smallest.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    decay_steps = max(1, config.steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / decay_steps)
    span = config.learning_rate - config.min_learning_rate
    return config.min_learning_rate + 0.5 * (1.0 + math.cos(math.pi * progress)) * span
