"""A night of tiny frames, made once."""

import pytest

from .fakes import FakePipeline, two_nights, write_raws, write_statics


@pytest.fixture(scope="session")
def nights(tmp_path_factory):
    """Folder with ``raw`` and ``static`` of two nights, two observing blocks, two IFUs; not to be changed."""
    folder = tmp_path_factory.mktemp("nights")
    write_raws(folder / "raw", two_nights())
    write_statics(folder / "static")
    return folder


@pytest.fixture
def fake(tmp_path):
    """A program that answers like esorex."""
    return FakePipeline(tmp_path / "fake")
