"""Errors of evaluation."""


class EvaluationError(ValueError):
    """Predictions or ground truth that can't be evaluated; the message names the data set, file or key."""
