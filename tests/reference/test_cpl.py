"""Fits of Gaussians and noise in windows against the functions of CPL, which the reference calls.

The library itself is called, with the same numbers.
"""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np
import pytest

from musedask.calib.fitting import CONVERGED, NOT_CONVERGED, SINGULAR, fit_gaussian, guess_gaussian
from musedask.calib.noise import LARGEST_SCATTER, LEVEL_WINDOWS, SEEDS, level_in_windows, noise_of_difference

from .support import require_esorex

pytestmark = pytest.mark.esorex

DOUBLES = ctypes.POINTER(ctypes.c_double)
#: of cpl_fit_mode: centre, width, area, background
CENTRE, SIGMA, AREA, BACKGROUND = 2, 4, 8, 16
NO_CONVERGENCE = 21


@pytest.fixture(scope="module")
def cpl():
    require_esorex()
    names = [ctypes.util.find_library(name) for name in ("cplcore", "cpldrs")]
    # without development files they are known by their versions only
    core, drs = (ctypes.CDLL(n or f"lib{f}.so.26") for n, f in zip(names, ("cplcore", "cpldrs"), strict=True))
    core.cpl_init(0)
    for function in (core.cpl_vector_wrap, core.cpl_vector_unwrap, core.cpl_image_wrap_float, core.cpl_image_unwrap):
        function.restype = ctypes.c_void_p
    core.cpl_vector_wrap.argtypes = [ctypes.c_ssize_t, DOUBLES]
    core.cpl_image_wrap_float.argtypes = [ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.POINTER(ctypes.c_float)]
    core.cpl_vector_unwrap.argtypes = core.cpl_image_unwrap.argtypes = [ctypes.c_void_p]
    core.cpl_vector_fit_gaussian.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int] + [DOUBLES] * 6 + [ctypes.c_void_p]
    core.cpl_image_reject.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t]
    drs.cpl_flux_get_noise_window.argtypes = drs.cpl_flux_get_bias_window.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t, DOUBLES, DOUBLES,
    ]  # fmt: skip
    return core, drs


def wrap(core, data):
    """Image of CPL on the pixels of an array, which has to be kept."""
    return core.cpl_image_wrap_float(data.shape[1], data.shape[0], data.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))


def fit(core, values, sigma=None, mode=CENTRE | SIGMA | AREA):
    """Status and parameters."""
    arrays = [a if a is None else np.asarray(a, float) for a in (np.arange(len(values)), values, sigma)]
    vectors = [a if a is None else core.cpl_vector_wrap(len(a), a.ctypes.data_as(DOUBLES)) for a in arrays]
    p = [ctypes.c_double() for _ in range(5)]
    status = core.cpl_vector_fit_gaussian(
        vectors[0], None, vectors[1], vectors[2], mode, *(ctypes.byref(q) for q in p), None, None
    )
    core.cpl_error_reset()
    for vector in vectors:
        if vector is not None:
            core.cpl_vector_unwrap(vector)
    return status, np.array([q.value for q in p[:4]])


def pieces(kind, n):
    """Differences of a profile near an edge, or pieces of spectra."""
    rng = np.random.default_rng(7)
    x = np.arange(11.0 if kind != "line" else 13.0)

    def peak(centre, sigma, area):
        return area * np.exp(-0.5 * ((x - centre) / sigma) ** 2) / sigma

    for _ in range(n):
        area = 10 ** rng.uniform(1, 4)
        values = peak(rng.uniform(4.3, 5.8), rng.uniform(0.5, 0.8), area)
        if kind == "two":
            # a dark column at the edge makes a second one
            values = values + peak(rng.uniform(2, 8), rng.uniform(0.4, 0.8), area * rng.uniform(0.05, 1))
        elif kind == "noise":
            values = 0 * values
        noise = 0.3 if kind == "two" else 1.0
        yield np.maximum(values + noise * rng.normal(size=len(x)), 0.0)


