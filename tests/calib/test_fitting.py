"""Fits of Gaussians against their truth, against scipy, and in the cases that have no answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import least_squares

from musedask.calib import fitting
from musedask.calib.fitting import (
    CONVERGED,
    NOT_CONVERGED,
    TOO_FEW,
    fit_gaussian,
    fit_gaussians,
    guess_gaussian,
)

ALL = np.ones(4, np.bool_)
#: the width is given
NARROW = np.array([True, False, True, True])


def gaussian(x, centre, sigma, area):
    return area / (sigma * math.sqrt(2 * math.pi)) * np.exp(-0.5 * ((x - centre) / sigma) ** 2)


def fit(first, values, weights, free=ALL, sigma=1.0):
    p = np.array([0.0, sigma, 0.0, 0.0])
    covariance = np.empty((4, 4))
    guess_gaussian(first, values, p, free)
    status, chi2 = fit_gaussian(first, values, weights, p, free, covariance)
    return status, chi2, p, covariance


@pytest.mark.parametrize("free", [ALL, NARROW], ids=["all", "fixed width"])
@pytest.mark.parametrize("truth", [(106.3, 0.95, 5e3, 12.0), (105.0, 0.95, 60.0, -3.0), (107.49, 0.95, 1e6, 1e4)])
def test_exact_values_give_the_truth(free, truth):
    x = 100.0 + np.arange(13)
    values = gaussian(x, *truth[:3]) + truth[3]
    status, chi2, p, _ = fit(100.0, values, np.ones(13), free, 0.95)
    assert status == CONVERGED
    # it stops when five steps in a row bring less than a percent, not when nothing is left
    assert p == pytest.approx(truth, rel=1e-7)
    assert chi2 < 1e-10 * truth[2] ** 2


@pytest.mark.parametrize("free", [ALL, NARROW], ids=["all", "fixed width"])
def test_minimum_and_covariance_are_those_of_scipy(free):
    rng = np.random.default_rng(5)
    x = 50.0 + np.arange(15)
    for _ in range(50):
        truth = (57 + rng.uniform(-1, 1), 1.0, rng.choice([1e3, 1e4, 1e5]), 5.0)
        noise = np.sqrt(gaussian(x, *truth[:3]) + 10)
        values = gaussian(x, *truth[:3]) + truth[3] + noise * rng.normal(size=15)
        status, chi2, p, covariance = fit(50.0, values, 1 / noise**2, free)
        used = np.flatnonzero(free)

        def residual(q, noise=noise, values=values, used=used, p=p):
            full = p.copy()
            full[used] = q
            return (gaussian(x, *full[:3]) + full[3] - values) / noise

        scale = np.maximum(np.abs(p[used]), 1)
        best = least_squares(residual, p[used], x_scale=scale, xtol=1e-14, ftol=1e-14, gtol=1e-14)
        expected = np.linalg.inv(best.jac.T @ best.jac)
        errors = np.sqrt(np.diag(expected))
        assert status == CONVERGED
        # by a small part of the noise, see the head of the module
        assert np.all(np.abs(p[used] - best.x) < 0.01 * errors)
        assert chi2 == pytest.approx(2 * best.cost, rel=1e-3)
        assert np.all(np.abs(covariance[np.ix_(used, used)] - expected) < 0.02 * np.outer(errors, errors))
        fixed = np.flatnonzero(~free)
        assert not covariance[fixed].any() and not covariance[:, fixed].any()


def test_values_without_weight_do_not_count():
    x = 10.0 + np.arange(15)
    values = gaussian(x, 17.2, 1.1, 400.0) + 3
    weights = np.ones(15)
    for i, bad in ((2, 1e5), (8, math.nan)):
        weights[i] = 0.0
        values[i] = bad
    p = np.array([17.0, 1.0, 300.0, 0.0])
    status, _ = fit_gaussian(10.0, values, weights, p, ALL, np.empty((4, 4)))
    assert status == CONVERGED
    assert p == pytest.approx((17.2, 1.1, 400.0, 3.0), rel=1e-6)


def test_guess_is_the_quartiles_of_the_sum():
    # a Gaussian on 5; numbers from CPL 7.2.3, whose fit starts there
    x = np.arange(15.0)
    p = np.zeros(4)
    guess_gaussian(0.0, gaussian(x, 7.3, 1.0, 100 * math.sqrt(2 * math.pi)) + 5, p, ALL)
    assert p == pytest.approx((7.28278053, 1.04391872, 250.157384, 5.000008808), rel=1e-4)
    p = np.array([1.0, 2.0, 3.0, 4.0])
    guess_gaussian(0.0, x, p, np.zeros(4, np.bool_))
    assert list(p) == [1, 2, 3, 4]


def test_no_line_is_told():
    start = np.array([106.0, 1.0, -50.0, 0.0])
    # a dip
    values = -gaussian(100.0 + np.arange(13), 106.0, 1.0, 500.0)
    p = start.copy()
    covariance = np.ones((4, 4))
    status, _ = fit_gaussian(100.0, values, np.ones(13), p, ALL, covariance)
    assert status == NOT_CONVERGED
    assert np.array_equal(p, start)
    assert not covariance.any()
    # a line beyond the values
    p = np.array([112.0, 1.0, 10.0, 0.0])
    values = gaussian(100.0 + np.arange(13), 113.5, 1.0, 500.0)
    status, _ = fit_gaussian(100.0, values, np.ones(13), p, NARROW, covariance)
    assert status == NOT_CONVERGED
    assert p[0] == 112.0


def test_too_few_values():
    weights = np.zeros(13)
    weights[:3] = 1.0
    p = np.array([2.0, 1.0, 1.0, 0.0])
    status, chi2 = fit_gaussian(0.0, np.arange(13.0), weights, p, ALL, np.empty((4, 4)))
    assert status == TOO_FEW and math.isnan(chi2)
    assert list(p) == [2, 1, 1, 0]
    # four are enough
    weights[:4] = 1.0
    assert fit_gaussian(0.0, np.arange(13.0), weights, p, NARROW, np.empty((4, 4)))[0] != TOO_FEW
    several = np.zeros(7)
    assert fit_gaussians(0.0, np.arange(13.0), weights, several, 2, np.empty((7, 7)))[0] == TOO_FEW


@pytest.mark.parametrize("distance", [3.0, 5.5, 8.0])
def test_blended_lines(distance):
    rng = np.random.default_rng(8)
    x = 200.0 + np.arange(30)
    truth = np.array([211.3, 211.3 + distance, 4000.0, 9000.0, 0.93, 20.0, 0.4])

    def model(p):
        lines = sum(gaussian(x, p[k], p[4], p[2 + k]) for k in range(2))
        return lines + p[5] + p[6] * np.arange(30)

    exact = model(truth)
    noise = np.sqrt(exact + 10)
    for values, tolerance in ((exact, 1e-6), (exact + noise * rng.normal(size=30), 5.0)):
        p = np.array([211.0, 211.0 + distance, 3000.0, 10000.0, 0.887, 0.0, 0.0])
        covariance = np.empty((7, 7))
        status, _ = fit_gaussians(200.0, values, 1 / noise**2, p, 2, covariance)
        assert status == CONVERGED
        assert np.all(np.abs(p - truth) < tolerance * np.sqrt(np.diag(covariance)) + 1e-9)
    scaled = [(a - b) / (c + 1e-12) for a, b, c in zip(p, truth, np.sqrt(np.diag(covariance)), strict=True)]
    assert np.sqrt(np.mean(np.square(scaled))) < 3


def test_solve_and_invert():
    rng = np.random.default_rng(2)
    for n in (1, 3, 7):
        matrix = rng.normal(size=(n, n + 2))
        matrix = matrix @ matrix.T
        right = rng.normal(size=n)
        a, b = matrix.copy(), right.copy()
        assert fitting.solve(a, b, n)
        assert matrix @ b == pytest.approx(right)
        # units of the parameters may be very different
        units = 10.0 ** rng.integers(-6, 7, n)
        inverse = np.empty((n, n))
        room = np.empty((n, n)), np.empty(n), np.empty(n)
        assert fitting.invert(matrix * np.outer(units, units), inverse, n, *room)
        assert inverse * np.outer(units, units) @ matrix == pytest.approx(np.eye(n), abs=1e-8)
    singular = np.ones((2, 2))
    assert not fitting.invert(singular, np.empty((2, 2)), 2, np.empty((2, 2)), np.empty(2), np.empty(2))
    assert not fitting.solve(-np.eye(2), np.ones(2), 2)
