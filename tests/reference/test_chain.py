"""A simulated night through the real pipeline, narrow: one IFU, few frames, a piece of the spectrum.

The calibrations of the detector are made by both engines, of the same frames and masters, and compared; what
follows takes the native ones.  The whole of it, with all recipes, is benchmarks/chain.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import musedask
from benchmarks import chain as whole
from musedask.io.calibrations import read_trace_table, read_wavecal_residuals, read_wavecal_table
from musedask.io.muse_image import read_muse_image
from musedask.sim import NightTruth, simulate_night
from musedask.sim.masters import write_masters

from .support import require_esorex

pytestmark = [pytest.mark.esorex, pytest.mark.timeout(900)]

#: of the recipes after muse_scibasic [Angstrom]
RANGE = {"lambdamin": 6700, "lambdamax": 7300}


@dataclass
class Reduced:
    """A reduced night; masters by tag, those of musedask and those of the reference."""

    chain: whole.Chain
    truth: NightTruth
    cube: Path
    native: dict[str, Path]
    reference: dict[str, Path]


def run_natively(chain, folder):
    """Products of the native recipes of the detector by tag, made with the masters of the reference."""
    made = {}
    for recipe, tags, parameters in (
        ("muse_bias", "BIAS BADPIX_TABLE", {}),
        ("muse_flat", "FLAT MASTER_BIAS BADPIX_TABLE", {"samples": True}),
        ("muse_wavecal", "ARC MASTER_BIAS TRACE_TABLE LINE_CATALOG BADPIX_TABLE", {"residuals": True}),
    ):
        frames = chain.tagged(*tags.split(), ifu=1)
        products = musedask.run_recipe(recipe, frames, engine="native", ifus=[1], output_dir=folder, **parameters)
        made |= {frame.tag: frame.path for frame in products}
    return made


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
    whole.calibrate_detectors(chain)
    masters = run_natively(chain, folder / "native")
    # what follows has native masters: the reference takes them
    reference = dict(chain.products)
    chain.products |= {tag: [path] for tag, path in masters.items()}
    whole.calibrate_field(chain, lsf=False)
    # a star does not fit into the strip of one IFU: the response is that of the simulation
    for tag, paths in write_masters(
        folder / "masters", night.plans, ifus=(1,), names="drs", tags=("STD_RESPONSE", "STD_TELLURIC")
    ).items():
        chain.products[tag] = paths
    cube = whole.reduce_objects(chain, ("simple",), **RANGE)
    return Reduced(chain, NightTruth.open(folder / "night"), cube, masters, {k: v[0] for k, v in reference.items()})


def assert_good(figures):
    assert figures
    assert all(f.good for f in figures), "\n".join(map(str, figures))


def test_traces(reduced):
    chain, truth = reduced.chain, reduced.truth
    assert_good(whole.check_traces(chain, truth.instrument()))


def test_wavelengths(reduced):
    chain, truth = reduced.chain, reduced.truth
    assert_good(whole.check_wavelengths(chain, truth.instrument()))


def test_offsets(reduced):
    chain, truth = reduced.chain, reduced.truth
    assert_good(whole.check_offsets(chain.product("OFFSET_LIST"), [e.plan for e in truth.select("OBJECT")]))


def test_positions_in_the_cube(reduced):
    figures = whole.check_sources(reduced.cube, reduced.truth, waves=(7000.0,))
    assert_good([f for f in figures if f.unit == "spaxel"])
    with fits.open(reduced.cube) as hdus:
        assert hdus["DATA"].header["BUNIT"] == "10**(-20)*erg/s/cm**2/Angstrom"


def compared_images(reduced, tag):
    return (read_muse_image(paths[tag]) for paths in (reduced.native, reduced.reference))


def test_bias_of_both_engines(reduced):
    ours, reference = compared_images(reduced, "MASTER_BIAS")
    assert np.abs(ours.data - reference.data).max() < 1e-5
    assert np.array_equal(ours.dq, reference.dq)
    # the windows in which the reference measures the noise are its own
    np.testing.assert_allclose(ours.stat, reference.stat, rtol=0.05)


def test_flat_of_both_engines(reduced):
    ours, reference = compared_images(reduced, "MASTER_FLAT")
    # of the level, which is 1: between the slices are differences of two numbers
    np.testing.assert_allclose(ours.data, reference.data, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.stat, reference.stat, rtol=1e-5)
    assert np.array_equal(ours.dq, reference.dq)


def test_traces_of_both_engines(reduced):
    ours, reference = (read_trace_table(paths["TRACE_TABLE"]) for paths in (reduced.native, reduced.reference))
    y = np.arange(1, 4113)[:, None]
    for name in ("centre", "left", "right"):
        a, b = (np.polynomial.polynomial.polyval(y, getattr(t, name).T, tensor=False) for t in (ours, reference))
        assert np.abs(a - b).max() < 0.002


def test_wavelengths_of_both_engines(reduced):
    ours, reference = (read_wavecal_table(paths["WAVECAL_TABLE"]) for paths in (reduced.native, reduced.reference))
    traces = read_trace_table(reduced.reference["TRACE_TABLE"])
    y = np.arange(1, 4113, 8)
    for s in range(1, 49):
        left, right = traces.edges(s, y)
        x = left + (right - left) * np.linspace(0, 1, 9)[:, None]
        wave = reference.wavelength(s, x, y)
        difference = np.abs(ours.wavelength(s, x, y) - wave)
        assert difference[(wave > 4750) & (wave < 9350)].max() < 0.003
        # beyond the last lines that are fitted the fit of the reference, which has not converged, runs away
        assert difference.max() < 0.02
    points = []
    for paths in (reduced.native, reduced.reference):
        table = read_wavecal_residuals(paths["WAVECAL_RESIDUALS"])
        points.append(set(zip(table.ccd_slice, np.round(table.wave, 2), strict=True)))
    assert points[0] == points[1]
