"""Simulated pixel tables: layout, truth, statistics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from astropy.io import fits

from musedask.errors import InputError, OutputExistsError
from musedask.instrument import unpack_origin
from musedask.io.headers import PIXTABLE
from musedask.io.pixtable import scan_pixtable
from musedask.sim import Background, Scene, SimulatedSet, simulate_pixtables

SMALL = {
    "n_exposures": 2,
    "ifus": (12, 13),
    "slices": 12,
    "slice_width": 20,
    "wave_range": (6555.0, 6572.0),
    "rotations": (0.0, 90.0, 33.0),
}


def columns(path):
    table = scan_pixtable(path)
    return {name: table.read(name) for name in table.columns}


def position(phi, theta, ra0, dec0):
    """From the projected to the positioned stage; angles in degrees."""
    phi, theta = phi.astype(float), theta.astype(float) + np.pi / 2
    d = np.radians(dec0)
    ra = np.arctan2(
        np.cos(theta) * np.sin(phi), np.sin(theta) * np.cos(d) + np.cos(theta) * np.sin(d) * np.cos(phi)
    )
    dec = np.arcsin(np.sin(theta) * np.sin(d) - np.cos(theta) * np.cos(d) * np.cos(phi))
    return ra0 + np.degrees(ra), np.degrees(dec)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return simulate_pixtables(
        tmp_path_factory.mktemp("clean"),
        **{**SMALL, "n_exposures": 3},
        noise=False,
        pointing_errors=[(2.0, -1.0), (0.5, 0.7), (-1.2, 0.1)],
        flux_scales=(1.0, 1.25, 0.8),
        exptimes=(900, 600),
    )


def test_layout(clean):
    table = scan_pixtable(clean.paths[0])
    header, c = table.header, columns(clean.paths[0])
    assert table.stage == "rad" and table.n_rows == clean.exposures[0].n_rows == len(c["data"])
    assert not any(np.isnan(v).any() for v in c.values())
    x, y, ifu, ccd_slice = unpack_origin(c["origin"])
    assert set(ifu) == {12, 13} and set(ccd_slice) == set(range(1, 13))
    # order of the rows: IFU, slice, detector row, detector column
    key = ((ifu.astype(np.int64) * 64 + ccd_slice) * 8192 + y) * 128 + x
    assert (np.diff(key) > 0).all()
    assert y.min() >= 1 and y.max() <= 4112 and x.min() > 0
    offsets = {
        (i, s): header[f"{PIXTABLE} EXP0 IFU{i:02d} SLICE{s:02d} XOFFSET"]
        for i in (12, 13)
        for s in range(1, 13)
    }
    absolute = x + np.array([offsets[i, s] for i, s in zip(ifu, ccd_slice, strict=True)])
    assert absolute.min() >= 1 and absolute.max() <= 4096
    for name, column in (("X", "xpos"), ("Y", "ypos"), ("LAMBDA", "lambda")):
        for side, function in (("LOW", np.min), ("HIGH", np.max)):
            value = float(function(c[column]))
            assert header[f"{PIXTABLE} LIMITS {name} {side}"] == float(f"{value:.7g}")
    assert (header[f"{PIXTABLE} LIMITS IFU LOW"], header[f"{PIXTABLE} LIMITS SLICE HIGH"]) == (12, 12)
    assert header[f"{PIXTABLE} TYPE"] == "GEOFULL" and header[f"{PIXTABLE} MERGED"] == 2
    assert header[f"{PIXTABLE} WCS"] == "projected (intermediate)"
    # the dispersion is 1.25 Angstrom per row, but no two slices have the same wavelengths
    one = (ifu == 12) & (ccd_slice == 3) & (x == x[(ifu == 12) & (ccd_slice == 3)][40])
    assert np.diff(c["lambda"][one]) == pytest.approx(1.25, abs=0.01)


def test_header_is_consistent(clean):
    headers = [scan_pixtable(p).header for p in clean.paths]
    assert [h["DATE-OBS"] for h in headers] == sorted({h["DATE-OBS"] for h in headers})
    for header, exposure in zip(headers, clean.exposures, strict=True):
        assert len(header["DATE-OBS"]) == 23
        assert header["EXPTIME"] == exposure.exptime
        assert 1 <= header["ESO TEL AIRM START"] < 1.5
        # the hour angle of sidereal time and right ascension is small: the target is near the meridian
        assert abs((header["LST"] / 240 - header["RA"] + 180) % 360 - 180) < 25
        assert (header["CTYPE1"], header["CUNIT2"]) == ("RA---TAN", "deg")
        cd = np.array([[header[f"CD{i}_{j}"] for j in (1, 2)] for i in (1, 2)])
        assert np.linalg.det(cd) == pytest.approx(-((0.2 / 3600) ** 2))
    assert headers[1]["CD1_2"] == pytest.approx(0.2 / 3600)
    with fits.open(clean.paths[0]) as hdus:
        hdus.verify("exception")


def test_every_row_is_the_scene_at_its_true_position(clean):
    with fits.open(clean.offset_list) as hdus:
        rows = np.array(hdus[1].data)
        assert hdus[1].columns["DATE_OBS"].format == "23A"
    for path, row in zip(clean.paths, rows, strict=True):
        header, c = scan_pixtable(path).header, columns(path)
        assert row["DATE_OBS"].decode() == header["DATE-OBS"]
        ra, dec = header["RA"] - row["RA_OFFSET"], header["DEC"] - row["DEC_OFFSET"]
        truth = clean.truth_at(*position(c["xpos"], c["ypos"], ra, dec), c["lambda"])
        np.testing.assert_allclose(c["data"] * row["FLUX_SCALE"], truth, rtol=2e-3)
    assert rows["FLUX_SCALE"].tolist() == [1.0, 1.25, 0.8]
    assert rows["RA_OFFSET"][0] * 3600 == pytest.approx(2.0, abs=0.002)
    assert rows["DEC_OFFSET"][0] * 3600 == pytest.approx(-1.0, abs=0.002)


def test_stages_agree(tmp_path, clean):
    common = {**SMALL, "n_exposures": 1, "noise": False, "rotations": (33.0,), "scene": clean.scene}
    sets = {s: simulate_pixtables(tmp_path / s, **common, stage=s) for s in ("pix", "rad", "deg")}
    pix, rad, deg = (columns(s.paths[0]) for s in sets.values())
    exposure = sets["rad"].exposures[0]
    ra, dec = position(rad["xpos"], rad["ypos"], exposure.header_ra, exposure.header_dec)
    np.testing.assert_allclose(deg["xpos"], ra - exposure.header_ra, atol=1e-10)
    np.testing.assert_allclose(deg["ypos"], dec - exposure.header_dec, atol=1e-10)
    header = scan_pixtable(sets["rad"].paths[0]).header
    x, y = pix["xpos"] - header["CRPIX1"], pix["ypos"] - header["CRPIX2"]
    np.testing.assert_allclose(
        1 / np.tan(rad["ypos"].astype(float) + np.pi / 2), np.radians(np.hypot(x, y) * 0.2 / 3600), atol=2e-7
    )
    for stage, tag in (("pix", "OBJECT"), ("rad", "REDUCED"), ("deg", "POSITIONED")):
        table = scan_pixtable(sets[stage].paths[0])
        assert table.stage == stage and table.header["ESO PRO CATG"] == f"PIXTABLE_{tag}"
        np.testing.assert_array_equal(columns(sets[stage].paths[0])["data"], pix["data"])
    head = scan_pixtable(sets["deg"].paths[0]).header
    assert head["CRVAL1"] == head["RA"]
    assert head[f"{PIXTABLE} LIMITS X LOW"] == pytest.approx(head["RA"] + deg["xpos"].min(), abs=1e-4)


def test_same_seed_same_bytes_whatever_the_threads(tmp_path):
    options = {**SMALL, "cosmic_rays": 2e-3, "bad_pixels": 5e-3}
    one = simulate_pixtables(tmp_path / "a", **options, threads=1, seed=5)
    two = simulate_pixtables(tmp_path / "b", **options, threads=3, seed=5)
    other = simulate_pixtables(tmp_path / "c", **options, seed=6, scene=one.scene)
    for a, b in zip(one.paths, two.paths, strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert one.truth_path.read_bytes() == two.truth_path.read_bytes()
    assert not np.array_equal(columns(one.paths[0])["data"], columns(other.paths[0])["data"])
    # a slice does not depend on which others are there
    part = simulate_pixtables(
        tmp_path / "d", **{**options, "ifus": (13,)}, seed=5, scene=one.scene, overwrite=True
    )
    whole, alone = columns(one.paths[0]), columns(part.paths[0])
    chosen = unpack_origin(whole["origin"])[2] == 13
    for name in ("lambda", "dq", "origin"):
        np.testing.assert_array_equal(whole[name][chosen], alone[name])


def test_noise_has_the_variance_that_is_written(tmp_path):
    options = {**SMALL, "n_exposures": 1, "scene": Scene(background=Background(100.0))}
    noisy = columns(simulate_pixtables(tmp_path / "n", **options).paths[0])
    clean = columns(simulate_pixtables(tmp_path / "c", **options, noise=False).paths[0])
    np.testing.assert_array_equal(noisy["stat"], clean["stat"])
    pull = (noisy["data"] - clean["data"]) / np.sqrt(clean["stat"])
    n = len(pull)
    assert abs(pull.mean()) < 4 / math.sqrt(n)
    assert pull.std() == pytest.approx(1, abs=4 / math.sqrt(2 * n))
    short = columns(simulate_pixtables(tmp_path / "s", **options, exptimes=(100,)).paths[0])
    assert np.median(short["stat"]) > 9 * np.median(noisy["stat"])


def test_cosmic_rays_and_bad_pixels(tmp_path):
    options = {**SMALL, "noise": False, "scene": Scene(background=Background(20.0))}
    plain = simulate_pixtables(tmp_path / "p", **options)
    hit = simulate_pixtables(tmp_path / "h", **options, cosmic_rays=0.01)
    for a, b in zip(plain.paths, hit.paths, strict=True):
        before, after, rows = columns(a), columns(b), hit.cosmic_rows(b)
        assert 0.003 < len(rows) / len(after["data"]) < 0.03
        np.testing.assert_array_equal(rows, np.flatnonzero(after["data"] != before["data"]))
        assert (after["data"] - before["data"])[rows].min() > 10 * np.sqrt(before["stat"]).max()
        assert (after["dq"] == 0).all()
    assert not np.array_equal(hit.cosmic_rows(hit.paths[0]), hit.cosmic_rows(hit.paths[1]))
    bad = simulate_pixtables(tmp_path / "b", **options, bad_pixels=0.02)
    first, second = (columns(p)["dq"] != 0 for p in bad.paths)
    np.testing.assert_array_equal(first, second)
    assert 0.01 < first.mean() < 0.03
    good = ~first
    np.testing.assert_array_equal(columns(bad.paths[0])["data"][good], columns(plain.paths[0])["data"][good])


def test_forms_and_weight(tmp_path):
    options = {**SMALL, "exptimes": (900.0, 300.0)}
    image = simulate_pixtables(tmp_path / "i", **options, weight=True)
    table = simulate_pixtables(tmp_path / "t", **options, weight=True, form="table")
    for a, b in zip(image.paths, table.paths, strict=True):
        assert (scan_pixtable(a).form, scan_pixtable(b).form) == ("image", "table")
        first, second = columns(a), columns(b)
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
    assert set(columns(image.paths[1])["weight"]) == {np.float32(300 / 900)}
    assert scan_pixtable(image.paths[0]).header[f"{PIXTABLE} WEIGHTED"] is True


def test_per_ifu(tmp_path):
    merged = simulate_pixtables(tmp_path / "m", **SMALL, cosmic_rays=1e-3)
    parts = simulate_pixtables(tmp_path / "p", **SMALL, per_ifu=True, flat_field=True, cosmic_rays=1e-3)
    assert [p.name[-8:] for p in parts.paths] == ["-12.fits", "-13.fits"] * 2
    tables = [scan_pixtable(p) for p in parts.paths[:2]]
    assert [t.ifu for t in tables] == [12, 13]
    fluxes = [t.header["ESO DRS MUSE FLAT FLUX SKY"] for t in tables]
    whole, start = columns(merged.paths[0]), 0
    spectra = [t.read_flat_field() for t in tables]
    assert all(s is not None and len(s[0]) > 3000 for s in spectra)
    mean = np.mean([s[1] for s in spectra], axis=0)
    for table, flux in zip(tables, fluxes, strict=True):
        c, stop = columns(table.path), start + table.n_rows
        correction = fluxes[0] / flux * np.interp(c["lambda"], spectra[0][0], mean)
        np.testing.assert_allclose(c["data"] * correction, whole["data"][start:stop], rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(c["stat"] * correction**2, whole["stat"][start:stop], rtol=1e-4)
        np.testing.assert_array_equal(c["xpos"], whole["xpos"][start:stop])
        np.testing.assert_array_equal(
            parts.cosmic_rows(table.path) + start,
            [r for r in merged.cosmic_rows(merged.paths[0]) if start <= r < stop],
        )
        header = table.header
        assert f"{PIXTABLE} MERGED" not in header
        assert header[f"{PIXTABLE} LIMITS LAMBDA LOW"] == float(f"{c['lambda'].min():.7g}")
        start = stop
    assert start == len(whole["data"])


def test_row_limit(tmp_path):
    sim = simulate_pixtables(tmp_path, **{**SMALL, "n_exposures": 1, "n_rows_limit": 3000})
    assert 2400 < scan_pixtable(sim.paths[0]).n_rows <= 3000
    # the smile of a slice leaves a few rows in the narrowest range
    sim = simulate_pixtables(tmp_path / "x", **{**SMALL, "n_exposures": 1, "n_rows_limit": 5})
    assert 1 <= scan_pixtable(sim.paths[0]).n_rows <= 5
    with pytest.raises(InputError, match="n_rows_limit"):
        simulate_pixtables(tmp_path / "y", **{**SMALL, "n_rows_limit": 0})


def test_modes(tmp_path):
    one = {**SMALL, "n_exposures": 1}
    ao = simulate_pixtables(tmp_path / "ao", **{**one, "wave_range": (5960, 5970)}, mode="WFM-AO-N")
    c = columns(ao.paths[0])
    np.testing.assert_array_equal(c["dq"] != 0, c["lambda"] < 5966)
    assert set(c["dq"][c["dq"] != 0]) == {0x8000000}
    nfm = simulate_pixtables(tmp_path / "nfm", **one, mode="NFM-AO-N")
    header = scan_pixtable(nfm.paths[0]).header
    assert header["CD1_1"] == pytest.approx(-0.02519 / 3600)
    assert nfm.scene.fwhm == pytest.approx(0.10076)


def test_mosaic(tmp_path):
    sim = simulate_pixtables(tmp_path, **{**SMALL, "n_exposures": 4}, mosaic="2x2", offsets=[(0, 0)])
    x, y = np.array([sim.offsets_of(e.ra, e.dec) for e in sim.exposures]).T
    assert len(set(np.round(x, 1))) == 2 and len(set(np.round(y, 1))) == 2
    # four stacks of 20 spaxels of which one is used: the field has the size of the data
    assert np.ptp(x) == pytest.approx(0.9 * 20 * 0.2, rel=0.1)
    assert np.ptp(y) == pytest.approx(0.9 * 24 * 0.2, rel=0.1)


def test_truth_cube_and_reopening(tmp_path):
    sim = simulate_pixtables(tmp_path, **SMALL)
    again = SimulatedSet.open(tmp_path)
    assert again == sim
    header = fits.Header(
        {
            "NAXIS": 2, "NAXIS1": 7, "NAXIS2": 5, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN",
            "CRVAL1": sim.ra, "CRVAL2": sim.dec, "CRPIX1": 4.0, "CRPIX2": 3.0, "CUNIT1": "deg",
            "CUNIT2": "deg", "CD1_1": -0.2 / 3600, "CD2_2": 0.2 / 3600, "CD1_2": 0.0, "CD2_1": 0.0,
        }
    )  # fmt: skip
    cube = again.truth_cube(header, np.array([6560.0, 6562.8]))
    assert cube.shape == (2, 5, 7)
    expected = sim.scene.surface_brightness([0.6, 0, -0.6], [0, 0.4, -0.4], 6562.8)
    assert [cube[1, 2, 0], cube[1, 4, 3], cube[1, 0, 6]] == pytest.approx(expected, rel=1e-4)
    truth = json.loads(sim.truth_path.read_text())
    assert truth["parameters"]["seed"] == 1 and len(truth["exposures"]) == 2
    sof = sim.write_sof(tmp_path / "in.sof").read_text().splitlines()
    assert len(sof) == 3 and sof[0].endswith(" PIXTABLE_REDUCED") and sof[2].endswith(" OFFSET_LIST")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_exposures": 0}, "n_exposures"),
        ({"ifus": (0, 3)}, "ifus"),
        ({"slices": 49}, "slices"),
        ({"slices": (0,)}, "slices"),
        ({"stage": "arcsec"}, "stage"),
        ({"form": "text"}, "form"),
        ({"slice_width": 100}, "slice_width"),
        ({"cosmic_rays": 2}, "cosmic_rays"),
        ({"bad_pixels": -1}, "bad_pixels"),
        ({"flat_field": True}, "flat_field"),
        ({"exptimes": (0,)}, "exptimes"),
        ({"flux_scales": (0,)}, "flux_scales"),
        ({"mosaic": "two"}, "mosaic"),
        ({"wave_range": (6000, 5000)}, "wave_range"),
        ({"wave_range": (3000, 3100)}, "no rows"),
        ({"dec": 95.0}, "dec"),
        ({"scene": "sky"}, "scene"),
        ({"seed": -1}, "seed"),
    ],
)
def test_errors(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        simulate_pixtables(tmp_path, **{**SMALL, **change})
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(tmp_path):
    one = {**SMALL, "n_exposures": 1, "wave_range": (6560, 6563)}
    simulate_pixtables(tmp_path, **one)
    with pytest.raises(OutputExistsError):
        simulate_pixtables(tmp_path, **one)
    simulate_pixtables(tmp_path, **one, overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        simulate_pixtables(tmp_path / "truth.json", **one)
    with pytest.raises(InputError, match="truth"):
        SimulatedSet.open(tmp_path / "nowhere")
