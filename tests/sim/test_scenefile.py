"""Scene files: what is written is read, and what is wrong is named."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from musedask.errors import InputError, OutputExistsError
from musedask.sim.cubescene import CubeScene
from musedask.sim.fields import astrometric_field, nebula_field
from musedask.sim.scene import Background, Galaxy, LineRegion, Nebula, NebulaLine, Scene, Star, default_scene
from musedask.sim.scenefile import load_scene, save_scene
from musedask.sim.spectra import BlackBody, Tabulated, WhiteDwarf, flux_from_ab

FULL = Scene(
    (Star(1.0, -2.0, 2e4, -1.0, name="a"), Star(0.0, 3.5, 1e3, spectrum=WhiteDwarf(20000.0)),
     Star(2.0, 0.0, 5e3, 0.0, 6562.8, 3.0, 0.5, Tabulated((5000.0, 7000.0, 9000.0), (1.0, 2.0, 1.5)))),
    (LineRegion(0.0, 0.0, 1.5, 400.0, 6562.8, 0.8, 25.0, 10.0, "ring", 0.3),),
    Background(3.0, 0.1, -0.2, -0.5),
    galaxies=(Galaxy(5.0, 5.0, 3e3, 1.2, 2.5, 0.4, 77.0, 0.5, BlackBody(5000.0)),),
    nebulae=(Nebula(100.0, (NebulaLine(6562.79, 1.0),), 0.3, seed=5), Nebula(20.0)),
    ra=10.0, dec=-30.0, name="all kinds",
)  # fmt: skip


@pytest.mark.parametrize(
    "scene",
    [FULL, Scene(), default_scene(3, 20.0), nebula_field(), astrometric_field(), FULL.observed(fwhm=(0.7, -0.2))],
)
def test_round_trip(scene, tmp_path):
    path = tmp_path / "scene.yaml"
    save_scene(scene, path)
    assert load_scene(path) == scene
    with pytest.raises(OutputExistsError):
        save_scene(scene, path)
    save_scene(scene, path, overwrite=True)


def write(tmp_path, text):
    path = tmp_path / "scene.yaml"
    path.write_text(text)
    return path


def test_what_a_user_writes(tmp_path):
    (tmp_path / "star.txt").write_text("# wave flux\n5000 1\n7000 2\n9000 2\n")
    scene = load_scene(write(tmp_path, """
        name: mine
        ra: 150.0
        dec: -30.0
        background: 4
        stars:
          - {ra: 150.001, dec: -30.0, mag: 18, spectrum: {kind: blackbody, temperature: 5800}}
          - {dra: 1e0, ddec: -2, flux: 2e4, spectrum: {kind: table, file: star.txt}}
        nebulae:
          - flux: 100
            lines: [{wave: 6562.8, ratio: 1}]
        """))  # fmt: skip
    star = scene.stars[0]
    assert star.dra == pytest.approx(3.6 * np.cos(np.radians(30)), rel=1e-6) and abs(star.ddec) < 1e-4
    assert star.flux == pytest.approx(flux_from_ab(18))
    assert scene.stars[1].spectrum == Tabulated((5000.0, 7000.0, 9000.0), (1.0, 2.0, 2.0))
    assert scene.background == Background(4.0)
    assert scene.nebulae[0].lines == (NebulaLine(6562.8, 1.0),)


def test_made_scenes(tmp_path):
    assert load_scene(write(tmp_path, "kind: standard\nname: gd71\n")).name == "GD 71"
    assert load_scene(write(tmp_path, "kind: default\nseed: 3\nsize_arcsec: 20\n")) == default_scene(3, 20.0)
    field = load_scene(write(tmp_path, "{kind: astrometric, ra: 10, dec: -30, mag_range: [15, 17]}"))
    assert field == astrometric_field(10.0, -30.0, mag_range=(15.0, 17.0))
    assert load_scene(write(tmp_path, "{kind: nebula, flux: 50}")) == nebula_field(flux=50.0)


def test_cubes(tmp_path):
    hdu = fits.ImageHDU(np.ones((3, 4, 5), np.float32), name="DATA")
    hdu.header.update(
        {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CTYPE3": "AWAV", "CUNIT3": "Angstrom", "CRVAL1": 1.0,
         "CRVAL2": 2.0, "CRVAL3": 5000.0, "CRPIX1": 1.0, "CRPIX2": 1.0, "CRPIX3": 1.0, "CD1_1": -5e-5, "CD2_2": 5e-5,
         "CD3_3": 1.25}
    )  # fmt: skip
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "cube.fits")
    assert load_scene(tmp_path / "cube.fits") == CubeScene.from_cube(tmp_path / "cube.fits")
    scene = load_scene(write(tmp_path, "{kind: cube, source: cube.fits, outside: zero, ra: 7, dec: -8, scale: 2}"))
    assert (scene.ra, scene.dec, scene.outside) == (7.0, -8.0, "zero")
    assert scene.surface_brightness(0, 0, 5001.0) == 2
    save_scene(scene, tmp_path / "again.yaml")
    assert load_scene(tmp_path / "again.yaml") == scene


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stars: [", "not YAML"),
        ("- 1\n- 2", "a list of 2 found"),
        ("", "nothing found"),
        ("kind: picture", "unknown kind 'picture', expected one of scene, cube"),
        ("star: []", "unknown key 'star': did you mean stars?"),
        ("stars: 5", "stars: 5 found, expected a list"),
        ("stars: [3]", r"stars\[0\]: 3 found, expected keys"),
        ("stars: [{dra: 1, ddec: 2}]", r"stars\[0\]: no flux"),
        ("stars: [{dra: 1, ddec: 2, flux: much}]", r"stars\[0\].flux: 'much' found, expected a number"),
        ("stars: [{dra: 1, ddec: 2, flux: .nan}]", r"stars\[0\].flux: nan found"),
        ("stars: [{dra: 1, ddec: 2, flux: 3, colour: 2}]", r"stars\[0\]: unknown key 'colour'"),
        ("stars: [{dra: 1, ddec: 2, flux: 3, mag: 2}]", "mag and flux"),
        ("stars: [{ra: 1, dec: 2, flux: 3}]", "need the scene's own ra and dec"),
        ("{ra: 1, dec: 2, stars: [{ra: 1, dec: 2, dra: 3, flux: 3}]}", "expected one pair"),
        ("{ra: 1, dec: 2, stars: [{ra: 100, dec: 2, flux: 3}]}", "more than a degree"),
        ("stars: [{dra: 1, ddec: 2, flux: 3, spectrum: red}]", "spectrum: 'red' found"),
        ("stars: [{dra: 1, ddec: 2, flux: 3, spectrum: {kind: red}}]", "expected one of blackbody"),
        ("stars: [{dra: 1, ddec: 2, flux: 3, spectrum: {kind: blackbody, temperature: -3}}]", "temperature: -3"),
        ("stars: [{dra: 1, ddec: 2, flux: 3, spectrum: {kind: table, wave: [1], flux: 3}}]", "flux: 3 found"),
        ("stars: [{dra: 1, ddec: 2, flux: 3, spectrum: {kind: table, file: no.txt}}]", "no.txt"),
        ("galaxies: [{dra: 1, ddec: 2, flux: 3, radius: 1, sersic: 9}]", "sersic 9"),
        ("lines: [{dra: 1, ddec: 2, size: 1, flux: 3, wave: 5000, kind: disc}]", "expected one of gaussian, ring"),
        ("nebulae: [{flux: 3, lines: [6563]}]", r"nebulae\[0\].lines\[0\]: 6563 found"),
        ("nebulae: [{flux: 3, seed: 1.5}]", "whole number"),
        ("background: {height: 3}", "background: unknown key 'height'"),
        ("seeing: [1, 2]", "pairs"),
        ("fwhm: [0.8]", "fwhm: a list of 1 found"),
        ("ra: 3", "expected both"),
        ("name: 3", "name: 3 found, expected text"),
        ("{kind: cube}", "no source"),
        ("{kind: cube, source: no.fits}", "no such file"),
        ("{kind: cube, path: no.fits}", "unknown key 'path'"),
        ("{kind: standard, name: Vega}", "'Vega' is not known"),
        ("{kind: astrometric, mag_range: [1]}", "expected 2 numbers"),
    ],
)
def test_errors(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load_scene(write(tmp_path, text))
    assert "scene.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_scene(tmp_path / "none.yaml")
