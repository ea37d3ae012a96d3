"""Errors of evaluation."""

from mask2former.utils.errors import UserError


class EvaluationError(UserError):
    """Predictions or ground truth that can't be evaluated; the message names the data set, file or key."""
