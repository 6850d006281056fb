"""A night of tiny frames, made once."""

import pytest

from musedask.sim import Target, plan_night

from .fakes import COUNTS, FakePipeline, two_nights, write_raws, write_statics


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


@pytest.fixture(scope="session")
def adaptive(tmp_path_factory):
    """As `nights`: a night of each mode with adaptive optics."""
    folder = tmp_path_factory.mktemp("adaptive")
    for day, mode in (("2019-03-04", "WFM-AO-N"), ("2019-03-06", "NFM-AO-N")):
        target = Target(f"AO {mode[:3]}", ra=150.0, dec=-33.0, dithers=2, exptimes=(300.0,), sky=0, id=300001)
        counts = {**COUNTS, "DARK": 0, "ASTROMETRY": 1}
        write_raws(folder / "raw", plan_night(day, mode=mode, targets=[target], counts=counts))
    write_statics(folder / "static", mode="WFM-AO-N")
    return folder
