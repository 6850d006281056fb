"""Static calibrations: complete, of the right form, and as the sky and the instrument are."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from musedask.errors import InputError, OutputExistsError
from musedask.instrument import CCD_TO_SKY_SLICE
from musedask.io import calibrations as cal
from musedask.io import references as ref
from musedask.io.muse_image import read_mask
from musedask.io.tables import list_filters, read_filter
from musedask.sim import statics
from musedask.sim.atmosphere import extinction, telluric
from musedask.sim.fields import astrometric_field
from musedask.sim.optics import Instrument
from musedask.sim.scene import Scene, standard_coordinates


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return statics.write_statics(tmp_path_factory.mktemp("static"), ifus=(1, 12))


def test_complete(written):
    assert set(written) == set(statics.FILES) - {"RAMAN_LINES"}
    for tag, path in written.items():
        with fits.open(path) as hdus:
            hdus.verify("exception")
            header = hdus[0].header
            assert header["ESO PRO CATG"] == tag and header["INSTRUME"] == "MUSE"
            # or the reference does not find it
            assert "PIPEFILE" not in header and "EXTNAME" not in header
    assert written["GEOMETRY_TABLE"].name == "geometry_table_wfm.fits"
    assert written["LSF_PROFILE"].name == "lsf_profile_wfm-n.fits"
    assert fits.getval(written["LSF_PROFILE"], "ESO INS MODE") == "WFM-NOAO-N"


def test_modes(tmp_path):
    tags = ("GEOMETRY_TABLE", "ASTROMETRY_WCS", "LSF_PROFILE")
    made = statics.write_statics(tmp_path, mode="NFM-AO-N", ifus=[3], tags=tags)
    assert [p.name for p in made.values()] == [
        "geometry_table_nfm.fits", "astrometry_wcs_nfm.fits", "lsf_profile_nfm-n.fits",
    ]  # fmt: skip
    solution = ref.read_astrometry_wcs(made["ASTROMETRY_WCS"])
    assert solution.cd == ((-0.02519 / 3600, 0.0), (0.0, 0.02542 / 3600))
    ao = statics.write_statics(tmp_path / "ao", mode="WFM-AO-E", ifus=[3], vignetted=False)
    assert "RAMAN_LINES" in ao and "VIGNETTING_MASK" not in ao
    lines, transitions = ref.read_sky_lines(ao["RAMAN_LINES"])
    assert transitions is None and set(vars(lines)) == {"name", "group", "wave", "flux", "dq"}


def test_refuses(tmp_path, written):
    for wrong, message in (
        ({"ifus": [25]}, "IFU 25"),
        ({"ifus": []}, "no IFU"),
        ({"mode": "WFM-X"}, "WFM-X"),
        ({"tags": ["MASTER_BIAS"]}, "MASTER_BIAS"),
        ({"stars": ["Vega"], "tags": ["STD_FLUX_TABLE"]}, "Vega"),
        ({"fields": [Scene()], "tags": ["ASTROMETRY_REFERENCE"]}, "coordinates"),
    ):
        with pytest.raises(InputError, match=message):
            statics.write_statics(tmp_path / "x", **{"ifus": [1], **wrong})
    folder = written["LINE_CATALOG"].parent
    before = sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir())
    with pytest.raises(OutputExistsError, match=r"line_catalog\.fits"):
        statics.write_statics(folder, ifus=[1])
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir())
    statics.write_statics(folder, ifus=[1, 12], tags=["LINE_CATALOG"], overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made a folder"):
        statics.write_statics(tmp_path / "file", ifus=[1])


def test_same_files_again(tmp_path, written):
    again = statics.write_statics(tmp_path, ifus=(1, 12))
    for tag, path in written.items():
        assert path.read_bytes() == again[tag].read_bytes(), tag


def test_line_catalog(written):
    catalog = ref.read_line_catalog(written["LINE_CATALOG"])
    assert set(catalog.lamp) == {"Ne", "Xe", "HgCd"}
    # what muse_wavecal needs: references of the width, lines over the whole range, seven of them well seen
    assert (catalog.quality == 5).sum() >= 3
    good = catalog.wave[catalog.quality >= 3]
    assert len(good) >= 20 and good.min() < 5100 and good.max() > 9000 and np.diff(good).max() < 900
    assert catalog.flux[catalog.quality >= 3].min() > 100
    # lines that everyone knows
    for wave in (5460.75, 5852.49, 6402.25, 8231.63):
        assert np.abs(catalog.wave - wave).min() < 0.02


def test_lsf_profile(written):
    optics = Instrument().ifu(12)
    profile = cal.read_lsf_profile(written["LSF_PROFILE"], ifu=12)
    assert profile.data.shape == (48, 30, 150) and profile.data.min() >= 0
    np.testing.assert_allclose(profile.data.sum(axis=2, dtype=float) * profile.offset_step, 1, rtol=1e-6)
    mean = profile.data @ profile.offset * profile.offset_step
    assert np.abs(mean).max() < 0.03
    widths = []
    for row in profile.data.reshape(-1, 150)[::29]:
        inside = np.flatnonzero(row >= row.max() / 2)
        widths.append((inside[-1] - inside[0] + 1) * profile.offset_step)
    # broader than the profile without pixels, by about the variance of one
    bare = 2.3548 * np.median(optics.lsf_sigma(24, profile.wave))
    assert 2.3 < np.median(widths) < 3.0 and np.median(widths) > bare
    # a line drawn over pixels
    k, s = 15, 20
    x, _ = optics.middle(s)
    y = np.round(optics.row(s, x, profile.wave[k])) + np.arange(-3, 4)
    low, high = (optics.wavelength(s, x, y + d) - profile.wave[k] for d in (-0.5, 0.5))
    light = optics.lsf_integral(s, profile.wave[k], high) - optics.lsf_integral(s, profile.wave[k], low)
    expected = light / (high - low)
    found = np.interp((low + high) / 2, profile.offset, profile.data[s - 1, k])
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_geometry_and_mask(written):
    table = cal.read_geometry_table(written["GEOMETRY_TABLE"])
    assert len(table.ifu) == 96 and set(table.ifu) == {1, 12}
    one = table.of_ifu(12)
    optics = Instrument().ifu(12)
    np.testing.assert_array_equal(one.x, optics.x)
    np.testing.assert_array_equal(one.width, optics.width)
    assert tuple(one.sky_slice) == CCD_TO_SKY_SLICE
    assert np.abs(one.angle).max() < 1 and (np.abs(one.width - 75) < 1.5).all()
    mask = read_mask(written["VIGNETTING_MASK"])
    y, x = np.nonzero(mask.data)
    x, y = x + mask.crval[0], y + mask.crval[1]
    # the lower right corner, and not more of it
    assert not mask.celestial and x.min() > 50 and y.max() < -50
    inside = (np.abs(x) < 150) & (np.abs(y) < 150)
    assert 50 < inside.sum() < 3000


def test_bad_pixels(written):
    tables = cal.read_badpix_table(written["BADPIX_TABLE"])
    assert set(tables) == {1, 12}
    for bad in tables.values():
        assert len(bad.x) > 100 and (bad.status != 0).all()
        assert bad.x.min() >= 33 and bad.x.max() <= 4192 and bad.y.min() >= 33 and bad.y.max() <= 4208
        # none in the overscan
        assert not ((bad.x > 2080) & (bad.x < 2145)).any() and not ((bad.y > 2088) & (bad.y < 2153)).any()


def test_filters(written):
    path = written["FILTER_LIST"]
    names = list_filters(path)
    assert {"Johnson_V", "Cousins_R", "Cousins_I", "SDSS_g", "SDSS_r", "SDSS_i", "SDSS_z"} == set(names)
    middles = []
    for name in names:
        item = read_filter(path, name)
        assert item.throughput.max() == 1 and item.throughput[0] == item.throughput[-1] == 0
        middle = np.average(item.wave, weights=item.throughput)
        middles.append(middle)
        # AB: 3.631e-20 erg/s/cm2/Hz at the effective wavelength
        assert item.zp_ab == pytest.approx(-2.5 * np.log10(3.631e-20 * 2.998e18 / middle**2), abs=0.05)
        assert abs(item.zp_vega - item.zp_ab) < 0.6
    assert read_filter(path, "Johnson_V").zp_vega == pytest.approx(21.10, abs=0.03)  # 3.63e-9 erg/s/cm2/A
    assert read_filter(path, "Cousins_I").zp_vega == pytest.approx(22.39, abs=0.05)


def test_atmosphere(written):
    table = ref.read_extinct_table(written["EXTINCT_TABLE"])
    assert table.wave[0] <= 4600 and table.wave[-1] >= 9400
    wave = np.linspace(4650, 9300, 500)
    np.testing.assert_allclose(np.interp(wave, table.wave, table.extinction), extinction(wave), atol=5e-3)
    assert np.interp(5500, table.wave, table.extinction) == pytest.approx(0.12, abs=0.04)
    regions = ref.read_telluric_regions(written["TELLURIC_REGIONS"])
    assert (regions.background_low < regions.low).all() and (regions.low < regions.high).all()
    assert (regions.low[1:] > regions.high[:-1]).all()
    # what is deep is inside
    fine = np.arange(6200.0, 9350.0, 1.0)
    smooth = np.convolve(telluric(fine), np.ones(5) / 5, "same")[5:-5]
    inside = ((fine[5:-5, None] > regions.low) & (fine[5:-5, None] < regions.high)).any(axis=1)
    assert (smooth[~inside] > 0.9).all() and np.mean(1 - smooth[inside]) > 5 * np.mean(1 - smooth[~inside])
    lines, _ = ref.read_sky_lines(written["SKY_LINES"])
    assert np.abs(lines.wave - 5577.34).min() < 0.05 and lines.flux[np.argmin(np.abs(lines.wave - 5577.34))] > 1000
    assert (lines.dq == 0).all() and lines.group.min() >= 0 and len(lines.wave) > 100


def test_stars(written):
    stars = ref.read_std_flux_table(written["STD_FLUX_TABLE"])
    star = next(s for s in stars if s.name == "GD 71")
    assert (star.ra, star.dec) == (pytest.approx(88.115, abs=0.001), pytest.approx(15.887, abs=0.001))
    assert star.wave[0] < 4600 and star.wave[-1] > 9400
    # V = 13.03
    assert np.interp(5450, star.wave, star.flux) == pytest.approx(3.63e-9 * 10 ** (-0.4 * 13.03), rel=0.03)
    np.testing.assert_allclose(star.error, 0.01 * star.flux)


def test_astrometry(written):
    (region,) = ref.read_astrometry_reference(written["ASTROMETRY_REFERENCE"])
    scene = astrometric_field()
    assert (region.ra, region.dec) == (scene.ra, scene.dec) and len(region.mag) == len(scene.stars)
    xi, eta = standard_coordinates(region.source_ra, region.source_dec, scene.ra, scene.dec)
    np.testing.assert_allclose(xi, [s.dra for s in scene.stars], atol=1e-6)
    np.testing.assert_allclose(eta, [s.ddec for s in scene.stars], atol=1e-6)
    solution = ref.read_astrometry_wcs(written["ASTROMETRY_WCS"])
    assert solution.cd == ((-0.2 / 3600, 0.0), (0.0, 0.2 / 3600)) and solution.crpix == (0, 0)
