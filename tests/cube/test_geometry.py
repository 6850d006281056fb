"""Positions: the fast ways give the bits of the exact ones, and those agree with astropy.

The fast series are used only where a bound of their error proves that rounding cannot differ.  The
proofs are tried where they are tightest: next to the borders of pixels, next to the reference point,
at any declination and orientation.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from astropy.wcs import WCS
from hypothesis import example, given
from hypothesis import strategies as st

from musedask.cube import geometry

DEG = 180 / math.pi
SEEDS = st.integers(0, 2**32 - 1)
DECLINATIONS = st.one_of(
    st.floats(-89.9, 89.9), st.sampled_from([0.0, 1e-9, -27.8, 45.0, 88.0, 89.5, -89.99, 89.9999])
)


def native(rng, n, radius):
    """Columns xpos, ypos [rad] of rows spread over decades of distance up to `radius` arcsec."""
    rows = np.zeros((n, 8), np.float32)
    rho = np.radians(radius / 3600) * 10.0 ** rng.uniform(-6, 0, n)
    phi = rng.uniform(0, 2 * math.pi, n)
    # multiples of a right angle are special
    quarter = rng.random(n) < 0.1
    phi[quarter] = rng.integers(0, 5, quarter.sum()) * (math.pi / 2)
    rows[:, 0], rows[:, 1] = phi, -rho
    rows[: n // 20, 1] = 0.0
    rows[n // 20 : n // 10, 0] = 0.0
    return rows


@given(
    seed=SEEDS,
    dec=DECLINATIONS,
    shift=st.sampled_from([(0.0, 0.0), (1e-4, -2e-4), (0.3, 0.0), (0.0, 1e-9), (-359.9, 0.1)]),
    radius=st.sampled_from([1.0, 60.0, 600.0, 20000.0]),
)
def test_fast_positions(seed, dec, shift, radius):
    rows = native(np.random.default_rng(seed), 2000, radius)
    exact = rows.copy()
    n_fast = geometry.position_rows(rows, dec, *shift, True)
    n_exact = geometry.position_rows(exact, dec, *shift, False)
    np.testing.assert_array_equal(rows.view(np.int32), exact.view(np.int32))
    assert n_exact == len(rows) >= n_fast


def test_fast_positions_are_fast():
    """In an ordinary field hardly any row is evaluated term by term."""
    rng = np.random.default_rng(1)
    rows = np.zeros((5000, 8), np.float32)
    rows[:, 0], rows[:, 1] = rng.uniform(0, 2 * math.pi, 5000), -np.radians(rng.uniform(1, 45, 5000) / 3600)
    assert geometry.position_rows(rows, -27.8, 0.0, 0.0, True) < 0.01 * len(rows)


@given(seed=SEEDS, dec=st.floats(-89, 89), ra=st.floats(0, 360))
def test_positions_agree_with_astropy(seed, dec, ra):
    """To 1e-11 deg (4e-8 arcsec): the arcsine of the reference loses digits towards the pole."""
    rng = np.random.default_rng(seed)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [ra, dec], [0, 0]
    wcs.wcs.cdelt = [1, 1]
    for row in native(rng, 20, 100.0)[3:]:
        phi, ypos = float(row[0]), float(row[1])
        distance = DEG / math.tan(ypos + math.pi / 2)
        expected = wcs.all_pix2world(distance * math.sin(phi), -distance * math.cos(phi), 1)
        found = geometry.position_exact(phi, ypos, dec)
        limit = 1e-11 / math.cos(math.radians(dec))
        assert (found[0] - (expected[0] - ra) + 180) % 360 - 180 == pytest.approx(0, abs=limit)
        assert found[1] == pytest.approx(expected[1] - dec, abs=limit)


# ------------------------------------------------------------------------------------------ voxels


def matrix(rng, scale, kind):
    """CD matrix [deg], the first axis to the west."""
    angle = {"straight": 0.0, "rotated": rng.uniform(0, 2 * math.pi)}[kind]
    x, y = scale / 3600, scale / 3600 * rng.uniform(0.5, 2)
    return -x * math.cos(angle), y * math.sin(angle), x * math.sin(angle), y * math.cos(angle)


def astropy_wcs(w):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], w[:2], w[2:4]
    wcs.wcs.cd = w[4:].reshape(2, 2)
    return wcs


def voxels(rows, wcs, zero, shape, use_fast, *, axis=(4750.0, 1.25, 1.0), is_log=False, celestial=True, window=None):
    """Keys of rows, and how many were evaluated exactly."""
    keys = np.empty(len(rows), np.int32)
    n_exact = np.zeros(1, np.int64)
    window = np.array(window or (0, shape[0], 0, shape[1], 0, shape[2]))
    geometry.voxel_index(
        rows, wcs, zero, celestial, *axis, is_log, np.array(shape), window, use_fast, keys, n_exact
    )
    return keys, int(n_exact[0])


@given(
    seed=SEEDS,
    dec=DECLINATIONS,
    ra=st.one_of(st.floats(0, 360), st.sampled_from([0.0, 1e-7, 359.9999999])),
    scale=st.sampled_from([0.2, 0.025, 0.3]),
    kind=st.sampled_from(["straight", "rotated"]),
    offset=st.sampled_from([0.0, 1e-9, 1e-5, 0.01]),
)
@example(seed=1, dec=-27.8, ra=150.1, scale=0.2, kind="rotated", offset=0.0)
@example(seed=1, dec=88.0, ra=0.0, scale=0.025, kind="straight", offset=0.01)
def test_fast_voxels(seed, dec, ra, scale, kind, offset):
    """Rows all over a field, also far outside, around the reference point, and on the borders of pixels."""
    rng = np.random.default_rng(seed)
    shape = (20, 60, 70)
    zero = np.array([ra, dec])
    wcs = np.array([ra + offset, np.clip(dec + offset, -89.99, 89.99), 35.3, 30.1, *matrix(rng, scale, kind)])
    n = 3000
    rows = np.zeros((n, 8), np.float32)
    reach = 50 * scale / 3600 * 10.0 ** rng.uniform(-7, 1, n)
    angle = rng.uniform(0, 2 * math.pi, n)
    rows[:, 0] = reach * np.cos(angle) / max(math.cos(math.radians(dec)), 1e-3)
    rows[:, 1] = reach * np.sin(angle)
    rows[:50, :2] = 0
    rows[:, 2] = rng.uniform(4740, 4780, n)
    for _ in range(3):
        fast, _ = voxels(rows, wcs, zero, shape, True)
        exact, n_exact = voxels(rows, wcs, zero, shape, False)
        np.testing.assert_array_equal(fast, exact)
        assert n_exact == n
        # bring one of the rows next to the border of a pixel, to within some units in the last place
        row = rows[rng.integers(50, n)]
        x, y = geometry.project_exact(float(row[0]) + zero[0], float(row[1]) + zero[1], wcs)
        if not (math.isfinite(x) and abs(x) < 1e4 and abs(y) < 1e4):
            continue
        wcs[2] += round(x) + 0.5 - x + rng.integers(-3, 4) * 10.0 ** rng.integers(-15, -6)
        wcs[3] += round(y) + 0.5 - y + rng.integers(-3, 4) * 10.0 ** rng.integers(-15, -6)


def test_fast_voxels_are_fast():
    rng = np.random.default_rng(1)
    rows = np.zeros((20000, 8), np.float32)
    rows[:, :2] = rng.uniform(-0.008, 0.008, (20000, 2))
    rows[:, 2] = 4760
    wcs = np.array([150.1, -27.8, 150.0, 150.0, -0.2 / 3600, 0, 0, 0.2 / 3600])
    _, n_exact = voxels(rows, wcs, np.array([150.1, -27.8]), (20, 300, 300), True)
    assert n_exact < 0.01 * len(rows)


@given(seed=SEEDS, dec=st.floats(-89, 89), ra=st.floats(0.1, 359.9), kind=st.sampled_from(["straight", "rotated"]))
def test_projection_agrees_with_astropy(seed, dec, ra, kind):
    """Within the bound on which `voxel_index` relies: the arcsine near 1 loses digits near the reference point.

    At 20 arcsec from it that bound is 5e-5 pixel, at 10 arcmin 2e-6.
    """
    rng = np.random.default_rng(seed)
    wcs = np.array([ra, dec, 35.3, 30.1, *matrix(rng, 0.2, kind)])
    reference = astropy_wcs(wcs)
    rho = np.radians(10.0 ** rng.uniform(-1, 2.8, 20) / 3600)
    angle = rng.uniform(0, 2 * math.pi, 20)
    for r, a in zip(rho, angle, strict=True):
        position = np.degrees([r * math.cos(a) / math.cos(math.radians(dec)), r * math.sin(a)]) + wcs[:2]
        if abs(position[1]) > 89.9:
            continue
        expected = tuple(float(v) for v in reference.all_world2pix(*position, 1))
        distance = math.hypot(*(wcs[4:].reshape(2, 2) @ (np.array(expected) - wcs[2:4]))) / DEG
        scale = np.abs(np.linalg.inv(wcs[4:].reshape(2, 2))).sum() * DEG
        bound = scale * (4e-15 / distance + 2e-14) + 1e-9
        assert geometry.project_exact(*position, wcs) == pytest.approx(expected, abs=bound, rel=0)


@given(seed=SEEDS, dec=st.floats(-89, 89), ra=st.floats(0.1, 359.9), kind=st.sampled_from(["straight", "rotated"]))
def test_centres_agree_with_astropy(seed, dec, ra, kind):
    """World coordinates of spaxel centres to 1e-11 deg, 2e-7 spaxel; less in RA by 1/cos(DEC)."""
    rng = np.random.default_rng(seed)
    wcs = np.array([ra, dec, *rng.uniform(-20, 40, 2), *matrix(rng, 0.2, kind)])
    x, y, cosine = geometry.voxel_centres(wcs, True, 3, 9, 1, 5)
    px, py = np.meshgrid(np.arange(1, 5) + 1.0, np.arange(3, 9) + 1.0, indexing="ij")
    expected = astropy_wcs(wcs).all_pix2world(px, py, 1)
    limit = 1e-11 / math.cos(math.radians(dec))
    np.testing.assert_allclose((x - expected[0] + 180) % 360 - 180, 0, atol=limit)
    np.testing.assert_allclose(y, expected[1], atol=limit, rtol=0)
    np.testing.assert_allclose(cosine, np.cos(np.radians(y)), rtol=1e-14, atol=1e-15)


def test_reference_point_itself():
    wcs = np.array([150.1, -27.8, 5.0, 6.0, -0.2 / 3600, 0, 0, 0.2 / 3600])
    assert geometry.unproject_exact(5.0, 6.0, wcs) == pytest.approx((150.1, -27.8), abs=1e-13)


@given(seed=SEEDS, kind=st.sampled_from(["straight", "rotated"]))
def test_linear_coordinates(seed, kind):
    rng = np.random.default_rng(seed)
    wcs = np.array([*rng.uniform(-100, 100, 2), *rng.uniform(-10, 10, 2), *matrix(rng, 3600.0, kind)])
    point = tuple(rng.uniform(-100, 100, 2))
    there = geometry.pixel_linear(*point, wcs)
    assert geometry.world_linear(*there, wcs) == pytest.approx(point, abs=1e-11)
    offset = np.linalg.solve(wcs[4:].reshape(2, 2), np.array(point) - wcs[:2])
    assert there == pytest.approx(tuple(offset + wcs[2:4]), abs=1e-11)


def lround(value):
    """C's lround: halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value)) if abs(value) != 0.49999999999999994 else 0


