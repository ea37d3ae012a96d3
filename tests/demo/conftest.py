import logging

import pytest


@pytest.fixture(autouse=True)
def _loggers_stay_as_they_are():
    """Scripts send logs to the console of their process, which in a test is gone when the test ends."""
    loggers = [logging.getLogger(name) for name in ("mask2former", "dinat_backbone")]
    before = [(list(logger.handlers), logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.propagate = propagate
        logger.setLevel(level)
