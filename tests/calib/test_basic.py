"""Basic processing: from raw frames and calibrations to a combined image, and what is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from astropy.io import fits

from musedask.calib.basic import process, process_single
from musedask.calib.combination import CombineParams
from musedask.errors import InputError
from musedask.instrument import DQ_SATURATED
from musedask.io.calibrations import BadPixels, write_badpix_table
from musedask.io.ccd import read_ccd, read_nonlinearity
from musedask.io.headers import set_card
from musedask.io.muse_image import MuseImage, read_muse_image, write_muse_image
from musedask.io.raw_read import read_image

from .rawframes import COLUMNS, GAINS, LEVELS, NX, NY, ROWS, SCAN, SHAPE, expose, headers, series, task, write

NONE = {"overscan": "none", "ovscreject": "none"}


def master(folder, tag, *, data=0.0, stat=0.0, dq=0, unit="adu", cards=None):
    """A master calibration of constant values, or of arrays."""
    primary, own = headers(exptime=100.0)
    primary.extend(own.cards)
    for n in range(1, 5):
        set_card(primary, f"ESO DRS MUSE OVSC{n} MEAN", LEVELS[n - 1])
        set_card(primary, f"ESO DRS MUSE OVSC{n} STDEV", 2.4)
    for key, value in (cards or {}).items():
        if value is None:
            del primary[key]
        else:
            set_card(primary, key, value)
    parts = [np.full(SHAPE, v, t) for v, t in ((data, np.float32), (dq, np.int32), (stat, np.float32))]
    path = folder / f"{tag.lower()}.fits"
    write_muse_image(path, MuseImage(*parts, unit, primary), overwrite=True)
    return path, tag


@pytest.fixture
def bias(tmp_path):
    quadrant = np.add.outer(np.repeat([0, 2], NY), np.repeat([0, 1], NX))
    # outputs 3 and 4 are top right and top left
    return master(tmp_path, "MASTER_BIAS", data=np.array(LEVELS)[[0, 1, 3, 2]][quadrant], stat=1.5)


@pytest.fixture
def flats(tmp_path):
    return series(tmp_path, 3, "FLAT", seed=2, exptime=5.0, light=3000.0)


def bad_pixels(folder, pixels, ifu=1):
    x, y, status = (np.array(v, np.int32) for v in zip(*pixels, strict=True))
    path = folder / f"badpix{len(pixels)}.fits"
    write_badpix_table(path, {ifu: BadPixels(x, y, status, np.zeros(len(x)))}, overwrite=True)
    return path, "BADPIX_TABLE"


# --- reading ---------------------------------------------------------------------------------------


def test_sections_of_a_real_ccd():
    """Those of the manual's raw images: prescans outside, overscans in the middle."""
    primary, own = headers()
    for n in range(1, 5):
        own[f"ESO DET OUT{n} NX"], own[f"ESO DET OUT{n} NY"] = 2048, 2056
    primary.extend(own.cards)
    ccd = read_ccd(primary)
    assert ccd.shape == (4112, 4096)
    assert ccd.raw_shape == (4240, 4224)
    one, two, three, four = ccd.ports
    assert ccd.data(one) == (slice(32, 2088), slice(32, 2080))
    assert ccd.data(three) == (slice(2152, 4208), slice(2144, 4192))
    assert ccd.trimmed(two) == (slice(0, 2056), slice(2048, 4096))
    assert ccd.region(four) == (slice(2120, 4240), slice(0, 2112))
    assert ccd.strips(one, 3) == ((slice(2091, 2120), slice(32, 2080)), (slice(32, 2120), slice(2083, 2112)))
    assert ccd.strips(three, 3) == ((slice(2120, 2149), slice(2144, 4192)), (slice(2120, 4208), slice(2112, 2141)))


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"ESO DET OUT2 NX": 100}, "ESO DET OUTn NX"),
        ({"ESO DET OUT2 X": 5}, "expected 1 or 4096"),
        ({"ESO DET OUT1 Y": 4112}, "bottom left"),
        ({"ESO DET OUT3 GAIN": None}, "ESO DET OUT3 GAIN None found"),
        ({"ESO DET OUT3 GAIN": -1.0}, "GAIN -1.0 found, expected a positive number"),
        ({"ESO DET OUT1 OVSCX": None}, "ESO DET OUT1 OVSCX None found"),
        ({f"ESO DET OUT{n} NX": 80 for n in range(1, 5)}, "CHAN01 of shape .* found, its ESO DET OUTn cards say"),
    ],
)
def test_header_of_another_ccd(tmp_path, bias, cards, message):
    frames = series(tmp_path, 3, "FLAT", cards=lambda i: {"extension": cards})
    with pytest.raises(InputError, match=message) as error:
        process(task("muse_flat", [*frames, bias]), task("muse_flat", frames).tagged("FLAT"))
    assert "flat0_0.fits" in str(error.value)