@given(st.one_of(st.floats(-1e9, 1e9), st.integers(-1000, 1000).map(lambda k: k + 0.5),
                 st.sampled_from([0.49999999999999994, -0.49999999999999994, 0.5, -0.5, 2.5, -2.5])))  # fmt: skip
def test_lround(value):
    assert geometry.lround(value) == lround(value)


@given(
    seed=SEEDS,
    is_log=st.booleans(),
    axis=st.sampled_from([(4750.0, 1.25, 1.0), (4800.0, 0.8, 2.5), (4700.0, 2.0, -3.0), (4749.7, 1.1, 1.0)]),
)
def test_planes(seed, is_log, axis):
    """Planes as defined, clamped to the cube; also for wavelengths on the border of two planes."""
    rng = np.random.default_rng(seed)
    crval, step, crpix = axis
    rows = np.zeros((500, 8), np.float32)
    rows[:, 2] = rng.uniform(4700, 4900, 500)
    rows[:200, 2] = crval + (rng.integers(-5, 40, 200) + 0.5 - crpix) * step
    rows[:, :2] = 1.0
    wcs = np.array([0, 0, 0, 0, 1.0, 0, 0, 1.0])
    keys, _ = voxels(rows, wcs, np.zeros(2), (30, 3, 3), True, axis=axis, is_log=is_log, celestial=False)
    for row, key in zip(rows, keys, strict=True):
        wave = float(row[2])
        if is_log:
            plane = int(lround(crval / step * math.log(wave / crval)) + crpix - 1)
        else:
            plane = lround((wave - crval) / step + crpix) - 1
        assert key % 30 == min(max(plane, 0), 29)


