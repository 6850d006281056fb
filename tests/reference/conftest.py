"""The reference pipeline as a fixture."""

from __future__ import annotations

import pytest

from .support import Esorex, require_esorex


@pytest.fixture(scope="session")
def esorex(tmp_path_factory):
    """Runner of recipes of the reference; each distinct call is made once per session."""
    require_esorex()
    return Esorex(tmp_path_factory.mktemp("esorex"))