def test_plain_and_compressed_files(tmp_path):
    image = expose(np.random.default_rng(1))
    image[0, 0], image[0, 1], image[9, 9], image[9, 10] = 0, 65535, 65501, 65500
    found = []
    for suffix in (".fits", ".fits.fz"):
        path = write(tmp_path / f"raw{suffix}", image, number=3)
        out = np.empty(image.shape, np.uint16)
        cards, read, saturated = read_image(path, 1, out)
        assert read is out
        assert np.array_equal(read, image)
        assert saturated == 3
        assert cards.get("ESO DET OUT2 GAIN") == GAINS[1]
        assert cards.get("NO SUCH CARD") is None
        found.append(cards.header())
    for key in ("MJD-OBS", "ESO DET OUT4 NX", "EXTNAME", "DATE-OBS"):
        assert found[0][key] == found[1][key]
    assert not [k for h in found for k in h if k.startswith(("Z", "NAXIS", "BZERO", "CHECKSUM", "T"))]
    # of another shape: a new array
    assert read_image(path, 1, np.empty((3, 3), np.uint16))[1].shape == image.shape


def test_many_ifus_and_the_primary(tmp_path):
    from musedask.io.raw import write_raw

    random = np.random.default_rng(2)
    images = {ifu: expose(random) for ifu in (12, 3, 1)}
    parts = [(headers(ifu=ifu)[1], image) for ifu, image in images.items()]
    path = write_raw(tmp_path / "raw.fits", headers()[0], parts)
    for ifu, image in images.items():
        cards, read, _ = read_image(path, ifu)
        assert np.array_equal(read, image)
        assert cards.get("ESO DET CHIP ID") == f"no {ifu}"
    with pytest.raises(InputError, match="IFU 2 is not in it"):
        read_image(path, 2)
    primary = headers()[0]
    primary.extend(headers()[1].cards)
    fits.PrimaryHDU(images[1], primary).writeto(tmp_path / "single.fits")
    cards, read, _ = read_image(tmp_path / "single.fits", 1)
    assert np.array_equal(read, images[1])
    assert cards.get("EXPTIME") == 0.0


