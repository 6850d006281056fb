"""Wavelength calibration: polynomial fits against exact answers, and the recipe on small frames against the truth."""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np
import pytest
from astropy.io import fits

from musedask.calib import wavecal
from musedask.calib.arclines import Measured
from musedask.calib.wavecal import SliceSolution, SolutionParams, fit_wavelengths
from musedask.errors import InputError, RecipeError
from musedask.instrument import N_SLICES, mode_from_name
from musedask.io.calibrations import (
    TraceTable,
    WavecalResiduals,
    WavecalTable,
    read_trace_table,
    read_wavecal_residuals,
    read_wavecal_table,
    wavecal_hdu,
    write_wavecal_residuals,
    write_wavecal_table,
)
from musedask.io.muse_image import MuseImage
from musedask.io.products import product_header
from musedask.io.references import write_line_catalog
from musedask.sim.statics import line_catalog

from .arcs import GAIN, LAMPS, NOISE, NX, RANGE, SHAPE, SLICES, Arcs, edges, light, task_of, wavelength

QC = "ESO QC WAVECAL"

# --- polynomial fits -------------------------------------------------------------------------------


def positions(x0=3000.0, n=4000, seed=1):
    rng = np.random.default_rng(seed)
    x, y = x0 + np.round(rng.uniform(-38, 38, n)), rng.uniform(280, 3900, n)
    return x, y


def truth(x, y, x0=3000.0):
    return 4400 + 1.25 * y + 2e-6 * y**2 - 1e-10 * y**3 + 0.02 * (x - x0) + 1e-4 * (x - x0) ** 2


def evaluate(coefficients, x, y):
    return WavecalTable(coefficients[None], np.zeros(1)).wavelength(1, x, y)