@pytest.mark.parametrize(("kind", "least"), [("one", 1.0), ("two", 1.0), ("noise", 0.9)])
def test_edges(cpl, kind, least):
    """Fits end in the same place, also where there are two peaks or none.

    In noise two or three values stand out, which leaves their width to the rounding of the last digit.
    """
    free = np.array([True, True, True, False])
    same, n = 0, 400
    for values in pieces(kind, n):
        status, theirs = fit(cpl[0], values)
        ours = np.zeros(4)
        guess_gaussian(0.0, values, ours, free)
        code, _ = fit_gaussian(0.0, values, np.ones(len(values)), ours, free, np.empty((4, 4)))
        alike = code in (CONVERGED, SINGULAR) if status == 0 else (status, code) == (NO_CONVERGENCE, NOT_CONVERGED)
        same += alike and bool(np.allclose(ours, theirs, rtol=1e-6, atol=1e-8))
    assert same >= least * n


def test_lines(cpl):
    """With errors and a background, as arc lines are fitted."""
    for values in pieces("line", 200):
        values = values + 3.0
        sigma = np.sqrt(values + 9.0)
        status, theirs = fit(cpl[0], values, sigma, CENTRE | SIGMA | AREA | BACKGROUND)
        ours, free = np.zeros(4), np.ones(4, np.bool_)
        guess_gaussian(0.0, values, ours, free)
        code, _ = fit_gaussian(0.0, values, 1 / sigma**2, ours, free, np.empty((4, 4)))
        assert (status, code) == (0, CONVERGED)
        assert ours == pytest.approx(theirs, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize(("shape", "part"), [
    ((410, 330), (slice(0, 410), slice(0, 330))),
    ((410, 330), (slice(205, 410), slice(165, 330))),
    ((410, 330), (slice(0, 205), slice(165, 330))),
    ((64, 90), (slice(10, 60), slice(20, 90))),
])  # fmt: skip
@pytest.mark.parametrize("hit", [False, True])
def test_noise(cpl, shape, part, hit):
    core, drs = cpl
    a, b = np.random.default_rng(9).normal(100, 2.5, (2, *shape)).astype(np.float32)
    if hit:
        a[part][::40, ::40] += 2000.0
    difference = np.ascontiguousarray(a - b)
    image = wrap(core, difference)
    zone = (ctypes.c_ssize_t * 4)(part[1].start + 1, part[1].stop, part[0].start + 1, part[0].stop)
    noise, scatter = ctypes.c_double(), ctypes.c_double()
    for seed in SEEDS:
        ctypes.CDLL(None).srand(seed)
        assert drs.cpl_flux_get_noise_window(image, zone, 9, 100, ctypes.byref(noise), ctypes.byref(scatter)) == 0
        if not scatter.value > LARGEST_SCATTER * noise.value:
            break
    core.cpl_image_unwrap(image)
    assert (seed == SEEDS[0]) != hit
    assert noise_of_difference(a, b, part) == pytest.approx((noise.value, scatter.value), rel=1e-9)


@pytest.mark.parametrize("shape", [(410, 330), (64, 90), (2056, 1024)])
def test_level(cpl, shape):
    core, drs = cpl
    rng = np.random.default_rng(10)
    data = rng.normal(1, 2.5, shape).astype(np.float32)
    dq = np.where(rng.random(shape) < 0.02, 1 << 8, 0).astype(np.int32)
    data[dq != 0] = 1e4
    image = wrap(core, data)
    for y, x in np.argwhere(dq):
        core.cpl_image_reject(image, int(x) + 1, int(y) + 1)
    level, scatter = ctypes.c_double(), ctypes.c_double()
    ctypes.CDLL(None).srand(SEEDS[0])
    assert not drs.cpl_flux_get_bias_window(image, None, 9, LEVEL_WINDOWS, ctypes.byref(level), ctypes.byref(scatter))
    core.cpl_image_unwrap(image)
    assert level_in_windows(data, dq) == pytest.approx((level.value, scatter.value), rel=1e-9)
