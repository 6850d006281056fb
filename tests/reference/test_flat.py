"""Native muse_flat and that of the reference give the same numbers, also where slices are hard to trace.

The frames have the full width of a CCD, as slices need it, but few rows.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from astropy.io import fits

from musedask.calib import flat
from musedask.errors import RecipeError
from musedask.instrument import N_SLICES
from musedask.io.calibrations import BadPixels, read_trace_samples, read_trace_table, write_badpix_table
from musedask.io.muse_image import read_muse_image

from ..calib.test_flat import SCAN, task_of, write_bias, write_frame
from ..calib.test_tracing import lit, true_edges
from .support import Esorex, require_esorex

pytestmark = pytest.mark.esorex

#: rows of a quadrant
NY = 128
#: on so few rows polynomials of high orders differ by their roundings, and pixels at the limits of rejection with them
SMALL = {"nsum": 16, "order": 1, "overscan": "vpoly:3"}


@functools.cache
def plain_light():
    """Light with pixels of different sensitivity and all kinds of defects."""
    light = lit(ny=2 * NY).astype(float)
    rng = np.random.default_rng(3)
    light *= rng.normal(1, 0.003, light.shape)
    where = rng.integers(0, 2 * NY, 400), rng.integers(0, light.shape[1], 400)
    light[where] *= rng.choice([0.0, 0.1, 0.5, 0.9, 1.3], 400)
    light[:, columns(7, 30, 31)] *= 0.05
    light[100:, columns(8, 50, 52)] *= 0.7
    return light


def columns(ccd_slice, start, stop):
    left = round(true_edges([NY])[ccd_slice - 1, 0, 0]) - 1
    return slice(left + start, left + stop)


def dimmed(*changes):
    light = plain_light().copy()
    for rows, where, factor in changes:
        light[rows, columns(*where)] *= factor
    return light


ALL = slice(None)
#: soft shadows on slices at the edge of the field, from one side, as far as the lowest levels of an edge
SHADOWS = [
    (ALL, (s, start + i * step, start + i * step + 1), level + (1 - level) * i / n)
    for s, start, step, n, level in ((10, -3, 1, 25, 0.25), (22, -3, 1, 18, 0.42), (46, 79, -1, 30, 0.35))
    for i in range(n)
]
#: bright columns near the left edge: the two measurements of it do not agree
JUMPS = [(slice(32, 96), (s, 3, 4), 3.0) for s in (20, 36, 37, 48)]
LIGHT = {
    "plain": plain_light,
    "shadow": lambda: dimmed(*SHADOWS),
    "jumps": lambda: dimmed(*JUMPS),
    "columns": lambda: dimmed(
        *[(slice(112), *c) for c in (((5, 3, 4), 0.1), ((20, 30, 31), 0.0), ((30, 73, 74), 0.2))]
    ),
    "lost": lambda: np.roll(plain_light(), -50, axis=1),
    "missing": lambda: dimmed((ALL, (20, -6, 84), 0.0)),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runner of the reference: 255 means that tracing failed altogether."""
    require_esorex()
    return Esorex(tmp_path_factory.mktemp("esorex"), codes=(0, 255))


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes raw frames and their master bias, each set once."""
    folder = tmp_path_factory.mktemp("raw")

    @functools.cache
    def make(name, n, ifu=1, year=2018, exptimes=()):
        light = LIGHT[name]()
        cards = {"DATE-OBS": f"{year}-11-08T21:36:00.000"}
        found = []
        for k in range(n):
            path = folder / f"{name}-{ifu}-{year}-{len(exptimes)}-{n}-{k}.fits"
            if exptimes:
                cards["EXPTIME"] = exptimes[k]
            found.append((write_frame(path, light, k, ifu=ifu, **cards), "FLAT"))
        bias = folder / f"bias-{ifu}.fits"
        if not bias.exists():
            write_bias(bias, ifu=ifu, ny=NY)
        return [*found, (bias, "MASTER_BIAS")]

    return make


def both(run, frames, ifu=1, **options):
    """Products of the native recipe by tag, whether it failed, and the folder of those of the reference."""
    options = SMALL | options
    folder = run("muse_flat", frames, nifu=ifu, **{k: str(v).lower() for k, v in options.items()})
    made, failed = {}, False
    try:
        for product in flat.muse_flat(task_of(frames, ifu, **options)):
            made[product.tag] = product
    except RecipeError:
        failed = True
    names = {p.name for p in folder.glob("*.fits")}
    assert names == {f"{tag}-{ifu:02d}.fits" for tag in made}
    assert failed == ("status = -1" in (folder / "stdout").read_text())
    return made, folder


def assert_same_image(made, path):
    ours, reference = made.content, read_muse_image(path)
    # rounding of numbers as large as those that they are made of
    scale = np.abs(reference.data).mean()
    np.testing.assert_allclose(ours.data, reference.data, rtol=1e-6, atol=3e-7 * scale)
    np.testing.assert_allclose(ours.stat, reference.stat, rtol=1e-5)
    np.testing.assert_array_equal(ours.dq, reference.dq)
    assert ours.unit == reference.unit


def assert_same_traces(made, folder, ifu, edges=0.002):
    ny = len(made["MASTER_FLAT"].content.data)
    ours = made["TRACE_TABLE"].content
    reference = read_trace_table(folder / f"TRACE_TABLE-{ifu:02d}.fits", ifu=ifu)
    y = np.arange(1.0, ny + 1)
    for name in ("centre", "left", "right"):
        a, b = (np.polynomial.polynomial.polyval(y, getattr(t, name).T) for t in (ours, reference))
        np.testing.assert_allclose(a, b, rtol=0, atol=edges, err_msg=name)
    np.testing.assert_allclose(ours.width, reference.width, rtol=0, atol=edges)
    if "TRACE_SAMPLES" in made:
        ours = made["TRACE_SAMPLES"].content
        reference = read_trace_samples(folder / f"TRACE_SAMPLES-{ifu:02d}.fits", ifu=ifu)
        np.testing.assert_array_equal(ours.ccd_slice, reference.ccd_slice)
        for name in ("y", "mid", "left", "right"):
            np.testing.assert_allclose(getattr(ours, name), getattr(reference, name), rtol=0, atol=1e-3, err_msg=name)


def assert_same_quality(made, path):
    """Keywords in their order, types, values to the last digit or its neighbour, and comments."""
    reference = fits.getheader(path)
    ours = {k: made.header[k] for k in made.header if k.startswith("ESO QC")}
    assert list(ours) == [k for k in reference if k.startswith("ESO QC")]
    for key, value in ours.items():
        assert type(value) is type(reference[key]), key
        # of edges [pix] that differ by a few millionths
        absolute = 3e-6 if any(k in key for k in ("GAPS", "WIDTH", "XPOS")) else 1e-9
        assert value == pytest.approx(reference[key], rel=2e-5 if "SLOPE" in key else 5e-6, abs=absolute), key
        shown = reference.comments[key]
        assert made.header.comments[key].startswith(shown.rstrip()), key


def compare(run, frames, ifu=1, edges=0.002, **options):
    made, folder = both(run, frames, ifu, **options)
    assert_same_image(made["MASTER_FLAT"], folder / f"MASTER_FLAT-{ifu:02d}.fits")
    if "TRACE_TABLE" in made:
        assert_same_traces(made, folder, ifu, edges=edges)
    for tag, product in made.items():
        assert_same_quality(product, folder / f"{tag}-{ifu:02d}.fits")
    return made


# --- combinations of frames ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (3, {"samples": True}),
        (5, {"normalize": False}),
        (5, {"combine": "median"}),
        pytest.param(11, {"samples": True}, marks=pytest.mark.slow),
        pytest.param(3, {"combine": "average"}, marks=pytest.mark.slow),
        pytest.param(5, {"combine": "average"}, marks=pytest.mark.slow),
        pytest.param(3, {"combine": "median"}, marks=pytest.mark.slow),
        pytest.param(5, {"combine": "minmax"}, marks=pytest.mark.slow),
        pytest.param(11, {"combine": "minmax", "nlow": 2, "nhigh": 3, "nkeep": 2}, marks=pytest.mark.slow),
        pytest.param(11, {"lsigma": 2.0, "hsigma": 1.5}, marks=pytest.mark.slow),
        pytest.param(3, {"nsum": 1, "order": 2}, marks=pytest.mark.slow),
        pytest.param(3, {"nsum": 50}, marks=pytest.mark.slow),
        (3, {"losigmabadpix": 0.7, "hisigmabadpix": 0.8, "nsum": 8, "order": 2}),
        pytest.param(3, {"losigmabadpix": 0.0, "hisigmabadpix": 50.0}, marks=pytest.mark.slow),
        pytest.param(3, {"trace": False, "samples": True}, marks=pytest.mark.slow),
    ],
)
def test_combination(run, make, n, options):
    frames = make("plain", 11)
    compare(run, [*frames[:n], frames[-1]], **options)


@pytest.mark.parametrize("scale", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_exposure_times(run, make, scale):
    compare(run, make("plain", 4, exptimes=(0.35, 0.7, 0.3, 0.35)), scale=scale)


def test_a_saturated_frame_and_known_bad_pixels(run, make, tmp_path):
    frames = make("plain", 5)
    saturated = tmp_path / "saturated.fits"
    with fits.open(frames[1][0]) as hdus:
        image = hdus[1].data
        for s in (5, 6, 20):
            where = columns(s, 5, 70)
            image[60:200, SCAN + where.start : SCAN + where.stop] = 65535
        image[SCAN + 100, SCAN + 300 : SCAN + 320] = 0
        hdus.writeto(saturated)
    # columns at an edge and in the middle, a region across an edge, and single pixels
    rng = np.random.default_rng(1)
    bad = np.zeros((2 * NY + 4 * SCAN, 4224), bool)
    for s, at in ((20, 2), (20, 40), (12, 74)):
        bad[:, SCAN + columns(s, at, at + 1).start] = True
    bad[150:170, SCAN + columns(15, -3, 5).start : SCAN + columns(15, -3, 5).stop] = True
    bad[rng.integers(0, len(bad), 500), rng.integers(0, 4224, 500)] = True
    y, x = np.nonzero(bad)
    table = write_badpix_table(
        tmp_path / "badpix.fits",
        {1: BadPixels(*(a.astype(np.int32) + 1 for a in (x, y)), np.full(len(x), 0x100, np.int32), np.ones(len(x)))},
    )
    frames = [frames[0], (saturated, "FLAT"), *frames[2:], (table, "BADPIX_TABLE")]
    made = compare(run, frames, samples=True)
    assert made["MASTER_FLAT"].header["ESO QC FLAT INPUT2 NSATURATED"] > 1000


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 11])
def test_a_simulated_night(run, night, n):
    truth, bias = night
    frames = [(e.path, "FLAT") for e in truth.select("FLAT")[:n]]
    made = compare(run, [*frames, bias], overscan="vpoly", nsum=32, order=5, samples=True)
    table, true = made["TRACE_TABLE"].content, truth.trace_table(1)
    y = np.arange(1.0, 4113.0)
    difference = np.array([np.subtract(table.edges(s, y), true.edges(s, y)) for s in range(1, N_SLICES + 1)])
    assert np.sqrt((difference**2).mean()) < 0.015
    # first and last rows of a slice with a bad pixel at its edge are further out, in the reference likewise
    assert (np.abs(difference) < 0.1).mean() > 0.999


@pytest.fixture(scope="module")
def night(tmp_path_factory, run):
    """Truth of a simulated night of one IFU, and its master bias."""
    from musedask.sim import NightTruth, simulate_night

    folder = tmp_path_factory.mktemp("night")
    simulate_night(
        folder, ifus=(1,), dithers=1, exptimes=(60,), seed=20181108, associations=False, truth=False, overwrite=True,
        calibrations={"BIAS": 5, "FLAT": 11, "ARC": 0, "SKYFLAT": 0, "ASTROMETRY": 0, "SKY": 0}, n_workers=2,
    )  # fmt: skip
    truth = NightTruth.open(folder)
    products = run("muse_bias", [(e.path, "BIAS") for e in truth.select("BIAS")], nifu=1)
    return truth, (products / "MASTER_BIAS-01.fits", "MASTER_BIAS")


# --- slices that are hard to trace -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("edgefrac", "lost"),
    [(0.5, {10, 22, 46}), (0.3, {10, 46}), *(pytest.param(f, None, marks=pytest.mark.slow) for f in (0.4, 0.2, 0.05))],
)
def test_vignetted_slices(run, make, edgefrac, lost):
    made = compare(run, make("shadow", 3), samples=True, edgefrac=edgefrac)
    found = set((np.flatnonzero(np.isnan(made["TRACE_TABLE"].content.width)) + 1).tolist())
    assert found == lost if lost is not None else len(found) < 4, found


def test_bad_columns_that_nobody_knows(run, make):
    made = compare(run, make("columns", 3), samples=True)
    assert set(made["TRACE_SAMPLES"].content.ccd_slice) == set(range(1, N_SLICES + 1))


@pytest.mark.parametrize(
    ("ifu", "year", "lost"),
    [
        (24, 2018, {20, 36}),
        *(pytest.param(*c, {20, 36, 37, 48}, marks=pytest.mark.slow) for c in ((24, 2013), (23, 2018))),
    ],
)
def test_edges_that_do_not_agree(run, make, ifu, year, lost):
    made = compare(run, make("jumps", 3, ifu, year), ifu, samples=True)
    numbers = made["TRACE_SAMPLES"].content.ccd_slice
    fewer = {s for s in range(1, N_SLICES + 1) if np.count_nonzero(numbers == s) == 11}
    assert fewer == lost


def test_a_slice_too_close_to_the_border(run, make):
    made = compare(run, make("lost", 3), samples=True)
    assert np.isnan(made["TRACE_TABLE"].content.centre[0]).all()


def test_a_missing_slice(run, make):
    made = compare(run, make("missing", 3), samples=True)
    assert list(made) == ["MASTER_FLAT"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"order": 0}, {"nsum": 0}, {"edgefrac": 1.0}, {"edgefrac": 0.0}])
def test_parameters_out_of_range(run, make, options):
    made = compare(run, make("plain", 3), **options)
    assert list(made) == ["MASTER_FLAT"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"nsum": 100}, {"nsum": 64}, {"order": 4, "nsum": 64}])
def test_few_trace_points(run, make, options):
    compare(run, make("plain", 3), **options)
