import pytest

from ..conftest import ROOT, load_script


@pytest.fixture
def load_benchmark(monkeypatch):
    """Loads a script of benchmarks/ by its name; its imports are found as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: load_script(f"benchmarks/{name}.py")
