"""Master flats: pixels that are flagged, statistics, quality control, and what is given back when tracing fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from musedask.calib import flat, tracing
from musedask.calib.basic import load_series
from musedask.calib.combination import CombineParams
from musedask.calib.statistics import image_statistics, median_deviation
from musedask.calib.task import Task
from musedask.errors import RecipeError
from musedask.instrument import N_SLICES
from musedask.io.calibrations import TraceTable, read_trace_table, write_trace_table
from musedask.io.headers import set_card
from musedask.io.muse_image import MuseImage, write_muse_image
from musedask.io.products import channel
from musedask.io.sof import Frame
from musedask.recipes import get_recipe

from .test_tracing import lit, true_edges

SCAN, NX = 32, 2048
#: rows of a quadrant
NY = 64
GAIN, BIAS, NOISE = 1.2, 1000.0, 2.5


# --- small raw frames ------------------------------------------------------------------------------


def raw_header(ifu=1, ny=NY, number=0, **cards):
    """Primary header and extension header in one, of a CCD with few rows."""
    header = fits.Header()
    values = {
        "INSTRUME": "MUSE", "OBJECT": "FLAT,LAMP", "EXPTIME": 0.35, "MJD-OBS": 58430.9, "RA": 10.0, "DEC": -20.0,
        "EQUINOX": 2000.0, "LST": 1000.0, "DATE-OBS": f"2018-11-08T21:36:{number:02d}.000",
        "ESO INS MODE": "WFM-NOAO-N", "ESO DET BINX": 1, "ESO DET BINY": 1, "ESO DET READ CURID": 1,
        "ESO DET READ CURNAME": "SCI1.0", "ESO INS DROT MODE": "STAT", "ESO INS DROT POSANG": 0.0,
        "EXTNAME": channel(ifu), "ESO DET CHIP NAME": f"CCD-{ifu}", "ESO DET CHIP ID": f"ID-{ifu}",
        "ESO DET CHIP LIVE": True,
    }  # fmt: skip
    for n, (x, y) in enumerate(((1, 1), (4096, 1), (4096, 4112), (1, 4112)), 1):
        values |= {f"ESO DET OUT{n} {k}": v for k, v in (("X", x), ("Y", y), ("NX", NX), ("NY", ny))}
        values |= {f"ESO DET OUT{n} {k}": SCAN for k in ("PRSCX", "PRSCY", "OVSCX", "OVSCY")}
        values |= {f"ESO DET OUT{n} GAIN": GAIN, f"ESO DET OUT{n} RON": 3.0}
    for key, value in (values | cards).items():
        set_card(header, key, value)
    return header


def split(header):
    """Primary and extension header."""
    own = [k for k in header if k == "EXTNAME" or k.startswith(("ESO DET CHIP", "ESO DET OUT"))]
    primary, extension = header.copy(), fits.Header()
    for key in own:
        set_card(extension, key, primary.pop(key))
    return primary, extension


def write_frame(path, counts, seed, *, ifu=1, saturated=None, **cards):
    """Write a raw frame from expected counts on the trimmed image, shape (2 ny, 4096)."""
    rng = np.random.default_rng(seed)
    ny = len(counts) // 2
    image = rng.normal(BIAS, NOISE, (2 * ny + 4 * SCAN, 2 * NX + 4 * SCAN))
    light = rng.poisson(counts) / GAIN
    for rows, source in ((slice(SCAN, SCAN + ny), slice(ny)), (slice(-SCAN - ny, -SCAN), slice(ny, None))):
        image[rows, SCAN : SCAN + NX] += light[source, :NX]
        image[rows, -SCAN - NX : -SCAN] += light[source, NX:]
    primary, extension = split(raw_header(ifu, ny, seed % 60, **cards))
    data = np.clip(np.round(image), 0, 65535).astype(np.uint16)
    fits.HDUList([fits.PrimaryHDU(header=primary), fits.ImageHDU(data, extension)]).writeto(path)
    return path


def write_bias(path, *, ifu=1, ny=NY):
    """A master bias that is what it should be."""
    header = raw_header(ifu, ny)
    set_card(header, "ESO PRO CATG", "MASTER_BIAS")
    for n in range(1, 5):
        set_card(header, f"ESO QC BIAS MASTER{n} MEAN", 0.0)
        set_card(header, f"ESO QC BIAS MASTER{n} RON", NOISE * GAIN)
        set_card(header, f"ESO DRS MUSE OVSC{n} MEAN", BIAS)
        set_card(header, f"ESO DRS MUSE OVSC{n} STDEV", NOISE)
    rng = np.random.default_rng(ifu)
    shape = 2 * ny, 2 * NX
    data = rng.normal(0, 1, shape).astype(np.float32)
    dq = np.zeros(shape, np.int32)
    dq[:, 1020] = 0x2000
    image = MuseImage(data, dq, np.full(shape, NOISE**2 / 5, np.float32), "adu", header)
    return write_muse_image(path, image)


def task_of(frames, ifu=1, **values):
    recipe = get_recipe("muse_flat")
    return Task(recipe, ifu, tuple(Frame(Path(p), t) for p, t in frames), recipe.resolve(values))


SMALL = {"nsum": 8, "order": 1}


@pytest.fixture(scope="module")
def bias(tmp_path_factory):
    return write_bias(tmp_path_factory.mktemp("bias") / "MASTER_BIAS-01.fits")


@pytest.fixture(scope="module")
def frames(tmp_path_factory, bias):
    folder = tmp_path_factory.mktemp("flats")
    light = lit(ny=2 * NY)
    return [*((write_frame(folder / f"{i}.fits", light, i), "FLAT") for i in range(5)), (bias, "MASTER_BIAS")]


@pytest.fixture(scope="module")
def made(frames):
    return {m.tag: m for m in flat.muse_flat(task_of(frames, samples=True, **SMALL))}


# --- the recipe ------------------------------------------------------------------------------------


def test_products_come_in_the_order_of_the_reference(made):
    assert list(made) == ["TRACE_TABLE", "TRACE_SAMPLES", "MASTER_FLAT"]


def test_the_master_flat_is_relative_to_its_mean(made, frames):
    image, header = made["MASTER_FLAT"].content, made["MASTER_FLAT"].header
    assert image.data.mean(dtype=np.float64) == pytest.approx(1, rel=1e-6)
    assert image.unit == "count"
    *_, plain = flat.muse_flat(task_of(frames, normalize=False, **SMALL))
    mean = np.float32(plain.content.data.mean(dtype=np.float64))
    np.testing.assert_allclose(image.data, plain.content.data / mean, rtol=1e-6)
    np.testing.assert_allclose(image.stat, plain.content.stat / mean**2, rtol=1e-6)
    np.testing.assert_array_equal(image.dq, plain.content.dq)
    assert header["ESO QC FLAT MASTER MEAN"] == pytest.approx(mean, rel=1e-6)
    assert header["ESO QC FLAT MASTER INTFLUX"] == pytest.approx(mean * image.data.size, rel=1e-6)


def test_light_and_noise_are_those_of_the_lamp(frames):
    *_, made = flat.muse_flat(task_of(frames, normalize=False, combine="average", **SMALL))
    light = lit(ny=2 * NY)
    bright = (light > 10000) & (made.content.dq == 0)
    residual = (made.content.data - light)[bright] / np.sqrt(made.content.stat[bright])
    assert abs(residual.mean()) < 0.02
    assert residual.std() == pytest.approx(1, abs=0.02)


def test_traces_are_true(made):
    y = np.arange(1.0, 2 * NY + 1)
    for s in range(1, N_SLICES + 1):
        np.testing.assert_allclose(made["TRACE_TABLE"].content.edges(s, y), true_edges(y)[s - 1], atol=0.03)


def test_quality_control_is_where_it_belongs(made):
    headers = {tag: m.header for tag, m in made.items()}
    assert not [k for k in headers["TRACE_SAMPLES"] if "QC" in k]
    assert not [k for k in headers["TRACE_TABLE"] if "QC FLAT" in k]
    assert not [k for k in headers["MASTER_FLAT"] if "QC TRACE" in k]
    inputs = [k for k in headers["MASTER_FLAT"] if k.startswith("ESO QC FLAT INPUT")]
    assert len(inputs) == 5 * 6
    assert all(m.header["DATE-OBS"] == "2018-11-08T21:36:00.000" for m in made.values())


def test_without_tracing_no_pixel_is_searched(frames):
    (made,) = flat.muse_flat(task_of(frames, trace=False, samples=True))
    assert made.tag == "MASTER_FLAT"
    assert set(np.unique(made.content.dq)) == {0, 0x2000}
    assert not [k for k in made.header if "SLICE" in k]


def test_one_lost_slice_costs_that_slice(tmp_path, bias, caplog):
    light = lit(first=10.3, ny=2 * NY)
    frames = [(write_frame(tmp_path / f"{i}.fits", light, i), "FLAT") for i in range(3)]
    found = {m.tag: m for m in flat.muse_flat(task_of([*frames, (bias, "MASTER_BIAS")], **SMALL))}
    assert list(found) == ["TRACE_TABLE", "MASTER_FLAT"]
    table = found["TRACE_TABLE"].content
    assert np.isnan(table.centre[0]).all()
    assert np.isfinite(table.centre[1:]).all()
    assert "slice 1: its trace has 0 points" in caplog.text
    assert "ESO QC TRACE SLICE1 MAXSLOPE" not in found["TRACE_TABLE"].header
    assert "ESO QC FLAT MASTER SLICE1 MEAN" not in found["MASTER_FLAT"].header
    assert "ESO QC FLAT MASTER SLICE2 MEAN" in found["MASTER_FLAT"].header


def test_a_failed_search_leaves_a_master_flat(tmp_path, bias):
    dark = lit(ny=2 * NY)
    left, right = true_edges([NY])[20, :, 0]
    dark[:, int(left) - 6 : int(right) + 6] = 0
    frames = [(write_frame(tmp_path / f"{i}.fits", dark, i), "FLAT") for i in range(3)]
    products = flat.muse_flat(task_of([*frames, (bias, "MASTER_BIAS")], **SMALL))
    made = next(products)
    assert made.tag == "MASTER_FLAT"
    assert set(np.unique(made.content.dq)) == {0, 0x2000}
    with pytest.raises(RecipeError, match="slices: "):
        next(products)


def test_the_row_of_a_lost_slice_is_undefined(tmp_path):
    table = straight()
    for values in (table.centre, table.left, table.right, table.mse, table.width):
        values[10] = np.nan
    path = write_trace_table(tmp_path / "TRACE_TABLE-01.fits", table, header=raw_header())
    with fits.open(path) as hdus:
        assert hdus[1].header["TNULL1"] == 0
        assert hdus[1].data["SliceNo"].tolist() == [*range(1, 11), 0, *range(12, 49)]
    found = read_trace_table(path)
    for name in ("centre", "left", "right", "width", "mse"):
        np.testing.assert_allclose(getattr(found, name), getattr(table, name), rtol=1e-6)


@pytest.mark.parametrize(
    ("ifu", "date", "expected"),
    [
        (24, "2018-11-08T21:36:00", 37), (24, "2014-01-01T00:00:00", 37), (24, "2013-12-31T23:59:59", None),
        (23, "2018-11-08T21:36:00", None), (24, "", None), (None, "2018-11-08T21:36:00", None),
    ],
)  # fmt: skip
def test_vignetted_slices(ifu, date, expected):
    assert flat._fallback(ifu, fits.Header({"DATE-OBS": date})) == expected


# --- statistics ------------------------------------------------------------------------------------


def tallied(series):
    """Statistics of the frames of a series, taken while they are combined."""
    tallies = [flat.Tally(series, k) for k in range(len(series.frames))]
    series.combine(CombineParams(), seen=lambda rows: [t.add(r) for t, r in zip(tallies, rows, strict=True)])
    return [t.statistics() for t in tallies]


@pytest.mark.parametrize("n_threads", [1, 3])
def test_statistics_of_a_frame_are_those_of_its_image(frames, n_threads):
    task = replace(task_of(frames), n_threads=n_threads)
    series = load_series(task, task.tagged("FLAT"))
    for k, found in enumerate(tallied(series)):
        expected = image_statistics(series.image(k).data)
        assert (found.median, found.min, found.max) == (expected.median, expected.min, expected.max)
        assert found.mean == pytest.approx(expected.mean, rel=1e-12)
        assert found.stdev == pytest.approx(expected.stdev, rel=1e-10)


def test_a_median_that_is_elsewhere_is_found_all_the_same(tmp_path, bias, monkeypatch):
    # rows of the sample are much brighter than all the others
    monkeypatch.setattr(flat, "_BANDS", 4)
    light = np.full((2 * NY, 2 * NX), 100.0)
    light[np.linspace(0, 2 * NY - flat._ROWS, 4).astype(int)[:, None] + np.arange(flat._ROWS)] = 20000
    frames = [(write_frame(tmp_path / "0.fits", light, 1), "FLAT"), (bias, "MASTER_BIAS")]
    task = task_of(frames)
    series = load_series(task, task.tagged("FLAT"))
    assert tallied(series)[0].median == image_statistics(series.image(0).data).median


@given(
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32)),
    st.integers(0, 5),
)
def test_the_middle_of_values(values, spare):
    n = len(values)
    padded = np.concatenate([values, np.full(spare, np.nan, np.float32)])
    assert tracing.mean_of_ranks(padded, n, (n - 1) // 2, n // 2) == np.median(values.astype(np.float64))


# --- bad pixels ------------------------------------------------------------------------------------


def expected_flags(data, left, right, mean, low, high):
    """The rule for one slice, written plainly."""
    flags = np.zeros(data.shape, np.int32)
    for j, row in enumerate(data):
        first, last = int(np.ceil(left[j])) - 1, int(np.floor(right[j])) - 1
        median, deviation = median_deviation(row[first : last + 1])
        lower, upper = median - low * deviation, median + high * deviation
        lower = lower if lower > 0 else 1e-4
        begin = [i for i in range(first, first + 11) if row[i] > lower]
        end = [i for i in range(last, last - 9, -1) if row[i] > lower]
        for i in range(begin[0] if begin else first, (end[0] if end else last) + 1):
            if row[i] < lower:
                flags[j, i] |= 0x200 | (0x40 if row[i] < 0.2 * mean else 0)
            elif row[i] > upper:
                flags[j, i] |= 0x100
    flags[data <= 0] |= 0x4000
    return flags


def one_slice(left=10.4, right=86.7):
    """Traces of which only the first slice is there."""
    centre, edges = np.full((N_SLICES, 1), np.nan), np.full((2, N_SLICES, 1), np.nan)
    centre[0], edges[0, 0], edges[1, 0] = 0.5 * (left + right), left, right
    return TraceTable(centre, *edges, np.full(N_SLICES, np.nan), np.full((N_SLICES, 3), np.nan))


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 6), st.floats(0.5, 6), st.floats(8.0, 14.9), st.floats(80.0, 95.9))
def test_pixels_are_flagged_by_the_rule(seed, low, high, left, right):
    rng = np.random.default_rng(seed)
    data = rng.normal(100, 5, (12, 120)).astype(np.float32)
    # soft edges, and defects of all kinds
    data[:, :14] *= np.linspace(0, 1, 14, dtype=np.float32)
    data[:, 84:] *= np.linspace(1, 0, 36, dtype=np.float32)
    where = rng.integers(0, 12, 60), rng.integers(0, 120, 60)
    data[where] *= rng.choice([-0.5, 0, 0.1, 0.5, 0.9, 1.1, 2], 60).astype(np.float32)
    dq = np.zeros(data.shape, np.int32)
    counts = flat.flag_pixels(data, dq, one_slice(left, right), 60.0, low, high)
    expected = expected_flags(data, np.full(12, left), np.full(12, right), 60.0, low, high)
    # single precision may decide otherwise about a pixel on the limit
    assert (dq != expected).sum() <= 1
    if np.array_equal(dq, expected):
        bits = (0x200, 0x40, 0x100, 0x4000)
        assert counts == tuple(int(np.count_nonzero(expected & b)) for b in bits)


def test_flags_are_added_to_those_there_are():
    data = np.full((3, 120), 100, np.float32)
    data[1, 50] = 1
    dq = np.zeros(data.shape, np.int32)
    dq[1, 50] = dq[2, 60] = 0x2000
    flat.flag_pixels(data, dq, one_slice(), 100.0, 5, 5)
    assert dq[1, 50] == 0x2000 | 0x200 | 0x40
    assert dq[2, 60] == 0x2000
    assert np.count_nonzero(dq) == 2


@pytest.mark.parametrize(("left", "right"), [(-3.0, 70.0), (60.0, 121.5), (70.0, 60.0), (np.nan, np.nan)])
def test_slices_that_are_not_on_the_image_are_left_out(left, right):
    data = np.full((3, 120), 100, np.float32)
    data[:, 65] = 1
    dq = np.zeros(data.shape, np.int32)
    assert flat.flag_pixels(data, dq, one_slice(left, right), 100.0, 5, 5) == (0, 0, 0, 0)
    assert not dq.any()


# --- quality control of traces ---------------------------------------------------------------------


def straight(slope=0.001, gap=7.0):
    """Traces with known numbers."""
    number = np.arange(N_SLICES)
    left = np.stack([60 + (76 + gap) * number, np.full(N_SLICES, slope), np.zeros(N_SLICES)], axis=1)
    right = left + np.array([76.0, 0, 0])
    return TraceTable(0.5 * (left + right), left, right, 76 + 0.01 * number, np.zeros((N_SLICES, 3)))


def quality(table):
    header = fits.Header()
    flat.put_trace_quality(header, table)
    return {k.removeprefix("ESO QC TRACE "): v for k, v in header.items()}


def test_quality_of_straight_traces():
    found = quality(straight())
    assert found["SLICE_L XPOS"] == pytest.approx(60 + 38 + 2.056, rel=1e-6)
    assert found["SLICE_R XPOS"] == pytest.approx(60 + 47 * 83 + 38 + 2.056, rel=1e-6)
    assert found["SLICE_L TILT"] == pytest.approx(np.degrees(np.arctan(0.001)), rel=1e-6)
    assert all(found[f"SLICE{s} MAXSLOPE"] == pytest.approx(0.001) for s in range(1, 49))
    assert found["SLICE10 WIDTH"] == pytest.approx(76.09)
    assert [found[f"GAPS {k}"] for k in ("MEDIAN", "MEAN", "MIN", "MAX")] == [pytest.approx(7)] * 4
    assert found["GAPS STDEV"] == pytest.approx(0, abs=1e-9)
    assert found["WIDTHS MEDIAN"] == found["WIDTHS MEAN"] == pytest.approx(76.235)
    assert found["WIDTHS STDEV"] == pytest.approx(np.std(0.01 * np.arange(48), ddof=1), rel=1e-6)


def test_the_largest_slope_has_its_sign():
    table = straight()
    table.right[4, 2] = -1e-6
    assert quality(table)["SLICE5 MAXSLOPE"] == pytest.approx(0.001 - 2e-6 * 4112, rel=1e-6)


def test_quality_without_a_slice():
    table = straight()
    for values in (table.centre, table.left, table.right):
        values[10] = np.nan
    table.width[10] = np.nan
    found = quality(table)
    assert "SLICE11 MAXSLOPE" not in found
    # the gap is that between its neighbours
    assert found["GAPS MAX"] == pytest.approx(7 + 83, rel=1e-6)
    assert found["GAPS MEAN"] == pytest.approx((45 * 7 + 90) / 46, rel=1e-6)


def test_a_trace_that_runs_away_is_left_out(caplog):
    table = straight()
    table.centre[10, 0] = 1e5
    assert "SLICE11 MAXSLOPE" not in quality(table)
    assert "slice 11: its centre is" in caplog.text
