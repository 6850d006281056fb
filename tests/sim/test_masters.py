"""Master calibrations from the truth: they take out what the instrument does."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from musedask.errors import InputError, OutputExistsError
from musedask.io import calibrations as cal
from musedask.io import references as ref
from musedask.io.muse_image import read_muse_image, read_twilight_cube
from musedask.sim.association import archive_name, associate
from musedask.sim.detector import SCAN, Detector
from musedask.sim.masters import RECIPES, groups, master_name, overscans, write_masters
from musedask.sim.optics import Instrument
from musedask.sim.plan import ExposurePlan
from musedask.sim.render import render

IFU = 3


def plan(index, tag, time, exptime=0.0, start=None, **more):
    date = f"2018-11-08T{time}:00.000"
    return ExposurePlan(index, tag, date, exptime, template_start=start or date[:19], template="MUSE_cal", **more)


START = "2018-11-08T20:00:00"
PLANS = [
    plan(0, "BIAS", "20:00", start=START), plan(1, "BIAS", "20:01", start=START), plan(2, "BIAS", "20:02", start=START),
    plan(3, "DARK", "20:10", 1800.0), plan(4, "FLAT", "20:20", 0.35, lamp="continuum"),
    plan(5, "ARC", "20:30", 1.4, lamp="Ne"), plan(6, "SKYFLAT", "22:40", 3.0),
    plan(7, "STD", "23:10", 30.0, ra=88.1, dec=15.9), plan(8, "ASTROMETRY", "23:20", 30.0, ra=88.1, dec=15.9),
]  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_masters(tmp_path_factory.mktemp("masters"), PLANS, ifus=[IFU], names="drs")


def test_complete(written):
    assert set(written) == set(RECIPES)
    for category, (path,) in written.items():
        one = category in ("MASTER_BIAS", "MASTER_DARK", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE", "LSF_PROFILE")
        assert path.name == (f"{category}-03.fits" if one else f"{category}.fits")
        header = fits.getheader(path)
        assert header["ESO PRO CATG"] == category and header["ESO PRO REC1 ID"] == RECIPES[category]
        assert header["ESO PRO REC1 RAW1 NAME"].startswith("MUSE.2018-11-08T2") and header["PIPEFILE"] == path.name
        assert header.get("EXTNAME") == ("CHAN03" if one else None)
        assert header["ESO INS MODE"] == "WFM-NOAO-N" and header["ESO DET READ CURID"] == 1
        assert ("ESO DET OUT1 GAIN" in header) == one and "BZERO" not in header
    header = fits.getheader(written["MASTER_BIAS"][0])
    assert header["ESO PRO DATANCOM"] == 3 and header["ESO PRO REC1 PARAM2 VALUE"] == "vpoly"


def test_bias(written):
    """A bias minus its overscan minus the master is noise around 0."""
    master = read_muse_image(written["MASTER_BIAS"][0], ifu=IFU)
    assert master.unit == "adu"
    detector = Detector(IFU)
    raw = detector.expose(None, 0.0, (1, 0), cosmic_rays=False, drift=(0, 0, 0, 0)).image.astype(np.float64)
    # first quadrant; the overscan beside the data tells the level of each row
    level = raw[SCAN : SCAN + 2056, 2083:2112].mean(axis=1)
    smooth = np.polynomial.Polynomial.fit(np.arange(2056), level, 15)(np.arange(2056))
    rest = raw[SCAN : SCAN + 2056, SCAN : SCAN + 2048] - smooth[:, None] - master.data[:2056, :2048]
    good = master.dq[:2056, :2048] == 0
    assert abs(rest[good].mean()) < 0.05 and np.abs(rest.mean(axis=0)[good.all(axis=0)]).max() < 0.5
    assert rest[good].std() == pytest.approx(detector.read_noise[0] / detector.gain[0], rel=0.03)
    assert master.stat[0, 0] == pytest.approx((detector.read_noise[0] / detector.gain[0]) ** 2 / 3, rel=1e-5)
    mean, deviation = overscans(detector)[0]
    assert master.header["ESO DRS MUSE OVSC1 MEAN"] == pytest.approx(mean, abs=1e-3)
    strips = np.concatenate([raw[2091:2120, 32:2080].ravel(), raw[32:2120, 2083:2112].ravel()])
    assert strips.mean() == pytest.approx(mean, abs=0.1) and strips.std() == pytest.approx(deviation, rel=0.05)


def test_dark(written):
    master = read_muse_image(written["MASTER_DARK"][0])
    assert master.unit == "count" and master.header["EXPTIME"] == 3600
    assert 0.5 < np.median(master.data) < 10
    hot = Detector(IFU).hot_pixels
    bright = hot["index"][hot["rate"] * 3600 > 1000]
    assert len(bright) and (master.dq.ravel()[bright] == 0x100).all()
    assert (master.stat > 0).all()


def test_tables(written):
    optics = Instrument().ifu(IFU)
    np.testing.assert_array_equal(cal.read_trace_table(written["TRACE_TABLE"][0]).left, optics.left)
    wavecal = cal.read_wavecal_table(written["WAVECAL_TABLE"][0], ifu=IFU)
    np.testing.assert_array_equal(wavecal.coefficients, optics.wave)
    assert cal.read_lsf_profile(written["LSF_PROFILE"][0], ifu=IFU).data.shape == (48, 30, 150)
    assert ref.read_astrometry_wcs(written["ASTROMETRY_WCS"][0]).crpix == (0, 0)


class _Source:
    """An even source whose flux density depends on wavelength."""

    smooth = True
    line_waves = line_rates = np.empty(0)

    def __init__(self, instrument):
        self.instrument = instrument

    @staticmethod
    def flux(wave):
        return 100 * (1 + (np.asarray(wave, float) - 7000) / 5000)

    def continuum(self, x, y, wave):
        return self.flux(wave) * self.instrument.sensitivity(wave)

    def line_factor(self, x, y, wave):
        return 1.0


def test_flux_comes_out(written):
    """Flat field, twilight, spectrum of the lamp and response, as the reference applies them, give the flux."""
    flat = read_muse_image(written["MASTER_FLAT"][0], ifu=IFU)
    assert flat.data.mean(dtype=float) == pytest.approx(1, abs=1e-5)
    instrument = Instrument(vignetted=False)
    optics = instrument.ifu(IFU)
    exptime = 30.0
    slices = (1, 12, 25, 48)
    counts = render(optics, _Source(instrument), slices=slices) * exptime * Detector(IFU).response()
    wave = optics.wave_map()
    usable = (wave > 4780) & (wave < 9320) & (flat.dq == 0)
    good = usable & (counts > 0)
    w = wave[good].astype(np.float64)
    data = counts[good] / flat.data[good]
    # the twilight
    cube = read_twilight_cube(written["TWILIGHT_CUBE"][0])
    assert cube.flux[IFU] == pytest.approx(flat.header["ESO QC FLAT MASTER INTFLUX"], rel=1e-4)
    xs, ys = (np.zeros(wave.shape, np.float32) for _ in range(2))
    for s in slices:
        y = np.arange(1, 4113)
        left, right = optics.edges(s, y)
        x = np.arange(max(1, int(left.min())), min(4096, int(right.max()) + 1) + 1)
        inside = (x >= left[:, None]) & (x <= right[:, None])
        px, py = optics.position(s, x[None, :], y[:, None])
        part = np.s_[:, x[0] - 1 : x[-1]]
        xs[part][inside], ys[part][inside] = px[inside], py[inside]
    nx, ny = (np.rint(v[good] - zero).astype(int) for v, zero in ((xs, cube.x0), (ys, cube.y0)))
    data = data / cube.data[5, np.clip(ny, 0, cube.data.shape[1] - 1), np.clip(nx, 0, cube.data.shape[2] - 1)]
    # the spectrum of the flat field
    k = ((w - 4700) / 1.25).astype(int)
    everywhere = ((wave[usable].astype(np.float64) - 4700) / 1.25).astype(int)
    spectrum = np.bincount(everywhere, flat.data[usable]) / np.maximum(np.bincount(everywhere), 1)
    data = data * spectrum[k]
    response = ref.read_std_response(written["STD_RESPONSE"][0])
    assert response.flat_corrected
    found = 1e20 * data / (exptime * 1.25 * 10 ** (0.4 * np.interp(w, response.wave, response.response)))
    ratio = found / _Source.flux(w)
    assert np.median(ratio) == pytest.approx(1, abs=0.003)
    by_wave = np.bincount(k // 40, ratio) / np.maximum(np.bincount(k // 40), 1)
    assert np.abs(by_wave[by_wave > 0] - 1).max() < 0.01
    assert np.percentile(np.abs(ratio - 1), 99) < 0.03
    assert 0.05 < response.throughput[np.argmin(np.abs(response.wave - 7000))] < 0.5


def test_telluric(written):
    telluric = ref.read_std_telluric(written["STD_TELLURIC"][0])
    at = dict(zip(np.round(telluric.wave, 2), telluric.transmission, strict=True))
    assert min(v for w, v in at.items() if 7590 < w < 7650) < 0.8
    assert at[6700.0] > 0.98 and (telluric.transmission <= 1.000001).all() and (telluric.error > 0).all()


def test_names():
    assert master_name("MASTER_BIAS", PLANS[0]) == "M.MUSE.2018-11-08T20:00:01.000"
    names = {master_name(c, PLANS[0]) for c in RECIPES}
    assert len(names) == len(RECIPES)
    with pytest.raises(InputError, match="LINE_CATALOG"):
        master_name("LINE_CATALOG", PLANS[0])


def test_archive(tmp_path):
    """Merged files under the names of the archive, the same that associations say."""
    tags = ("TRACE_TABLE", "WAVECAL_TABLE", "LSF_PROFILE", "ASTROMETRY_WCS", "STD_TELLURIC")
    made = write_masters(tmp_path, PLANS, ifus=[1, IFU], tags=tags)
    assert sorted(made) == sorted(tags)
    path = made["TRACE_TABLE"][0]
    assert path.name == f"{master_name('TRACE_TABLE', PLANS[4])}.fits"
    np.testing.assert_array_equal(cal.read_trace_table(path, ifu=1).left, Instrument().ifu(1).left)
    assert cal.read_lsf_profile(made["LSF_PROFILE"][0], ifu=IFU).data.shape == (48, 30, 150)
    target = plan(20, "OBJECT", "23:40", 600.0, ra=88.1, dec=15.9)
    files = {p.stem for paths in made.values() for p in paths}

    def masters(category, first):
        return name if (name := master_name(category, first)) in files else None

    tree = associate(target, [*PLANS, target], masters=masters)
    found = dict(tree.all_files())
    assert files <= set(found) and found[path.stem] == "TRACE_TABLE"
    assert archive_name(PLANS[0]) in found  # no master bias was made
    with pytest.raises(OutputExistsError, match=path.name.replace(".", r"\.")):
        write_masters(tmp_path, PLANS, ifus=[1, IFU], tags=tags)


def test_groups():
    """One product of each template; single standard stars."""
    more = [*PLANS, plan(10, "BIAS", "21:00"), plan(11, "STD", "23:50", 30.0)]
    assert [[p.index for p in g] for g in groups(more, "BIAS")] == [[0, 1, 2], [10]]
    assert [[p.index for p in g] for g in groups(more, "STD")] == [[7], [11]]


def test_several_templates(tmp_path):
    more = [*PLANS, plan(10, "ARC", "21:00", 1.4, lamp="Xe")]
    made = write_masters(tmp_path, more, ifus=[1], tags=["WAVECAL_TABLE"], names="drs")["WAVECAL_TABLE"]
    assert [str(p.relative_to(tmp_path)) for p in made] == ["WAVECAL_TABLE-01.fits", "2/WAVECAL_TABLE-01.fits"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ifus": [0]}, "IFU 0"),
        ({"ifus": []}, "no IFU"),
        ({"names": "x"}, "names = 'x'"),
        ({"merged": False}, "no names in the archive"),
        ({"tags": ["LINE_CATALOG"]}, "category 'LINE_CATALOG'"),
    ],
)
def test_refuses(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        write_masters(tmp_path, PLANS, **{"ifus": [1], **options})


def test_refuses_without_exposures(tmp_path):
    with pytest.raises(InputError, match="no DARK exposure"):
        write_masters(tmp_path, PLANS[:3], ifus=[1], tags=["MASTER_DARK"])
    with pytest.raises(InputError, match="no FLAT exposure"):
        write_masters(tmp_path, [PLANS[6]], ifus=[1], tags=["TWILIGHT_CUBE"])