@given(seed=SEEDS, celestial=st.booleans(), use_fast=st.booleans())
def test_windows(seed, celestial, use_fast):
    """Keys of a window are those of the whole cube, -1 outside; everything beyond the cube is in its edges."""
    rng = np.random.default_rng(seed)
    shape = (12, 10, 9)
    scale = 0.2 / 3600 if celestial else 1.0
    zero = np.array([150.0, 20.0]) if celestial else np.zeros(2)
    wcs = np.array([*zero, 5.0, 5.0, -scale if celestial else scale, 0, 0, scale])
    rows = np.zeros((2000, 8), np.float32)
    rows[:, :2] = rng.uniform(-9, 9, (2000, 2)) * scale
    rows[:, 2] = rng.uniform(4740, 4775, 2000)
    keys, _ = voxels(rows, wcs, zero, shape, use_fast, celestial=celestial)
    assert keys.min() >= 0
    ix, rest = np.divmod(keys, shape[1] * shape[0])
    iy, iz = np.divmod(rest, shape[0])
    for index, n in ((ix, shape[2]), (iy, shape[1]), (iz, shape[0])):
        assert index.min() == 0 and index.max() == n - 1
    z0, z1, y0, y1, x0, x1 = window = (2, 7, 0, 4, 5, 9)
    part, _ = voxels(rows, wcs, zero, shape, use_fast, celestial=celestial, window=window)
    inside = (iz >= z0) & (iz < z1) & (iy >= y0) & (iy < y1) & (ix >= x0) & (ix < x1)
    expected = ((ix - x0) * (y1 - y0) + (iy - y0)) * (z1 - z0) + (iz - z0)
    np.testing.assert_array_equal(part, np.where(inside, expected, -1))


