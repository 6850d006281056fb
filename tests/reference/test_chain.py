"""A simulated night through the real pipeline, narrow: one IFU, few frames, a piece of the spectrum.

The whole of it, with all recipes, is benchmarks/chain.py.
"""

from __future__ import annotations

import pytest
from astropy.io import fits

from benchmarks import chain as whole
from musedask.sim import NightTruth, simulate_night
from musedask.sim.masters import write_masters

from .support import require_esorex

pytestmark = [pytest.mark.esorex, pytest.mark.timeout(900)]

#: of the recipes after muse_scibasic [Angstrom]
RANGE = {"lambdamin": 6700, "lambdamax": 7300}


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    """Chain, truth and final cube of a night of one IFU, from bias to combined cube."""
    require_esorex()
    folder = tmp_path_factory.mktemp("chain")
    night = simulate_night(
        folder / "night", ifus=(1,), dithers=2, rotate=0, exptimes=(300,), seed=11, associations=False, truth=False,
        # three frames are not enough to find cosmic rays, which then look like bad columns
        calibrations={"BIAS": 5, "FLAT": 3, "ARC": 1, "SKYFLAT": 3, "ASTROMETRY": 0, "SKY": 0}, n_workers=2,
    )  # fmt: skip
    chain = whole.Chain(folder / "reduced", whole.read_frames(folder / "night"), (1,))
    whole.calibrate(chain, lsf=False)
    # a star does not fit into the strip of one IFU: the response is that of the simulation
    for tag, paths in write_masters(
        folder / "masters", night.plans, ifus=(1,), names="drs", tags=("STD_RESPONSE", "STD_TELLURIC")
    ).items():
        chain.products[tag] = paths
    cube = whole.reduce_objects(chain, ("simple",), **RANGE)
    return chain, NightTruth.open(folder / "night"), cube


def assert_good(figures):
    assert figures
    assert all(f.good for f in figures), "\n".join(map(str, figures))


def test_traces(reduced):
    chain, truth, _ = reduced
    assert_good(whole.check_traces(chain, truth.instrument()))


def test_wavelengths(reduced):
    chain, truth, _ = reduced
    assert_good(whole.check_wavelengths(chain, truth.instrument()))


def test_offsets(reduced):
    chain, truth, _ = reduced
    assert_good(whole.check_offsets(chain.product("OFFSET_LIST"), [e.plan for e in truth.select("OBJECT")]))


def test_positions_in_the_cube(reduced):
    _, truth, cube = reduced
    figures = whole.check_sources(cube, truth, waves=(7000.0,))
    assert_good([f for f in figures if f.unit == "spaxel"])
    with fits.open(cube) as hdus:
        assert hdus["DATA"].header["BUNIT"] == "10**(-20)*erg/s/cm**2/Angstrom"
