"""Settings of the whole test suite."""

from __future__ import annotations

import os

# no display is needed anywhere, and a chosen backend must not leak in
os.environ["MPLBACKEND"] = "Agg"

from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
# compiled functions make the first example slow, so examples have no time limit
settings.register_profile("default", deadline=None, max_examples=30, suppress_health_check=_SLOW)
settings.register_profile(
    "ci", deadline=None, max_examples=20, suppress_health_check=_SLOW, derandomize=True, print_blob=True
)
settings.register_profile("thorough", deadline=None, max_examples=500, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))
