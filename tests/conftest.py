"""Settings and order of the whole test suite."""

from __future__ import annotations

import os

# no display is needed anywhere, and a chosen backend must not leak in
os.environ["MPLBACKEND"] = "Agg"

from pathlib import Path

from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
# compiled functions make the first example slow, so examples have no time limit
settings.register_profile("default", deadline=None, max_examples=30, suppress_health_check=_SLOW)
settings.register_profile(
    "ci", deadline=None, max_examples=20, suppress_health_check=_SLOW, derandomize=True, print_blob=True
)
settings.register_profile("thorough", deadline=None, max_examples=500, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

#: files that take longest, from the top: with several processes they begin first, so that none is left alone at the end
_LONG = (
    "reference/test_chain.py", "test_memory.py", "reference/test_combine.py", "reference/test_rows.py", "test_docs.py",
    "test_survival.py", "cube/test_chunking.py", "reference/test_make_cube.py", "reference/test_sim_detector.py",
    "cube/test_rows.py", "calib/test_wavecal.py",
)  # fmt: skip
_RANK = {Path(__file__).parent / name: rank for rank, name in enumerate(_LONG)}


def pytest_collection_modifyitems(items):
    """Long files first, which pytest-xdist keeps with ``--no-loadscope-reorder``."""
    items.sort(key=lambda item: _RANK.get(item.path, len(_RANK)))
