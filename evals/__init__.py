"""How good a model is: its loss on text that it was not trained on."""

from evals.loss import validation_loss

__all__ = ["validation_loss"]
