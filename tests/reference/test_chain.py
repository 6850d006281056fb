"""A simulated night through the real pipeline, narrow: one IFU, few frames, a piece of the spectrum.

The calibrations of the detector are made natively, and the reference goes on with them to a cube.  The comparison of
both engines on the same frames is slow, and so is the twilight: those of small frames are in the tests of the single
recipes, the twilight with native masters is in test_mixing.  The whole of it, with all recipes, is benchmarks/chain.py.
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
RANGE = {"lambdamin": 6850, "lambdamax": 7150}


@dataclass
class Reduced:
    """A reduced night; native masters by tag."""

    chain: whole.Chain
    truth: NightTruth
    cube: Path
    native: dict[str, Path]


def run_natively(chain, folder, masters=None):
    """Products of the native recipes of the detector by tag, made with their own masters or with those given."""
    made = {}
    own = whole.Chain(chain.folder, chain.frames, chain.ifus, products=dict(masters or {}))
    for recipe, tags, parameters in (
        ("muse_bias", "BIAS BADPIX_TABLE", {}),
        ("muse_flat", "FLAT MASTER_BIAS BADPIX_TABLE", {"samples": True}),
        ("muse_wavecal", "ARC MASTER_BIAS TRACE_TABLE LINE_CATALOG BADPIX_TABLE", {"residuals": True}),
    ):
        frames = own.tagged(*tags.split(), ifu=1)
        products = musedask.run_recipe(recipe, frames, engine="native", ifus=[1], output_dir=folder, **parameters)
        made |= {frame.tag: frame.path for frame in products}
        own.products = {tag: [path] for tag, path in made.items()} | dict(masters or {})
    return made


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    """Chain, truth and final cube of a night of one IFU, from bias to combined cube."""
    require_esorex()
    folder = tmp_path_factory.mktemp("chain")
    what = {"ifus": (1,), "dithers": 2, "rotate": 0, "exptimes": (300,), "seed": 11, "associations": False}
    # three frames are not enough to find cosmic rays, which then look like bad columns
    counts = {"BIAS": 5, "DARK": 0, "FLAT": 3, "ARC": 1, "ASTROMETRY": 0, "SKY": 0}
    simulate_night(
        folder / "night", **what, truth=False, calibrations={**counts, "SKYFLAT": 0, "STD": 0}, n_workers=2
    )
    planned = simulate_night(folder / "planned", **what, calibrations={**counts, "SKYFLAT": 3, "STD": 1}, dry_run=True)
    chain = whole.Chain(folder / "reduced", whole.read_frames(folder / "night"), (1,))
    masters = run_natively(chain, folder / "native")
    # what follows has native masters: the reference takes them
    chain.products |= {tag: [path] for tag, path in masters.items()}
    # a star does not fit into the strip of one IFU, and the twilight takes long: masters made of the truth
    tags = ("TWILIGHT_CUBE", "STD_RESPONSE", "STD_TELLURIC")
    chain.products |= write_masters(folder / "masters", planned.plans, ifus=(1,), names="drs", tags=tags)
    cube = whole.reduce_objects(chain, ("simple",), **RANGE)
    return Reduced(chain, NightTruth.open(folder / "night"), cube, masters)


@pytest.fixture(scope="module")
def both(reduced, tmp_path_factory):
    """Masters by tag, native and of the reference, all of the same frames and of masters of the reference."""
    folder = tmp_path_factory.mktemp("both")
    chain = whole.Chain(folder / "reference", reduced.chain.frames, (1,))
    whole.calibrate_detectors(chain)
    native = run_natively(chain, folder / "native", chain.products)
    return native, {tag: paths[0] for tag, paths in chain.products.items()}


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


def compared_images(both, tag):
    return (read_muse_image(paths[tag]) for paths in both)


@pytest.mark.slow
def test_bias_of_both_engines(both):
    ours, reference = compared_images(both, "MASTER_BIAS")
    assert np.abs(ours.data - reference.data).max() < 1e-5
    assert np.array_equal(ours.dq, reference.dq)
    np.testing.assert_allclose(ours.stat, reference.stat, rtol=1e-6)


@pytest.mark.slow
def test_flat_of_both_engines(both):
    ours, reference = compared_images(both, "MASTER_FLAT")
    # of the level, which is 1: between the slices are differences of two numbers
    np.testing.assert_allclose(ours.data, reference.data, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.stat, reference.stat, rtol=1e-5)
    assert np.array_equal(ours.dq, reference.dq)


@pytest.mark.slow
def test_traces_of_both_engines(both):
    ours, reference = (read_trace_table(paths["TRACE_TABLE"]) for paths in both)
    y = np.arange(1, 4113)[:, None]
    for name in ("centre", "left", "right"):
        a, b = (np.polynomial.polynomial.polyval(y, getattr(t, name).T, tensor=False) for t in (ours, reference))
        # the fits of the edges end in the same place; 1.1e-7 were measured
        assert np.abs(a - b).max() < 1e-6


@pytest.mark.slow
def test_wavelengths_of_both_engines(both):
    ours, reference = (read_wavecal_table(paths["WAVECAL_TABLE"]) for paths in both)
    traces = read_trace_table(both[1]["TRACE_TABLE"])
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
    for paths in both:
        table = read_wavecal_residuals(paths["WAVECAL_RESIDUALS"])
        points.append(set(zip(table.ccd_slice, np.round(table.wave, 2), strict=True)))
    assert points[0] == points[1]