def test_damaged_files(tmp_path, bias, flats):
    content = flats[1][0].read_bytes()
    flats[1][0].write_bytes(content[: len(content) // 2])
    given = task("muse_flat", [*flats, bias])
    with pytest.raises(InputError, match=r"flat2_1.fits: is truncated"):
        process(given, given.tagged("FLAT"))
    flats[1][0].write_bytes(b"")
    with pytest.raises(InputError, match=r"flat2_1.fits: cannot be read"):
        process(given, given.tagged("FLAT"))
    flats[1][0].unlink()
    with pytest.raises(InputError, match=r"flat2_1.fits: does not exist"):
        process(given, given.tagged("FLAT"))


# --- processing ------------------------------------------------------------------------------------


def test_light_and_noise_come_out(tmp_path, bias, flats):
    given = task("muse_flat", [*flats, bias], combine="average", **NONE)
    found = process(given, given.tagged("FLAT"), statistics=True)
    assert found.image.unit == "count"
    assert found.saturated == [0, 0, 0]
    for n, (rows, columns) in enumerate(((0, 0), (0, 1), (1, 1), (1, 0))):
        section = slice(rows * NY, (rows + 1) * NY), slice(columns * NX, (columns + 1) * NX)
        gain = GAINS[n]
        assert found.image.data[section].mean() == pytest.approx(3000 * gain, rel=1e-3)
        # photons, and the variance of the bias; the reference counts no read-out noise of the exposures
        variance = (3000 / gain + 1.5) * gain**2 / 3
        assert np.median(found.image.stat[section]) == pytest.approx(variance, rel=0.01)
    for one in found.statistics:
        assert one.mean == pytest.approx(3000 * np.mean(GAINS), rel=1e-3)
        assert one.min < one.median < one.max
    assert found.image.header["EXTNAME"] == "CHAN01"
    assert found.image.header["DATE-OBS"] == "2017-09-04T00:00:00.000"
    assert "ESO DET OUT1 OVSCX" not in found.image.header
    assert found.image.header["ESO DRS MUSE OVSC2 MEAN"] == pytest.approx(LEVELS[1], abs=0.1)
    assert "ESO DRS MUSE OVSC2 POLY NCOEFF" not in found.image.header


def test_single_is_like_one_of_many(tmp_path, bias, flats):
    given = task("muse_flat", [*flats, bias], **NONE)
    image, saturated = process_single(given, given.tagged("FLAT")[1])
    assert saturated == 0
    assert image.header["DATE-OBS"] == "2017-09-04T00:01:00.000"
    one = process(given, given.tagged("FLAT")[1:2], statistics=True)
    for name in ("data", "stat", "dq"):
        assert np.array_equal(getattr(one.image, name), getattr(image, name))
    assert one.statistics[0].mean == pytest.approx(float(image.data.mean(dtype=np.float64)), rel=1e-12)


@pytest.mark.parametrize("n_threads, n_frames", [(2, 3), (5, 3), (2, 1)])
def test_threads_change_nothing(tmp_path, bias, flats, n_threads, n_frames):
    table = bad_pixels(tmp_path, [(SCAN + 5, SCAN + 9, 1 << 8)])
    results = []
    for n in (1, n_threads):
        given = task("muse_flat", [*flats, bias, table], n_threads=n)
        results.append(process(given, given.tagged("FLAT")[:n_frames], statistics=True))
    one, many = results
    for name in ("data", "stat", "dq"):
        assert np.array_equal(getattr(one.image, name), getattr(many.image, name))
    assert one.statistics == many.statistics


def test_polynomial_takes_the_shape_out(tmp_path):
    frames = series(tmp_path, 3, slope=0.02, levels=(1000.0, 1100.0, 900.0, 1000.0))
    given = task("muse_bias", frames, ovscreject="none", combine="average")
    image = process(given, given.tagged("BIAS")).image
    profile = image.data.mean(axis=1, dtype=np.float64)
    assert np.abs(profile).max() < 0.5
    assert image.unit == "adu"
    assert not image.stat.any()
    header = image.header
    n = header["ESO DRS MUSE OVSC3 POLY NCOEFF"]
    coefficients = [header[f"ESO DRS MUSE OVSC3 POLY Y{i}"] for i in range(n)]
    middle = NY + 2 * SCAN + 70.0
    level = np.polynomial.polynomial.polyval(middle, coefficients)
    assert level == pytest.approx(900 + 0.02 * middle, abs=0.5)


def test_bad_and_saturated_pixels(tmp_path, bias):
    def change(data, number):
        data[5, 6] = 65535
        data[7, 8] = 0
        if number == 1:
            data[9, 10] = 65535

    frames = series(tmp_path, 3, "FLAT", light=100.0, change=change)
    # the last one is an overscan, the one before is on top right, others outside
    table = bad_pixels(
        tmp_path,
        [
            (SCAN + 7, SCAN + 6, 1 << 8), (SCAN + 21, SCAN + 1, 1 << 13), (COLUMNS[-1] + 1, ROWS[-1] + 1, 1 << 14),
            (0, 5, 1), (9999, 5, 1), (NX + SCAN + 5, 50, 1),
        ],
    )  # fmt: skip
    more = bad_pixels(tmp_path, [(SCAN + 21, SCAN + 1, 1 << 9)])
    other = bad_pixels(tmp_path, [(SCAN + 50, SCAN + 50, 1)] * 2, ifu=2)
    given = task("muse_flat", [*frames, bias, table, more, other], combine="average", **NONE)
    found = process(given, given.tagged("FLAT"))
    assert found.saturated == [2, 3, 2]
    expected = {
        (5, 6): DQ_SATURATED | 1 << 8, (7, 8): DQ_SATURATED, (0, 20): 1 << 13 | 1 << 9,
        (SHAPE[0] - 1, SHAPE[1] - 1): 1 << 14,
    }  # fmt: skip
    assert {tuple(map(int, p)): int(found.image.dq[tuple(p)]) for p in np.argwhere(found.image.dq)} == expected
    # good in two of three
    assert found.image.data[9, 10] == pytest.approx(100 * GAINS[0], abs=15)


def test_overscan_with_bad_pixels(tmp_path):
    """Known bad pixels of the overscan do not go into its level."""
    random = np.random.default_rng(3)
    paths = []
    for i in range(3):
        image = expose(random)
        image[40:60, NX + SCAN + 4] = 3000
        paths.append((write(tmp_path / f"b{i}.fits", image, number=i), "BIAS"))
    table = bad_pixels(tmp_path, [(NX + SCAN + 5, y + 1, 1) for y in range(40, 60)])
    levels = []
    for inputs in (paths, [*paths, table]):
        given = task("muse_bias", inputs, **NONE)
        levels.append(process(given, given.tagged("BIAS")).image.header["ESO DRS MUSE OVSC1 MEAN"])
    assert levels[0] > LEVELS[0] + 1
    assert levels[1] == pytest.approx(LEVELS[0], abs=0.1)


def test_scaled_to_the_first(tmp_path, bias):
    frames = []
    for i, time in enumerate((10.0, 20.0, 5.0)):
        frames += series(tmp_path, 1, "FLAT", seed=10 + i, exptime=time, light=100.0 * time)
    given = task("muse_flat", [*frames, bias], combine="average", **NONE)
    image = process(given, given.tagged("FLAT"), scale=True).image
    assert image.data.mean() == pytest.approx(1000 * np.mean(GAINS), rel=3e-3)
    assert image.header["EXPTIME"] == 10.0
    given = task("muse_flat", [*frames, *series(tmp_path, 1, "FLAT", seed=14), bias])
    with pytest.raises(InputError, match=r"flat14_0.fits: EXPTIME 0.0 found, expected a positive number"):
        process(given, given.tagged("FLAT"), scale=True)


def test_dark_goes_by_exposure_time(tmp_path, bias, flats):
    dark = master(tmp_path, "MASTER_DARK", data=400.0, stat=10.0, dq=0, unit="count")
    results = []
    for inputs in ([*flats, bias], [*flats, bias, dark]):
        given = task("muse_flat", inputs, combine="average", **NONE)
        results.append(process(given, given.tagged("FLAT")).image)
    # 5 s of 100 s
    assert results[0].data - results[1].data == pytest.approx(np.full(SHAPE, 20.0), abs=2e-3)
    assert results[1].stat - results[0].stat == pytest.approx(np.full(SHAPE, 10 / 400 / 3), abs=2e-3)


def test_division_by_a_flat(tmp_path, bias):
    values = np.full(SHAPE, 2.0, np.float32)
    values[3, 4], values[3, 5] = 0, -0.5
    cards = {"ESO QC FLAT MASTER INTFLUX": 5e8}
    flat = master(tmp_path, "MASTER_FLAT", data=values, stat=0.04, unit="count", cards=cards)
    frames = series(tmp_path, 1, "ARC", exptime=5.0, light=100.0)
    results = []
    for inputs in ([*frames, bias], [*frames, bias, flat]):
        given = task("muse_wavecal", inputs, **NONE)
        results.append(process(given, given.tagged("ARC")).image)
    before, after = results
    good = values == 2
    assert np.array_equal(after.data[good], before.data[good] / np.float32(2))
    assert after.stat[good] == pytest.approx((before.stat[good] + before.data[good] ** 2 * 0.01) / 4, rel=1e-6)
    assert after.data[3, 4] == before.data[3, 4]
    assert after.data[3, 5] == before.data[3, 5] / np.float32(-0.5)
    assert after.header["ESO DRS MUSE FLAT FLUX LAMP"] == 5e8
    assert "ESO DRS MUSE FLAT FLUX LAMP" not in before.header


# --- gains and linearity ---------------------------------------------------------------------------


def linearity(folder, *, gain=(1.0, 1.1, 1.2, 1.3), coefficients=(0.02, 0.001), cards=None, ifu=1):
    header = fits.Header([("EXTNAME", f"CHAN{ifu:02d}")])
    values = {}
    for n in range(1, 5):
        values[f"ESO DET OUT{n} GAIN"] = gain[n - 1]
        values[f"ESO DRS MUSE NONLIN{n} POLY ORDER"] = len(coefficients) - 1
        values |= {f"ESO DRS MUSE NONLIN{n} POLY COEFF{i}": c for i, c in enumerate(coefficients)}
        values |= {f"ESO DRS MUSE NONLIN{n} POLY LOLIMIT": 1.0, f"ESO DRS MUSE NONLIN{n} POLY HILIMIT": 4.0}
    for key, value in (values | (cards or {})).items():
        if value is not None:
            set_card(header, key, value)
    path = folder / "linearity.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(header=header)]).writeto(path, overwrite=True)
    return path, "NONLINEARITY_GAIN"


def test_gain_and_linearity(tmp_path, bias, flats, monkeypatch):
    file = linearity(tmp_path)

    def levels(*more):
        given = task("muse_flat", [*flats, bias, *more], combine="average", **NONE)
        image = process(given, given.tagged("FLAT")).image
        return np.array([image.data[:NY, :NX].mean(), image.data[NY:, :NX].mean()]), image

    plain, _ = levels()
    both, image = levels(file)
    factor = 1 / (1 + 0.02 + 0.001 * np.log10(3000))
    assert both == pytest.approx(plain * factor * np.array([1.0 / GAINS[0], 1.3 / GAINS[3]]), rel=1e-4)
    assert image.header["ESO DET OUT4 GAIN"] == 1.3
    monkeypatch.setenv("MUSE_BASICPROC_SKIP_GAIN_OVERRIDE", "1")
    found, image = levels(file)
    assert found == pytest.approx(plain * factor, rel=1e-4)
    assert image.header["ESO DET OUT4 GAIN"] == GAINS[3]
    monkeypatch.setenv("MUSE_BASICPROC_SKIP_NONLIN_CORR", "1")
    assert np.array_equal(levels(file)[0], plain)


def test_linearity_of_another_ifu_or_incomplete(tmp_path):
    with pytest.raises(InputError, match="there is no extension CHAN02"):
        read_nonlinearity(linearity(tmp_path)[0], 2)
    file = linearity(tmp_path, cards={"ESO DRS MUSE NONLIN3 POLY HILIMIT": None})[0]
    with pytest.raises(InputError, match=r"CHAN01\]: ESO DRS MUSE NONLIN3 POLY HILIMIT None found, expected a number"):
        read_nonlinearity(file, 1)


# --- levels of the overscan ------------------------------------------------------------------------


def test_level_apart_from_that_of_the_bias(tmp_path, bias, caplog):
    frames = series(tmp_path, 3, "FLAT", levels=(1000.0, 1010.0, 1240.0, 1040.0), light=100.0)
    given = task("muse_flat", [*frames, bias], ovscreject="none")
    with pytest.raises(InputError, match=r"flat0_0.fits: overscan level 12.*quadrant 3 .* 990.00 \+/- 100"):
        process(given, given.tagged("FLAT"))
    given = task("muse_flat", [*frames, bias], ovscsigma=50.0, **NONE)
    with caplog.at_level(logging.WARNING, "musedask"):
        process(given, given.tagged("FLAT"))
    assert sum("overscan level" in r.message for r in caplog.records) == 3
    given = task("muse_flat", [*frames, bias], overscan="offset", ovscreject="none", combine="average")
    image = process(given, given.tagged("FLAT")).image
    section = image.data[NY:, NX:]
    assert section.mean() == pytest.approx(100 * GAINS[2], rel=0.01)
    # with the variances of both levels, as the reference counts them: not those of means
    extra = 2.4**2 + (3.1 / GAINS[2]) ** 2 + 1 / 12
    expected = ((100 + 250) / GAINS[2] + extra / GAINS[2] + 1.5) * GAINS[2] ** 2 / 3
    assert np.median(image.stat[NY:, NX:]) == pytest.approx(expected, rel=0.02)
    assert image.header["ESO DRS MUSE OVSC3 MEAN"] == 990.0


def test_other_overscan_parameters_are_told(tmp_path, flats, caplog):
    cards = {"ESO PRO REC1 PARAM1 NAME": "overscan", "ESO PRO REC1 PARAM1 VALUE": "vpoly"}
    given = task("muse_flat", [*flats, master(tmp_path, "MASTER_BIAS", cards=cards)], **NONE)
    with caplog.at_level(logging.WARNING, "musedask"):
        process(given, given.tagged("FLAT"))
    assert any("made with other overscan parameters: overscan vpoly" in r.message for r in caplog.records)


# --- what does not fit -----------------------------------------------------------------------------

OTHER = [
    ("binning", {"ESO DET BINX": 2}, "ESO DET BINX and BINY"),
    ("mode of read-out", {"ESO DET READ CURID": 3}, "ESO DET READ CURID"),
    ("chip", {"ESO DET CHIP ID": "another"}, "ESO DET CHIP NAME and ID"),
    ("mode", {"ESO INS MODE": "NFM-AO-N"}, "ESO INS MODE"),
    ("unknown chip", {"ESO DET CHIP NAME": None}, "ESO DET CHIP"),
]
ERRORS = {
    "MASTER_BIAS": {"binning", "mode of read-out", "chip"},
    "MASTER_DARK": {"binning"},
    "MASTER_FLAT": {"binning", "mode"},
}
WARNINGS = {"MASTER_DARK": {"mode of read-out", "chip"}, "MASTER_FLAT": {"mode of read-out", "chip"}}


@pytest.mark.parametrize("tag", ERRORS)
@pytest.mark.parametrize(("name", "cards", "keyword"), OTHER, ids=[o[0] for o in OTHER])
def test_masters_of_another_setup(tmp_path, bias, caplog, tag, name, cards, keyword):
    other = master(tmp_path, tag, data=1.0, unit="adu" if tag == "MASTER_BIAS" else "count", cards=cards)
    inputs = [*series(tmp_path, 1, "ARC", exptime=1.0), other, *([bias] if tag != "MASTER_BIAS" else [])]
    given = task("muse_wavecal", inputs, ovscsigma=1000.0, **NONE)
    caplog.set_level(logging.WARNING, "musedask")
    if name in ERRORS[tag]:
        with pytest.raises(InputError, match=rf"{tag.lower()}.fits: {keyword} .* found in the {tag}, expected"):
            process(given, given.tagged("ARC"))
        return
    process(given, given.tagged("ARC"))
    told = [r.message for r in caplog.records if keyword in r.message]
    assert bool(told) == (name in WARNINGS.get(tag, set()))


def test_masters_without_what_is_needed(tmp_path, bias):
    frames = series(tmp_path, 1, "ARC", exptime=1.0)

    def run(*inputs):
        given = task("muse_wavecal", [*frames, *inputs], **NONE)
        process(given, given.tagged("ARC"))

    path, _ = bias
    image = read_muse_image(path)
    write_muse_image(path, MuseImage(image.data, image.dq, None, "adu", image.header), overwrite=True)
    with pytest.raises(InputError, match=r"master_bias.fits: there is no DQ or no STAT"):
        run(bias)
    write_muse_image(path, MuseImage(image.data[:9], image.dq[:9], image.stat[:9], "adu", image.header), overwrite=True)
    with pytest.raises(InputError, match=r"MASTER_BIAS of shape \(9, 320\) found, expected \(256, 320\)"):
        run(bias)
    del image.header["ESO DRS MUSE OVSC2 MEAN"]
    write_muse_image(path, image, overwrite=True)
    with pytest.raises(InputError, match="there is no ESO DRS MUSE OVSC2 MEAN, expected both in a MASTER_BIAS"):
        run(bias)
    dark = master(tmp_path, "MASTER_DARK", unit="count", cards={"EXPTIME": 0.0})
    with pytest.raises(InputError, match=r"EXPTIME 0.0 found, expected a positive number in a MASTER_DARK"):
        run(dark)


@pytest.mark.parametrize(
    ("cards", "keyword"),
    [
        ({"primary": {"ESO DET READ CURID": 3}}, "ESO DET READ CURID 3 found, expected 1 as in"),
        ({"extension": {"ESO DET CHIP ID": "x"}}, "ESO DET CHIP NAME and ID"),
        ({"primary": {"ESO DET BINX": 2}}, "ESO DET BINX and BINY"),
    ],
)
def test_raw_frames_of_another_setup_are_left_out(tmp_path, caplog, cards, keyword):
    frames = series(tmp_path, 5, cards=lambda i: cards if i == 1 else {})
    given = task("muse_bias", frames, **NONE)
    with caplog.at_level(logging.WARNING, "musedask"):
        found = process(given, given.tagged("BIAS"), combine=CombineParams("average"))
    assert [r.message for r in caplog.records if f"bias0_1.fits: {keyword}" in r.message and "is left out" in r.message]
    others = task("muse_bias", [frames[0], *frames[2:]], **NONE)
    expected = process(others, others.tagged("BIAS"), combine=CombineParams("average"))
    assert np.array_equal(found.image.data, expected.image.data)
    assert len(found.saturated) == 4
    given = task("muse_bias", frames[:3], **NONE)
    with pytest.raises(InputError, match=r"muse_bias: 2 of 3 raw frames have the setup of .*, expected 3 or more"):
        process(given, given.tagged("BIAS"))


def test_boxes_that_do_not_fit_reject_nothing(tmp_path, caplog):
    frames = series(tmp_path, 3)
    results = []
    for reject in ("none", "dcr:129,32", "dcr:128,33"):
        given = task("muse_bias", frames, overscan="none", ovscreject=reject)
        with caplog.at_level(logging.WARNING, "musedask"):
            results.append(process(given, given.tagged("BIAS")).image.header["ESO DRS MUSE OVSC1 STDEV"])
    assert len(set(results)) == 1
    assert sum("nothing is rejected" in r.message for r in caplog.records) == 6


def test_nothing_to_process(tmp_path, bias):
    with pytest.raises(InputError, match="no raw frame found"):
        process(task("muse_flat", [bias]), [])
    frames = series(tmp_path, 3)
    with pytest.raises(InputError, match="it works on one IFU"):
        process(task("muse_bias", frames, ifu=None), task("muse_bias", frames).tagged("BIAS"))