@pytest.mark.parametrize("x0", [60.0, 2000.0, 4050.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_powers_of_pixels_give_the_wavelengths(x0, weighted):
    """Also near the right border, where they are nearly degenerate: to 1e-4 Angstrom, in double precision."""
    x, y = positions(x0)
    wave = truth(x, y, x0)
    error = np.random.default_rng(3).uniform(0.01, 0.05, len(x)) if weighted else None
    coefficients, mse, iterations = fit_wavelengths(x, y, wave, error, 2, 6, 3.0)
    assert coefficients.shape == (3, 7)
    assert len(iterations) == 1
    inside = np.abs(evaluate(coefficients, x, y) - wave)
    # with weights it stops where the reference stops, which is not quite there far from the origin
    assert inside.max() < (1e-6 if not weighted else 2e-3)
    # the table says what the fit has found
    assert wave - evaluate(coefficients, x, y) == pytest.approx(iterations[0].residual, abs=1e-6)
    assert mse < 1e-6


def test_weighted_fit_far_from_rounding_is_least_squares():
    x, y = positions(30.0)
    rng = np.random.default_rng(4)
    error = rng.uniform(0.01, 0.05, len(x))
    wave = truth(x, y, 30.0) + error * rng.normal(size=len(x))
    coefficients, mse, _ = fit_wavelengths(x, y, wave, error, 1, 3, 50.0)
    basis = np.stack([(x - 30) ** i * (y / 2000) ** j for i in range(2) for j in range(4)], axis=1)
    exact = np.linalg.lstsq(basis / error[:, None], wave / error, rcond=None)[0]
    assert evaluate(coefficients, x, y) == pytest.approx(basis @ exact, abs=1e-4)
    residual = wave - basis @ exact
    assert mse == pytest.approx(np.sum(residual**2 / error) / np.sum(1 / error), rel=1e-5)


def test_outliers_are_removed_until_the_scatter_is_small():
    x, y = positions()
    rng = np.random.default_rng(5)
    wave = truth(x, y) + 0.01 * rng.normal(size=len(x))
    bad = rng.permutation(len(x))[:200]
    wave[bad] += rng.choice([-1, 1], 200) * rng.uniform(0.5, 3, 200)
    error = np.full(len(x), 0.02)
    coefficients, mse, iterations = fit_wavelengths(x, y, wave, error, 2, 6, 3.0)
    assert 2 <= len(iterations) <= 8
    assert not np.isin(bad, iterations[-1].rows).any()
    assert math.sqrt(mse) == pytest.approx(0.01, rel=0.1)
    assert np.abs(evaluate(coefficients, x, y) - truth(x, y)).max() < 0.02
    for before, after in itertools.pairwise(iterations):
        # all at or beyond the limit, at once
        kept = before.rows[np.abs(before.residual) < before.limit]
        assert np.array_equal(after.rows, kept)
        assert before.limit == pytest.approx(3 * before.rms)


def test_no_rejection_where_the_scatter_is_small_enough():
    x, y = positions()
    wave = truth(x, y) + 0.02 * np.random.default_rng(6).normal(size=len(x))
    _, mse, iterations = fit_wavelengths(x, y, wave, None, 2, 6, 2.0)
    assert len(iterations) == 1 and len(iterations[0].rows) == len(x)
    assert math.sqrt(mse) == pytest.approx(0.02, rel=0.05)


def test_scatter_that_does_not_fall_ends_the_fit():
    x, y = positions()
    wave = truth(x, y) + np.random.default_rng(7).uniform(-1, 1, len(x))
    _, _, iterations = fit_wavelengths(x, y, wave, None, 2, 6, 3.0)
    assert len(iterations) == 1


@pytest.mark.parametrize("n", [0, 5, 21])
def test_too_few_positions(n):
    x, y = positions(n=n) if n else (np.zeros(0), np.zeros(0))
    coefficients, mse, iterations = fit_wavelengths(x, y, truth(x, y), np.full(n, 0.1), 2, 6, 3.0)
    assert np.isnan(coefficients).all() and math.isnan(mse) and not iterations


def test_range_of_the_modes():
    wave = np.array([4599.0, 4650.0, 4720.0, 4760.0, 5760.0, 5800.0, 5900.0, 5990.0, 6020.0, 9340.0, 9360.0])
    expected = {
        "WFM-NOAO-N": [4760, 5760, 5800, 5900, 5990, 6020, 9340],
        "WFM-NOAO-E": [4650, 4720, 4760, 5760, 5800, 5900, 5990, 6020, 9340],
        "WFM-AO-N": [4720, 4760, 5760, 5800, 5990, 6020, 9340],
        "WFM-AO-E": [4650, 4720, 4760, 6020, 9340],
        # the lasers are left in, as in the reference
        "NFM-AO-N": [4720, 4760, 5760, 5800, 5900, 5990, 6020, 9340],
    }
    for name, inside in expected.items():
        assert wave[wavecal.useful(wave, mode_from_name(name))].tolist() == inside, name


def test_parameters():
    values = task_of([]).recipe.resolve({})
    assert SolutionParams.from_values(values) == SolutionParams()
    given = SolutionParams.from_values(values | {"linesigma": 4.0, "fitsigma": 2.0, "fitweighting": "cerr"})
    assert (given.linesigma, given.fitsigma, given.weighting) == (4.0, 2.0, "cerr")


# --- formats ---------------------------------------------------------------------------------------


def test_failed_slices_in_the_table(tmp_path):
    coefficients = np.random.default_rng(1).normal(size=(N_SLICES, 3, 7))
    coefficients[[4, 47]] = np.nan
    mse = np.where(np.isnan(coefficients[:, 0, 0]), np.nan, 1e-4)
    hdu = wavecal_hdu(WavecalTable(coefficients, mse))
    assert hdu.data["SliceNo"].tolist() == [0 if i in (4, 47) else i + 1 for i in range(N_SLICES)]
    assert hdu.header["TNULL1"] == 0
    assert "TNULL1" not in wavecal_hdu(WavecalTable(np.ones((N_SLICES, 3, 7)), np.ones(N_SLICES))).header
    header = product_header("WAVECAL_TABLE", ifu=3)
    path = write_wavecal_table(tmp_path / "w.fits", WavecalTable(coefficients, mse), header=header)
    table = read_wavecal_table(path, ifu=3)
    assert np.array_equal(table.coefficients, coefficients, equal_nan=True)
    assert np.array_equal(table.mse, mse, equal_nan=True)


def test_residuals_as_a_file(tmp_path):
    n = 20
    rng = np.random.default_rng(2)
    given = WavecalResiduals(
        np.full(n, 48, np.uint8), np.arange(n, dtype=np.int32), np.arange(n, dtype=np.int32) + 4000,
        rng.uniform(1, 4112, n).astype(np.float32).astype(float), rng.uniform(4700, 9300, n).astype("f4").astype(float),
        rng.normal(size=n), np.full(n, 0.1),
    )  # fmt: skip
    path = write_wavecal_residuals(tmp_path / "r.fits", given, header=product_header("WAVECAL_RESIDUALS", ifu=3))
    with fits.open(path) as hdus:
        columns = hdus[1].columns
        assert columns.names == ["slice", "iteration", "x", "y", "lambda", "residual", "rejlimit"]
        assert [f[-1] for f in columns.formats] == ["B", "J", "J", "E", "E", "D", "D"]
        assert columns.units == ["", "", "pix", "pix", "Angstrom", "Angstrom", "Angstrom"]
    found = read_wavecal_residuals(path, ifu=3)
    for name in ("ccd_slice", "iteration", "x", "y", "wave", "residual", "limit"):
        assert np.array_equal(getattr(found, name), getattr(given, name)), name
    assert found.ccd_slice.dtype == np.uint8


def test_residuals_of_iterations():
    m = Measured(*(np.arange(6.0) for _ in range(4)), np.zeros(0), np.zeros(0))
    its = [
        wavecal.Iteration(np.arange(4), np.array([0.1, -0.2, 5.0, 0.3]), 1.0, 3.0),
        wavecal.Iteration(np.array([0, 1, 3]), np.array([0.1, -0.1, 0.2]), 0.1, 0.3),
    ]
    used = np.array([True, False, True, True, True, False])
    empty = SliceSolution()
    table = wavecal.residual_table([empty, SliceSolution(measured=m, used=used, iterations=its)])
    assert table.ccd_slice.tolist() == [2] * 7
    assert table.iteration.tolist() == [1, 1, 1, 1, 2, 2, 2]
    assert table.x.tolist() == [0, 2, 3, 4, 0, 2, 4]
    assert table.limit.tolist() == [3.0] * 4 + [0.3] * 3
    assert len(wavecal.residual_table([empty]).x) == 0


# --- images ----------------------------------------------------------------------------------------


def whole_field():
    """Traces and solutions of 48 straight slices."""
    traces = np.zeros((3, N_SLICES, 2))
    for k in range(N_SLICES):
        middle = 50 + 83.0 * k
        traces[:, k, 0] = middle, middle - 38.2, middle + 38.2
        traces[:, k, 1] = 1e-3
    waves = np.zeros((N_SLICES, 2, 3))
    waves[:, 0] = 4700.0, 1.25, 1e-6
    waves[:, 1, 0] = 0.01
    nothing = np.zeros(N_SLICES)
    return TraceTable(*traces, nothing, np.zeros((N_SLICES, 3))), WavecalTable(waves, nothing)


def test_wave_map():
    traces, table = whole_field()
    table.coefficients[7] = np.nan
    image = wavecal.wave_map(traces, table, (40, 4096))
    assert image.dtype == np.float32
    for k in (0, 20, 47):
        for y in (1, 40):
            left, right = traces.edges(k + 1, y)
            x = np.arange(math.ceil(left), math.floor(right) + 1)
            assert image[y - 1, x - 1] == pytest.approx(table.wavelength(k + 1, x, y), rel=1e-7)
            assert image[y - 1, x[-1]] == 0 and image[y - 1, x[0] - 2] == 0
    left, right = traces.edges(8, 20)
    assert not image[19, math.ceil(left) : math.floor(right)].any()


def test_resampled_image_has_straight_lines():
    traces, table = whole_field()
    shape = 300, 4096
    wave = wavecal.wave_map(traces, table, shape)
    # a line of one wavelength, which is tilted along the slices
    data = np.where(wave > 0, 10 + 1e3 * np.exp(-0.5 * ((wave - 4850) / 2) ** 2), 0).astype(np.float32)
    dq = np.zeros(shape, np.int32)
    dq[100:105, 100:120] = 1
    data[100:105, 100:120] = 1e6
    image = MuseImage(data, dq, None, "count")
    out, cards = wavecal.resampled_image(image, traces, table)
    header = {k: v for k, v, _ in cards}
    assert header["CD2_2"] == 1.25 and header["CTYPE2"] == "AWAV" and header["BUNIT"] == "count"
    assert header["CRVAL2"] == pytest.approx(wave[wave > 0].min())
    row = round((4850 - header["CRVAL2"]) / 1.25)
    lit = out[150] != 0
    assert 48 * 75 <= lit.sum() <= 48 * 77
    # of good pixels only, as far as a pixel in the middle of bad ones has any
    assert out.max() < 1100
    columns = np.flatnonzero(out[row] != 0)
    # samples are 1.25 Angstrom apart, so that its top is between two of them
    assert out[row, columns] == pytest.approx(1000, rel=0.1)
    assert np.abs(out[row - 4 : row + 5, columns].argmax(axis=0) - 4).max() == 0


# --- recipe ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arcs(tmp_path_factory):
    return Arcs.make(tmp_path_factory.mktemp("arcs"))


@pytest.fixture(scope="module")
def made(arcs):
    frames = arcs.arcs(5, 3, 4) + arcs.calibrations
    task = task_of(frames, residuals=True, saveimages=True, wavemap=True)
    return [(m, m.header.copy()) for m in wavecal.muse_wavecal(task)]


def content(made, tag):
    return next(m.content for m, _ in made if m.tag == tag)


def test_products_and_the_frames_they_are_of(made, arcs):
    assert [m.tag for m, _ in made] == [*["ARC_RED_LAMP"] * 3, "WAVECAL_TABLE", "WAVECAL_RESIDUALS", "WAVE_MAP"]
    assert [m.raws[0].path.name for m, _ in made[:3]] == [p.name for p, _ in arcs.arcs(5, 3, 4)]
    assert made[3][0].raws is None


def test_wavelengths_are_the_true_ones(made):
    table = content(made, "WAVECAL_TABLE")
    assert np.flatnonzero(np.isfinite(table.mse)).tolist() == [s - 1 for s in SLICES]
    y = np.arange(1, 4113, 8.0)
    for ccd_slice in SLICES:
        low, high = edges(ccd_slice, y)
        x = low + np.linspace(0, 1, 9)[:, None] * (high - low)
        true = wavelength(ccd_slice, x, y)
        inside = (true > RANGE[0]) & (true < RANGE[1])
        error = table.wavelength(ccd_slice, x, y) - true
        assert np.sqrt(np.mean(error[inside] ** 2)) < 0.01
        assert np.abs(error).max() < 0.1


def test_residuals_belong_to_the_solution(made):
    table, residuals = content(made, "WAVECAL_TABLE"), content(made, "WAVECAL_RESIDUALS")
    assert set(residuals.ccd_slice.tolist()) == set(SLICES)
    for ccd_slice in SLICES:
        own = residuals.ccd_slice == ccd_slice
        last = own & (residuals.iteration == residuals.iteration[own].max())
        assert last.sum() > 4500
        fit = table.wavelength(ccd_slice, residuals.x[last], residuals.y[last])
        assert residuals.wave[last] - fit == pytest.approx(residuals.residual[last], abs=1e-6)
        assert np.all((residuals.wave[last] >= RANGE[0]) & (residuals.wave[last] <= RANGE[1]))


def test_quality_control(made):
    header = next(h for m, h in made if m.tag == "WAVECAL_TABLE")
    table = content(made, "WAVECAL_TABLE")
    for s in SLICES:
        assert 220 <= header[f"{QC} SLICE{s} LINES NID"] <= header[f"{QC} SLICE{s} LINES NDET"] <= 320
        assert header[f"{QC} SLICE{s} FIT NLINES"] == 65
        assert header[f"{QC} SLICE{s} FIT RMS"] == pytest.approx(math.sqrt(table.mse[s - 1]), rel=1e-6)
        assert header[f"{QC} SLICE{s} WLPOS"] == 2056.5
        low, high = edges(s, 2056.5)
        assert header[f"{QC} SLICE{s} WLEN"] == pytest.approx(wavelength(s, (low + high) / 2, 2056.5), abs=0.02)
        for row, name in ((1, "BOTTOM"), (4112, "TOP")):
            low, high = edges(s, row)
            expected = wavelength(s, low, row) - wavelength(s, high, row)
            assert header[f"{QC} SLICE{s} DWLEN {name}"] == pytest.approx(expected, abs=0.1)
        # the pixels of the toy are not wider than its lines
        assert header[f"{QC} SLICE{s} LINES FWHM MEAN"] == pytest.approx(0.95 * 2.3548 * 1.255, rel=0.02)
        assert header[f"{QC} SLICE{s} RESOL"] == pytest.approx(2400, rel=0.03)
    assert [k for k in header if "NSATURATED" in k] == [f"{QC} NSATURATED LAMP{n}" for n in (5, 3, 4)]
    assert not [k for k in header if f"{QC} SLICE2 " in k]
    images = [h for m, h in made if m.tag == "ARC_RED_LAMP"]
    assert all(h[f"{QC} INPUT1 NSATURATED"] == 0 and h[f"{QC} NSATURATED"] == 0 for h in images)
    assert not [k for k in images[0] if "SLICE" in k]
    residuals = next(h for m, h in made if m.tag == "WAVECAL_RESIDUALS")
    assert not [k for k in residuals if "QC" in k]


def test_images_of_the_lamps(made):
    for (m, _), lamp in zip(made[:3], (5, 3, 4), strict=True):
        noise = np.sqrt(light(lamp) + (NOISE * GAIN) ** 2)
        assert np.sqrt(np.mean(((m.content.data - light(lamp)) / noise) ** 2)) == pytest.approx(1, abs=0.1)
        assert m.content.data.shape == SHAPE


def test_wave_map_of_the_recipe(made):
    image = content(made, "WAVE_MAP")
    assert image.shape == SHAPE
    low, high = edges(48, 2000)
    x = np.arange(math.ceil(low), math.floor(high) + 1)
    assert image[1999, x - 1] == pytest.approx(wavelength(48, x, 2000), abs=0.02)


def test_threads_do_not_matter(made, arcs):
    task = task_of(arcs.arcs(5, 3, 4) + arcs.calibrations, n_threads=2)
    (again,) = wavecal.muse_wavecal(task)
    assert np.array_equal(
        again.content.coefficients, content(made, "WAVECAL_TABLE").coefficients, equal_nan=True
    )


@pytest.mark.parametrize(
    "lamps, options, tags",
    [
        ((5, 3, 4), {"lampwise": False}, ["ARC_RED_LAMP"] * 3 + ["ARC_RED"]),
        ((5, 3, 4), {"resample": True}, ["ARC_RED_LAMP"] * 3 + ["ARC_RED"]),
        ((3,), {}, ["ARC_RED_LAMP"]),
        ((3,), {"resample": True}, ["ARC_RED"]),
    ],
)
def test_images_that_are_saved(arcs, lamps, options, tags):
    """As in the reference: one image of one lamp is called by what it is used for."""
    task = task_of(arcs.arcs(*lamps) + arcs.calibrations, saveimages=True, **options)
    made = [(m.tag, m.header.copy()) for m in wavecal.muse_wavecal(task)]
    assert [tag for tag, _ in made] == [*tags, "WAVECAL_TABLE"]
    table = made[-1][1]
    numbers = [k.rsplit("LAMP")[1] for k in table if k.startswith(f"{QC} NSATURATED")]
    assert numbers == (["99"] if options else []) + [str(n) for n in lamps]
    inputs = [k for k in made[0][1] if k.startswith(f"{QC} INPUT")]
    assert bool(inputs) == (len(lamps) > 1)


def test_sum_of_lamps_has_a_solution_as_well(arcs):
    task = task_of(arcs.arcs(5, 3, 4) + arcs.calibrations, lampwise=False, yorder=4)
    (made,) = wavecal.muse_wavecal(task)
    y = np.arange(300, 3800, 50.0)
    for ccd_slice in SLICES:
        low, high = edges(ccd_slice, y)
        x = (low + high) / 2
        assert np.abs(made.content.wavelength(ccd_slice, x, y) - wavelength(ccd_slice, x, y)).max() < 0.3


def test_lamps_are_grouped_by_what_was_on(arcs):
    frames = task_of(arcs.arcs(3, 5, (3, 1), 4, (5, 1))).tagged("ARC")
    groups = wavecal.group_by_lamps(frames)
    assert [(g.number, g.lamp, len(g.frames)) for g in groups] == [(3, "Ne", 2), (5, "HgCd", 2), (4, "Xe", 1)]
    lines = line_catalog()
    catalogue = wavecal.catalogue_of(lines, [g.lamp for g in groups])
    for k, g in enumerate(groups):
        assert set(catalogue.image[catalogue.lamp == g.lamp].tolist()) == {k}
    assert set(wavecal.catalogue_of(lines, ["Ne"]).image[lines.lamp == "Xe"].tolist()) == {-1}
    assert set(wavecal.catalogue_of(lines, None).image.tolist()) == {0}
    with pytest.raises(InputError, match="no ARC found"):
        wavecal.group_by_lamps([])


def test_one_lamp_missing(arcs):
    (made,) = wavecal.muse_wavecal(task_of(arcs.arcs(5, 3) + arcs.calibrations))
    y = np.arange(300, 3900, 50.0)
    low, _high = edges(1, y)
    assert np.abs(made.content.wavelength(1, low + 5, y) - wavelength(1, low + 5, y)).max() < 0.1


def test_saturation_is_counted(arcs):
    def spoil(adu):
        adu[100:110, 20:30] = 70000

    frames = arcs.arcs(5) + arcs.arcs(3, change=spoil, name="s") + arcs.arcs(4)
    made = list(wavecal.muse_wavecal(task_of(frames + arcs.calibrations, saveimages=True)))
    assert made[1].header[f"{QC} INPUT1 NSATURATED"] == 100
    assert made[1].header[f"{QC} NSATURATED"] == 100
    assert made[-1].header[f"{QC} NSATURATED LAMP3"] == 100
    assert made[-1].header[f"{QC} NSATURATED LAMP5"] == 0


def test_slices_without_trace_are_told_once(arcs, caplog):
    with caplog.at_level(logging.WARNING, "musedask"):
        list(wavecal.muse_wavecal(task_of(arcs.arcs(5, 3, 4) + arcs.calibrations, resample=True)))
    # the engine names the IFU
    assert "there is no trace of 46 slices: 2-47" in caplog.text and "IFU 1: there" not in caplog.text
    # the others cannot be laid beside each other then
    assert "46 slices have no wavelength solution, there is no ARC_RESAMPLED" in caplog.text


def test_dark_arcs_have_no_solution(arcs):
    def dark(adu):
        adu[:] = 0

    frames = arcs.arcs(5, 3, 4, change=dark, name="d") + arcs.calibrations
    with pytest.raises(RecipeError, match="IFU 1: no wavelength solution in any slice"):
        list(wavecal.muse_wavecal(task_of(frames)))


def test_slice_that_is_dark_fails_alone(arcs, caplog):
    def half(adu):
        adu[:, :NX] = 0

    frames = arcs.arcs(5, 3, 4, change=half, name="h") + arcs.calibrations
    with caplog.at_level(logging.WARNING, "musedask"):
        (made,) = wavecal.muse_wavecal(task_of(frames))
    assert np.flatnonzero(np.isfinite(made.content.mse)).tolist() == [47]
    assert "slice 1 of IFU 1: 0 lines identified, expected at least 7" in caplog.text
    assert made.header[f"{QC} SLICE1 LINES NID"] == 0
    assert f"{QC} SLICE1 FIT RMS" not in made.header


@pytest.mark.parametrize("tag", ["TRACE_TABLE", "LINE_CATALOG"])
def test_missing_table(arcs, tag):
    frames = [f for f in arcs.arcs(3) + arcs.calibrations if f[1] != tag]
    with pytest.raises(InputError, match=f"no {tag} found"):
        list(wavecal.muse_wavecal(task_of(frames)))


def test_catalogue_of_a_wrong_version(arcs, tmp_path):
    path = write_line_catalog(tmp_path / "lines.fits", line_catalog())
    fits.setval(path, "VERSION", value=2)
    frames = arcs.arcs(3) + arcs.calibrations[:2] + [(path, "LINE_CATALOG")]
    with pytest.raises(InputError, match="VERSION = 2 found, expected 3"):
        list(wavecal.muse_wavecal(task_of(frames)))


def test_toy_is_what_it_says(arcs):
    traces = read_trace_table(arcs.calibrations[1][0], ifu=1)
    for s in SLICES:
        assert traces.edges(s, 2000.0) == pytest.approx(edges(s, 2000.0))
    assert set(LAMPS.values()) == set(line_catalog().lamp.tolist())
    assert light(3).max() / GAIN < 60000
