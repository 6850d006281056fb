"""Truth beside a night: written, read back, and worked out again where it was not written."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import musedask
from musedask.errors import InputError, OutputExistsError
from musedask.io.tables import read_offset_list, write_offset_list
from musedask.sim.atmosphere import sky_continuum
from musedask.sim.detector import Detector
from musedask.sim.fields import standard_star
from musedask.sim.optics import NX, Instrument
from musedask.sim.plan import Conditions, ExposurePlan, ObservingBlock
from musedask.sim.scene import Background, Scene, Star
from musedask.sim.truth import NightTruth, plan_from_dict, write_cosmics, write_instrument_truth, write_truth

SCENE = Scene((Star(2.0, 1.0, 50000.0),), background=Background(5.0), ra=30.0, dec=-25.0)
OBJECT = ExposurePlan(
    1, "OBJECT", "2018-11-09T03:00:00.000", 600.0, ra=30.001, dec=-25.0, pointing_error=(0.5, -0.25), offset=(1.0, 0.0),
    posang=33.0, scene="field", ob=ObservingBlock(5, "OB"), conditions=Conditions(seeing=0.9),
)  # fmt: skip
DARK = ExposurePlan(0, "DARK", "2018-11-08T20:00:00.000", 1800.0)
STD = replace(OBJECT, index=2, tag="STD", date_obs="2018-11-09T06:00:00.000", scene="standard GD 71", ra=88.115,
              dec=15.887, offset=(0.0, 0.0))  # fmt: skip


@pytest.fixture
def night(tmp_path):
    """A folder with the index of a night, as `simulate_plans` writes it."""
    scenes = {"field": SCENE, "standard GD 71": standard_star("GD 71").scene}
    job = {
        "version": "1", "seed": 7, "ifus": [3, 4], "compress": False,
        "scenes": {name: scene.to_dict() for name, scene in scenes.items()},
        "exposures": [{"file": f"MUSE.{p.date_obs}.fits", **asdict(p)} for p in (DARK, OBJECT, STD)],
    }  # fmt: skip
    (tmp_path / "night.json").write_text(json.dumps(job))
    return tmp_path


def test_plans_survive(night):
    truth = NightTruth.open(night)
    assert [e.plan for e in truth.exposures] == [DARK, OBJECT, STD]
    assert truth.exposures[1].path == night / "raw" / "MUSE.2018-11-09T03:00:00.000.fits"
    assert truth.ifus == (3, 4) and truth.seed == 7 and truth.scenes["field"] == SCENE
    assert truth.select("STD", "DARK") == [truth.exposures[0], truth.exposures[2]]
    assert truth.find(truth.exposures[2].path) == truth.find(STD.date_obs) == truth.exposures[2]
    with pytest.raises(InputError, match="no exposure of the night"):
        truth.find("other.fits")
    with pytest.raises(InputError, match="a plan has index"):
        plan_from_dict({"nonsense": 1})


def test_instrument(night):
    """The same from files and from nothing."""
    before = NightTruth.open(night)
    calculated = before.trace_table(3), before.wavecal_table(3), before.geometry_table(), before.bad_pixels(4)
    write_truth(night, [DARK, OBJECT, STD], (3, 4), wave_maps=False)
    names = {p.name for p in (night / "truth").iterdir()}
    assert names >= {"TRACE_TABLE-03.fits", "WAVECAL_TABLE-04.fits", "GEOMETRY_TABLE.fits", "BADPIX_TABLE.fits"}
    truth = NightTruth.open(night)
    read = truth.trace_table(3), truth.wavecal_table(3), truth.geometry_table(), truth.bad_pixels(4)
    optics = Instrument().ifu(3)
    for a, b in zip(calculated[:2], read[:2], strict=True):
        for key, value in vars(a).items():
            if key not in ("header", "width"):
                np.testing.assert_array_equal(value, getattr(b, key))
    np.testing.assert_array_equal(read[0].left, optics.left)
    assert read[0].width == pytest.approx(calculated[0].width, rel=1e-6)
    assert (np.abs(read[0].width - 77) < 5).all()
    np.testing.assert_array_equal(read[2].of_ifu(4).x, calculated[2].of_ifu(4).x)
    np.testing.assert_array_equal(read[3].x, calculated[3].x)
    # the tables say the same as the optics
    left, right = read[0].edges(17, 1234.0)
    np.testing.assert_allclose([left, right], optics.edges(17, 1234.0), atol=1e-9)
    np.testing.assert_allclose(read[1].wavelength(17, 1400.0, 900.0), optics.wavelength(17, 1400.0, 900.0), atol=1e-6)
    with pytest.raises(InputError, match=r"IFU 5 found, the night .* has 3, 4"):
        truth.trace_table(5)
    with pytest.raises(OutputExistsError):
        write_truth(night, [DARK], (3, 4), wave_maps=False)


def test_wave_map(night):
    write_instrument_truth(night, Instrument(), [3])
    truth = NightTruth.open(night)
    wave = truth.wave_map(3)
    assert wave.shape == (4112, 4096) and (night / "truth" / "WAVE_MAP-03.fits").exists()
    y, x = np.argwhere(wave > 0)[[5, 100000]].T
    for yy, xx in zip(y, x, strict=True):
        edges = [truth.trace_table(3).edges(s, yy + 1) for s in range(1, 49)]
        s = next(s for s, (left, right) in enumerate(edges, 1) if left <= xx + 1 <= right)
        assert wave[yy, xx] == pytest.approx(truth.wavecal_table(3).wavelength(s, xx + 1.0, yy + 1.0), abs=1e-3)


def test_cosmics(night):
    truth = NightTruth.open(night)
    frame = Detector(3).expose(None, DARK.exptime, (7, DARK.index))
    again = truth.cosmics(truth.exposures[0], 3)
    np.testing.assert_array_equal(again[0], frame.cosmic_pixels)
    write_cosmics(night, DARK, {3: (frame.cosmic_pixels, frame.cosmic_charge)})
    pixels, charge = truth.cosmics(truth.exposures[0], 3)
    np.testing.assert_array_equal(pixels, frame.cosmic_pixels)
    np.testing.assert_array_equal(charge, frame.cosmic_charge)
    with fits.open(night / "truth" / "MUSE.2018-11-08T20:00:00.000_COSMICS.fits") as hdus:
        table = hdus["CHAN03"].data
        y, x = divmod(int(frame.cosmic_pixels[0]), NX)
        assert (table["x"][0], table["y"][0]) == (x + 1, y + 1)
    with pytest.raises(InputError, match="no table of IFU 4"):
        truth.cosmics(truth.exposures[0], 4)


def test_rate(night):
    truth = NightTruth.open(night)
    assert truth.rate(truth.exposures[0], 3) is None
    image = np.arange(4112 * 4096, dtype=np.float32).reshape(4112, 4096)
    (night / "truth").mkdir()
    fits.writeto(night / "truth" / "MUSE.2018-11-09T03:00:00.000_RATE-03.fits", image)
    np.testing.assert_array_equal(truth.rate(truth.exposures[1], 3), image)


def test_sky(night):
    truth = NightTruth.open(night)
    calculated = truth.sky(truth.exposures[1])
    write_truth(night, [DARK, OBJECT], (3,), wave_maps=False)
    lines, continuum = truth.sky(truth.exposures[1])
    np.testing.assert_array_equal(lines.flux, calculated[0].flux)
    np.testing.assert_array_equal(continuum.flux, calculated[1].flux)
    np.testing.assert_allclose(continuum.flux[::100], sky_continuum(continuum.wave[::100], OBJECT), rtol=1e-12)
    assert not list((night / "truth").glob("*T20:00*"))


def test_offsets(night, tmp_path):
    rows = NightTruth.open(night).offsets()
    assert [r["date_obs"] for r in rows] == [OBJECT.date_obs]
    write_offset_list(tmp_path / "o.fits", rows)
    offset = read_offset_list(tmp_path / "o.fits").find(OBJECT.date_obs)
    # header minus true coordinate
    assert offset.ra == pytest.approx(OBJECT.header_ra - OBJECT.ra, abs=1e-12)
    assert offset.dec == pytest.approx(OBJECT.header_dec - OBJECT.dec, abs=1e-12)


def grid(scale=0.2, n=61):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [SCENE.ra, SCENE.dec]
    wcs.wcs.crpix = [(n + 1) / 2] * 2
    wcs.wcs.cd = np.diag([-scale / 3600, scale / 3600])
    wcs.pixel_shape = (n, n)
    return wcs


@pytest.mark.parametrize("scale", [0.2, 0.4])
def test_truth_cube(night, scale):
    """The star is where it is, with its flux, whatever the size of the spaxels."""
    truth = NightTruth.open(night)
    n = round(12 / scale) + 1
    cube = truth.truth_cube(grid(scale, n), [7000.0, 7001.25], fwhm=0.8)
    assert cube.shape == (2, n, n)
    area = (scale / 0.2) ** 2
    star = cube[0] - 5.0 * area
    y, x = np.mgrid[:n, :n]
    total = star.sum()
    assert total == pytest.approx(50000.0, rel=0.02)
    # east is at smaller x
    middle = (n - 1) / 2
    assert (star * x).sum() / total - middle == pytest.approx(-2.0 / scale, abs=0.1)
    assert (star * y).sum() / total - middle == pytest.approx(1.0 / scale, abs=0.1)
    # seeing of the exposure: 0.9 arcsec at zenith and 5000 Angstrom, less in the red
    seen = truth.truth_cube(grid(scale, n), [7000.0])[0]
    assert seen.max() < cube[0].max()


@pytest.mark.parametrize("name", ["t.fits", "t.zarr"])
def test_write_truth_cube(night, tmp_path, name):
    truth = NightTruth.open(night)
    wave = 6500 + 1.25 * np.arange(5)
    path = truth.write_truth_cube(tmp_path / name, grid(), wave, fwhm=0.8)
    cube = musedask.open_cube(path)
    np.testing.assert_allclose(cube.wavelength, wave)
    np.testing.assert_array_equal(cube.flux, truth.truth_cube(grid(), wave, fwhm=0.8))
    assert cube.flux.attrs["units"] == "10**(-20)*erg/s/cm**2/Angstrom"
    celestial = cube.muse.to_wcs().celestial
    np.testing.assert_allclose(celestial.wcs_pix2world([[30, 30]], 0), [[SCENE.ra, SCENE.dec]], atol=1e-9)
    # and on the grid of a cube
    again = truth.truth_cube(path, fwhm=0.8)
    np.testing.assert_allclose(again, cube.flux, rtol=1e-5)
    with pytest.raises(OutputExistsError):
        truth.write_truth_cube(tmp_path / name, grid(), wave)
    with pytest.raises(InputError, match="not evenly spaced"):
        truth.write_truth_cube(tmp_path / f"x{name}", grid(), [6500.0, 6501.0, 6505.0])


def test_bad_grids_and_exposures(night):
    truth = NightTruth.open(night)
    with pytest.raises(InputError, match="no wavelengths"):
        truth.truth_cube(grid())
    wcs = grid()
    wcs.pixel_shape = None
    with pytest.raises(InputError, match="no size"):
        truth.truth_cube(wcs, [7000.0])
    with pytest.raises(InputError, match="no scene ''"):
        truth.scene(truth.exposures[0])


@pytest.mark.parametrize("text", [None, "{", "{}", "[]", '{"ifus": [1], "seed": 1}'])
def test_no_night(tmp_path, text):
    if text is not None:
        (tmp_path / "night.json").write_text(text)
    with pytest.raises(InputError, match=r"night\.json"):
        NightTruth.open(tmp_path)
