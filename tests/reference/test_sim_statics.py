"""The reference reads the tables of `musedask.io` and of the simulated instrument, and uses them as we do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from astropy.io import fits

from musedask.io import calibrations as cal
from musedask.io import references as ref
from musedask.io.muse_image import Mask, MuseImage, write_mask, write_muse_image
from musedask.io.pixtable import scan_pixtable
from musedask.io.products import product_header
from musedask.io.tables import read_filter
from musedask.sim import Background, Scene, Star, observe, simulate_pixtables
from musedask.sim.exposure import light_of, scene_text
from musedask.sim.masters import write_masters
from musedask.sim.optics import Instrument
from musedask.sim.plan import ExposurePlan
from musedask.sim.statics import geometry_table, write_statics
from musedask.sim.truth import trace_table, wavecal_table

pytestmark = pytest.mark.esorex

IFU = 12
SETTING = {"ESO INS MODE": "WFM-NOAO-N", "ESO DET BINX": 1, "ESO DET BINY": 1, "DATE-OBS": "2018-11-09T03:00:00.000"}


@pytest.fixture(scope="module")
def statics(tmp_path_factory):
    return write_statics(tmp_path_factory.mktemp("static"), ifus=[IFU, 13])


def complaints(folder):
    """Warnings and errors of a run, but those about how we call it."""
    ignored = ("plugins", "Channel for IFU", "is not defined", "Found REDUCED", "Dumping", "Null input data")
    lines = (folder / "stdout").read_text().splitlines()
    return [line for line in lines if ("WARNING" in line or "ERROR" in line) and not any(i in line for i in ignored)]


# --- tables of an IFU ------------------------------------------------------------------------------


def test_pixel_table_of_the_true_instrument(esorex, tmp_path):
    """MUSE_IMAGE, TRACE_TABLE, WAVECAL_TABLE and GEOMETRY_TABLE: pixels get the true places and wavelengths."""
    instrument = Instrument()
    optics = instrument.ifu(IFU)
    wave = optics.wave_map()
    header = product_header("OBJECT_RED", ifu=IFU, cards={**SETTING, "EXPTIME": 30.0, "RA": 10.0, "DEC": -20.0})
    image = MuseImage(wave, np.zeros(wave.shape, np.int32), np.ones(wave.shape, np.float32), "count")
    folder = tmp_path
    write_muse_image(folder / "red.fits", image, header=header)
    cal.write_trace_table(
        folder / "trace.fits", trace_table(optics), header=product_header("TRACE_TABLE", ifu=IFU, cards=SETTING)
    )
    cal.write_wavecal_table(
        folder / "wave.fits", wavecal_table(optics), header=product_header("WAVECAL_TABLE", ifu=IFU, cards=SETTING)
    )
    static = product_header("GEOMETRY_TABLE")
    cal.write_geometry_table(folder / "geometry.fits", geometry_table(instrument, [11, IFU]), header=static)
    inputs = [
        (folder / "red.fits", "REDUCED"), (folder / "trace.fits", "TRACE_TABLE"),
        (folder / "wave.fits", "WAVECAL_TABLE"), (folder / "geometry.fits", "GEOMETRY_TABLE"),
    ]  # fmt: skip
    out = esorex("muse_scibasic", inputs, nifu=IFU, skylines="none", crop="false")
    assert not complaints(out)
    table = scan_pixtable(out / f"PIXTABLE_REDUCED_0001-{IFU:02d}.fits")
    origin = table.read("origin").view(np.uint32)
    s, y = origin & 63, (origin >> 11) & 8191
    lam, data, xpos, ypos = (table.read(n).astype(np.float64) for n in ("lambda", "data", "xpos", "ypos"))
    # every pixel between the edges, with its wavelength to the last bits of single precision
    assert len(lam) == np.count_nonzero(wave)
    np.testing.assert_allclose(lam, data, rtol=3e-7)
    for number in (1, 17, 48):
        mine = s == number
        left, _ = optics.edges(number, 1.0)
        x = (origin[mine] >> 24) + (int(np.floor(left)) - 20)
        px, py = optics.position(number, x, y[mine])
        np.testing.assert_allclose(xpos[mine], px, atol=3e-5)
        np.testing.assert_allclose(ypos[mine], py, atol=3e-5)


def test_wavelength_mask(esorex, tmp_path):
    """muse_qi_mask, which takes nothing but the two tables."""
    optics = Instrument().ifu(IFU)
    cal.write_trace_table(tmp_path / "t.fits", trace_table(optics), header=product_header("TRACE_TABLE", ifu=IFU))
    cal.write_wavecal_table(tmp_path / "w.fits", wavecal_table(optics), header=product_header("WAVECAL_TABLE", ifu=IFU))
    inputs = [(tmp_path / "t.fits", "TRACE_TABLE"), (tmp_path / "w.fits", "WAVECAL_TABLE")]
    out = esorex("muse_qi_mask", inputs, nifu=IFU)
    with fits.open(next(out.glob("MASK_IMAGE*.fits"))) as hdus:
        image = next(h.data for h in hdus if h.data is not None)
    wave = optics.wave_map()
    # lower left quadrant: after the prescans
    mine = (wave[:2056, :2048] >= 4650) & (wave[:2056, :2048] <= 9300)
    assert np.mean((image[32:2088, 32:2080] > 0) == mine) > 0.999


# --- tables of the sky and of fluxes ----------------------------------------------------------------

FIELD = {"ifus": (IFU, 13), "slices": 12, "slice_width": 24, "n_exposures": 1, "noise": False, "rotations": (0.0,)}


def without(sim, folder, *keywords, unit=None):
    """The pixel table of a simulation without some of its keywords, and with another unit."""
    path = folder / "edited.fits"
    with fits.open(sim.paths[0]) as hdus:
        header = hdus[0].header
        for keyword in [k for k in header if k.endswith(keywords)]:
            del header[keyword]
        if unit is not None:
            hdus["data"].header["BUNIT"], hdus["stat"].header["BUNIT"] = unit, f"{unit}**2"
        hdus.writeto(path)
    return path


@dataclass
class Curves:
    """Tables of a response like that of MUSE."""

    response: ref.Response
    telluric: ref.Telluric

    @classmethod
    def make(cls):
        wave = np.arange(4700.0, 9400.0, 5.0)
        response = 36.0 + 0.3 * np.sin(wave / 900)
        one = np.full(len(wave), 0.01)
        throughput = np.full(len(wave), 0.3)
        band = np.arange(6800.0, 7000.0, 1.25)
        transmission = 1 - 0.4 * np.exp(-0.5 * ((band - 6875) / 15) ** 2)
        return cls(
            ref.Response(wave, response, one, response, one, throughput, flat_corrected=False),
            ref.Telluric(band, transmission, np.full(len(band), 1e-3), flat_corrected=False),
        )


def test_flux_calibration(esorex, statics, tmp_path):
    """EXTINCT_TABLE, STD_RESPONSE and STD_TELLURIC in a formula of five lines."""
    sim = simulate_pixtables(tmp_path / "in", **FIELD, wave_range=(6860.0, 6890.0), stage="pix")
    before = without(sim, tmp_path, "FLUXCAL", "SKYSUB", unit="count")
    curves = Curves.make()
    setting = {"ESO INS MODE": "WFM-NOAO-N"}
    ref.write_std_response(tmp_path / "r.fits", curves.response, header=product_header("STD_RESPONSE", cards=setting))
    ref.write_std_telluric(tmp_path / "t.fits", curves.telluric, header=product_header("STD_TELLURIC", cards=setting))
    inputs = [
        (before, "PIXTABLE_OBJECT"), (tmp_path / "r.fits", "STD_RESPONSE"), (tmp_path / "t.fits", "STD_TELLURIC"),
        (statics["EXTINCT_TABLE"], "EXTINCT_TABLE"),
    ]  # fmt: skip
    out = esorex("muse_scipost_calibrate_flux", inputs)
    assert not complaints(out)
    a, b = scan_pixtable(before), scan_pixtable(next(out.glob("PIXTABLE*.fits")))
    wave, counts, flux = (t.read(n).astype(np.float64) for t, n in ((a, "lambda"), (a, "data"), (b, "data")))
    extinct = ref.read_extinct_table(statics["EXTINCT_TABLE"])
    ratio = flux / counts
    response = np.interp(wave, curves.response.wave, curves.response.response)
    expected = 1e20 / (a.header["EXPTIME"] * 1.25 * 10 ** (0.4 * response))
    airmass = a.header["ESO TEL AIRM START"]
    expected *= 10 ** (0.4 * airmass * np.interp(wave, extinct.wave, extinct.extinction))
    expected *= np.interp(wave, curves.telluric.wave, curves.telluric.transmission**-airmass)
    good = np.abs(counts) > np.percentile(np.abs(counts), 20)
    assert np.median(ratio[good] / expected[good]) == pytest.approx(1, abs=0.02)
    spread = ratio[good] / expected[good]
    assert np.percentile(spread, 95) / np.percentile(spread, 5) < 1.01


def test_sky_lines_and_lsf(esorex, statics, tmp_path):
    """SKY_LINES, SKY_CONTINUUM and a merged LSF_PROFILE: what is subtracted is line times profile."""
    sim = simulate_pixtables(tmp_path / "in", **FIELD, wave_range=(6270.0, 6330.0), stage="pix")
    lines = ref.SkyLines(
        np.array(["[OI]", "other", "bad"]), np.array([0, 1, 1], np.int32), np.array([6300.304, 6287.434, 6310.0]),
        np.array([5000.0, 1000.0, 9000.0]), np.array([0, 0, 1], np.int32),
    )  # fmt: skip
    ref.write_sky_lines(tmp_path / "lines.fits", lines)
    grid = np.arange(6200.0, 6400.0, 0.5)
    ref.write_sky_continuum(tmp_path / "c.fits", ref.SkyContinuum(grid, np.full(len(grid), 2.5)))
    path = without(sim, tmp_path, "SKYSUB")
    inputs = [
        (path, "PIXTABLE_REDUCED"), (tmp_path / "lines.fits", "SKY_LINES"), (tmp_path / "c.fits", "SKY_CONTINUUM"),
    ]  # fmt: skip
    out = esorex("muse_scipost_subtract_sky", [*inputs, (statics["LSF_PROFILE"], "LSF_PROFILE")])
    assert not complaints(out)
    before, after = scan_pixtable(sim.paths[0]), scan_pixtable(next(out.glob("PIXTABLE*.fits")))

    def by_origin(table):
        origin = table.read("origin").view(np.uint32)
        order = np.argsort(origin)
        return [origin[order], *(table.read(n)[order].astype(np.float64) for n in ("lambda", "data"))]

    origin, wave, data = by_origin(before)
    assert np.array_equal(by_origin(after)[0], origin)
    removed = data - by_origin(after)[2] - 2.5
    for ifu in (IFU, 13):
        profile = cal.read_lsf_profile(statics["LSF_PROFILE"], ifu=ifu)
        for s in np.unique(origin & 63)[::5]:
            mine = ((origin & 63) == s) & ((origin >> 6 & 31) == ifu)
            expected = np.zeros(mine.sum())
            # also the one that its flag forbids: the reference does not look at it here
            for line, flux in zip(lines.wave, lines.flux, strict=True):
                row = (line - profile.wave0) / profile.wave_step
                k = int(row)
                values = (1 - row + k) * profile.data[s - 1, k] + (row - k) * profile.data[s - 1, k + 1]
                offset = profile.offset - (values * profile.offset).sum() / values.sum()
                expected += flux * np.interp(wave[mine] - line, offset, values, left=0, right=0)
            assert np.abs(removed[mine] - expected).max() < 0.003 * expected.max()


def test_oh_transitions(esorex, statics, tmp_path):
    """The optional second table of SKY_LINES is read too."""
    sim = simulate_pixtables(tmp_path / "in", **FIELD, wave_range=(7300.0, 7330.0), stage="pix")
    oh = ref.OhTransitions(
        np.array(["OH 8-3 P1e(2.5) 2", "OH 8-3 P1f(2.5) 2"]), np.array([7316.28, 7316.29]),
        np.array([8, 8], np.int32), np.array([3, 3], np.int32), np.array([3, 3], np.int32),
        np.array([4.4e-19, 4.4e-19]), np.array([1.5, 1.5]), np.array([0.5, 0.5]),
    )  # fmt: skip
    ref.write_sky_lines(tmp_path / "lines.fits", None, oh)
    grid = np.arange(7200.0, 7400.0, 0.5)
    ref.write_sky_continuum(tmp_path / "c.fits", ref.SkyContinuum(grid, np.zeros(len(grid))))
    path = without(sim, tmp_path, "SKYSUB")
    inputs = [
        (path, "PIXTABLE_REDUCED"), (tmp_path / "lines.fits", "SKY_LINES"), (tmp_path / "c.fits", "SKY_CONTINUUM"),
    ]  # fmt: skip
    out = esorex("muse_scipost_subtract_sky", [*inputs, (statics["LSF_PROFILE"], "LSF_PROFILE")])
    assert not complaints(out)
    before, after = scan_pixtable(sim.paths[0]), scan_pixtable(next(out.glob("PIXTABLE*.fits")))
    order = [np.argsort(t.read("origin").view(np.uint32)) for t in (before, after)]
    removed = (before.read("data")[order[0]] - after.read("data")[order[1]]).astype(np.float64)
    wave = before.read("lambda")[order[0]]
    assert removed.max() > 0 and abs(wave[np.argmax(removed)] - 7316.285) < 0.5


def test_filters_and_astrometry(esorex, statics, tmp_path):
    """FILTER_LIST, its zero points, and ASTROMETRY_WCS."""
    scene = Scene((Star(0.6, -0.4, 60000.0),), fwhm=1.0)
    sim = simulate_pixtables(tmp_path / "in", **FIELD, wave_range=(5500.0, 5530.0), scene=scene, stage="pix")
    out = esorex(
        "muse_scipost_apply_astrometry",
        [(sim.paths[0], "PIXTABLE_OBJECT"), (statics["ASTROMETRY_WCS"], "ASTROMETRY_WCS")],
    )
    assert not complaints(out)
    path = next(out.glob("PIXTABLE*.fits"))
    header = scan_pixtable(path).header
    assert (header["CD1_1"], header["CD2_2"]) == (pytest.approx(-0.2 / 3600), pytest.approx(0.2 / 3600))
    inputs = [(path, "PIXTABLE_OBJECT"), (statics["FILTER_LIST"], "FILTER_LIST")]
    out = esorex("muse_scipost_make_cube", inputs, filter="Johnson_V,SDSS_r")
    item = read_filter(statics["FILTER_LIST"], "Johnson_V")
    images = sorted(out.glob("IMAGE_FOV*.fits"))
    assert len(images) == 2
    found = fits.getheader(images[0])
    assert found["ESO DRS MUSE FILTER NAME"] == "Johnson_V"
    assert found["ESO DRS MUSE FILTER ZPVEGA"] == pytest.approx(item.zp_vega, abs=1e-6)
    assert found["ESO DRS MUSE FILTER ZPAB"] == pytest.approx(item.zp_ab, abs=1e-6)
    with fits.open(out / "DATACUBE_FINAL.fits") as hdus:
        data, h = hdus["DATA"].data, hdus["DATA"].header
    y, x = np.unravel_index(np.argmax(np.nan_to_num(data[10])), data.shape[1:])
    truth = sim.truth_cube(h, np.array([5510.0]))[0]
    assert np.hypot(*np.subtract((y, x), np.unravel_index(np.argmax(truth), truth.shape))) < 1.5


@pytest.mark.parametrize("celestial", [False, True])
def test_sky_mask(esorex, tmp_path, celestial):
    """A SKY_MASK chooses where the sky is measured: half of the field is much brighter than the other."""
    sim = simulate_pixtables(tmp_path / "in", **FIELD, wave_range=(6300.0, 6330.0), stage="pix", scene=Scene())
    path = without(sim, tmp_path, "SKYSUB")
    with fits.open(path, mode="update") as hdus:
        x = hdus["xpos"].data.ravel()
        middle = (x.min() + x.max()) / 2
        hdus["data"].data.ravel()[:] = np.where(x > middle, 100.0, 10.0) + 0.01 * (x % 1)
    n = 61
    right = np.tile(np.arange(n) > n // 2, (n, 1)).astype(np.int32)
    if celestial:
        h = scan_pixtable(sim.paths[0]).header
        cd = ((-0.2 / 3600, 0.0), (0.0, 0.2 / 3600))
        mask = Mask(right, ((n + 1) / 2, (n + 1) / 2), (h["RA"], h["DEC"]), cd, True)
    else:
        y = scan_pixtable(sim.paths[0]).read("ypos")
        middles = (float(middle), float(y.min() + y.max()) / 2)
        mask = Mask(right, ((n + 1) / 2, (n + 1) / 2), middles)
    write_mask(tmp_path / "mask.fits", mask)
    curves = Curves.make()
    ref.write_std_response(tmp_path / "r.fits", curves.response, header=product_header("STD_RESPONSE"))
    ref.write_extinct_table(tmp_path / "e.fits", ref.ExtinctionTable(np.array([4000.0, 9500.0]), np.zeros(2)))
    inputs = [
        (path, "PIXTABLE_OBJECT"), (tmp_path / "mask.fits", "SKY_MASK"),
        (tmp_path / "r.fits", "STD_RESPONSE"), (tmp_path / "e.fits", "EXTINCT_TABLE"),
    ]  # fmt: skip
    out = esorex(
        "muse_scipost", inputs, skymethod="simple", skymodel_fraction=1.0, skymodel_ignore=0.0, rvcorr="none",
        save="skymodel",
    )  # fmt: skip
    spectrum = fits.getdata(next(out.glob("SKY_SPECTRUM*.fits")))
    assert np.median(spectrum["data"]) == pytest.approx(100.0, rel=0.1)


# --- masters ---------------------------------------------------------------------------------------


def test_masters(esorex, statics, tmp_path):
    """muse_scibasic with master calibrations from the truth: what the instrument does to the light is undone."""
    kinds = (
        ("BIAS", 0.0, ""), ("DARK", 1800.0, ""), ("FLAT", 0.35, "continuum"), ("ARC", 1.4, "Ne"), ("SKYFLAT", 3.0, ""),
    )  # fmt: skip
    first = [
        ExposurePlan(i, tag, f"2018-11-08T20:{i}0:00.000", time, lamp=lamp, template_start=f"2018-11-08T20:{i}0:00")
        for i, (tag, time, lamp) in enumerate(kinds)
    ]
    made = write_masters(tmp_path / "masters", first, ifus=[IFU], names="drs")
    plan = ExposurePlan(9, "OBJECT", "2018-11-09T01:00:00.000", 60.0, ra=20.0, dec=-30.0, scene="bright")
    scene = Scene(background=Background(20000.0), ra=20.0, dec=-30.0)
    raw = observe(plan, scene, ifus=[IFU], out_dir=tmp_path)
    tags = ("MASTER_BIAS", "MASTER_DARK", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE", "TWILIGHT_CUBE")
    inputs = [(raw, "OBJECT"), *((path, tag) for tag in tags for path in made[tag])]
    inputs += [(statics[tag], tag) for tag in ("GEOMETRY_TABLE", "BADPIX_TABLE")]
    out = esorex("muse_scibasic", inputs, nifu=IFU, skylines="none", saveimage="false")
    assert not complaints(out)
    table = scan_pixtable(out / f"PIXTABLE_OBJECT_0001-{IFU:02d}.fits")
    fluxes = [table.header[f"ESO DRS MUSE FLAT FLUX {name}"] for name in ("LAMP", "SKY")]
    assert fluxes[0] == pytest.approx(fluxes[1], rel=1e-4)
    wave, data, x, y, dq = (table.read(n) for n in ("lambda", "data", "xpos", "ypos", "dq"))
    ccd_slice = table.read("origin").view(np.uint32) & 63
    expected = light_of(plan, scene_text(scene), (IFU,)).continuum(x, y, wave)
    lamp = light_of(first[2], "", (IFU,)).continuum(*np.zeros((2, 1), np.float32), wave)
    # away from lines of the sky, which are not in the continuum
    quiet = (wave > 5650) & (wave < 5750) & (dq == 0)
    ratio = data[quiet].astype(np.float64) / (expected / lamp)[quiet]
    # cosmic rays are in it too: medians
    by_slice = np.array([np.median(ratio[ccd_slice[quiet] == s]) for s in range(1, 49)])
    assert np.abs(by_slice / by_slice.mean() - 1).max() < 0.01
    columns = np.array([np.median(ratio[np.rint(x[quiet]) == k]) for k in range(-140, 141, 10)])
    assert np.abs(columns / columns.mean() - 1).max() < 0.01
