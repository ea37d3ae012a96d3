import pytest


@pytest.fixture(autouse=True)
def _scripts_run_in_this_process(loggers_restored):
    """All tests of the demo do."""
