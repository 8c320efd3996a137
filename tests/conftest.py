"""The profiles: a default one for every change, and `--wide` for full depth."""

import os

# The workers share the cores, and tests are small: threads that wait for each other made scipy 100
# times slower, and torch's softmax of ten numbers too. NumPy reads this when torch imports it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

from lossary import _residual, _softmax

hypothesis.settings.register_profile(
    "default", max_examples=15, derandomize=True, deadline=None, database=None
)
hypothesis.settings.register_profile("wide", max_examples=300, derandomize=True, deadline=None)

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--wide", action="store_true", help="also run what is marked wide")


def pytest_configure(config):
    config.addinivalue_line("markers", "wide: deselected unless --wide is given")
    hypothesis.settings.load_profile("wide" if config.getoption("--wide") else "default")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--wide"):
        return
    wide = [item for item in items if item.get_closest_marker("wide")]
    items[:] = [item for item in items if not item.get_closest_marker("wide")]
    config.hook.pytest_deselected(items=wide)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def tiles(monkeypatch):
    """Send the smallest inputs down the tiled path, in tiles of a few rows."""
    monkeypatch.setattr(_softmax, "TILED_FROM_BYTES", 0)
    monkeypatch.setattr(_softmax, "TILED_FROM_CLASSES", 0)
    monkeypatch.setattr(_softmax, "TILE_BYTES", {"cpu": 200, "other": 200})
    monkeypatch.setattr(_residual, "TILED_FROM_BYTES", 0)
    monkeypatch.setattr(_residual, "TILE_BYTES", {"cpu": 200, "other": 200})


@pytest.fixture
def fresh_compiler():
    """Forget what torch.compile holds, before and after: its cache is bounded per code object."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