def test_wild_positions_are_kept_in_the_edges():
    rows = np.zeros((4, 8), np.float32)
    rows[:, 0] = [3e38, -3e38, 1e10, -1e10]
    rows[:, 2] = 4760
    for celestial in (True, False):
        keys, _ = voxels(
            rows, np.array([0, 0, 1, 1, 1.0, 0, 0, 1.0]), np.zeros(2), (20, 5, 5), True, celestial=celestial
        )
        assert ((keys >= 0) & (keys < 500)).all()


# -------------------------------------------------------------------------------------- wavelengths


def ciddor(wave):
    """Refractive index of standard air with 450 ppm of CO2 minus 1 (Ciddor 1996, eq. 1), at an air wavelength."""
    s = (1e4 / wave) ** 2
    return 0.05792105 / (238.0185 - s) + 0.00167917 / (57.362 - s)


def test_air_to_vacuum():
    """Ciddor's equation to float32; the density terms of the reference cancel to 1e-8 of n - 1."""
    rows = np.zeros((2000, 8), np.float32)
    rows[:, 2] = np.linspace(4000, 10000, 2000)
    air = rows[:, 2].astype(float)
    geometry.air_to_vacuum(rows)
    np.testing.assert_allclose(rows[:, 2], air * (1 + ciddor(air)), rtol=6.1e-8)
    # H alpha, and a line of neon, from tables of both wavelengths
    lines = np.zeros((2, 8), np.float32)
    lines[:, 2] = 6562.80, 7032.4131
    geometry.air_to_vacuum(lines)
    np.testing.assert_allclose(lines[:, 2], [6564.61, 7034.3515], atol=5e-3)


def test_limits_of_rows():
    rows = np.random.default_rng(2).normal(size=(100, 8)).astype(np.float32)
    limits = np.array([np.inf, -np.inf] * 3)
    geometry.row_limits(rows[:40], limits)
    geometry.row_limits(rows[40:], limits)
    expected = np.stack([rows[:, :3].min(0), rows[:, :3].max(0)], axis=1).ravel()
    np.testing.assert_array_equal(limits, expected.astype(float))
