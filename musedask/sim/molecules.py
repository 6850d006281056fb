"""Lines of the molecules of the air, from published constants: OH and O2 airglow, O2 absorption, Raman lines.

Wavelengths are better than 0.01 Angstrom; intensities are relative.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..instrument import air_index
from . import tables

#: Boltzmann's over Planck's constant and the speed of light [cm-1/K] (CODATA 2018)
K_CM = 0.695034800
#: rotational temperature of OH [K]
OH_TEMPERATURE = 190.0
#: OH of level v' = 0..10: fraction that has not been cooled by collisions, and its temperature [K] (after
#: Noll et al. 2020, ACP 20, 5269; below v' = 4 and above 9 extrapolated)
_HOT = (
    np.array([0.3, 0.3, 0.49, 0.63, 0.81, 1.05, 1.17, 1.23, 4.70, 4.91, 4.91]) / 100,
    np.array([9500.0, 8800, 8100, 7400, 6636, 5952, 4544, 2181, 1741, 1019, 1019]),
)
#: interaction of vibration and rotation in OH: lines are brighter by 1 + a m + b m^2, m = -N" for P, N" + 1 for R.
#: Fitted to the bands of the UVES atlas
_HERMAN_WALLIS = -0.056, 0.0065
#: highest J of OH that is looked at
_J_MAX = 13.5


def air_wavelength(wavenumber: NDArray[np.float64]) -> NDArray[np.float64]:
    """Wavelength in standard air [Angstrom] of a wavenumber in vacuum [cm-1]."""
    vacuum = 1e8 / wavenumber
    return np.asarray(vacuum / air_index(vacuum))


class OHLevels(NamedTuple):
    """Rotational levels of one vibrational level; arrays over parity (e, f), J = 0.5, 1.5 ..., and F1, F2.

    Attributes
    ----------
    energy : ndarray of float64, shape (2, n, 2)
        [cm-1]; nan for F1 of J = 0.5, which does not exist.
    state : ndarray of float64, shape (2, n, 2, 2)
        Amplitudes of Omega = 3/2 and 1/2 (last axis).
    """

    energy: NDArray[np.float64]
    state: NDArray[np.float64]


@lru_cache(maxsize=16)
def oh_levels(v: int, j_max: float = _J_MAX) -> OHLevels:
    """Levels of OH X 2Pi, by diagonalising the Hamiltonian in the basis of Hund's case (a).

    The operators are N^2, N.S, Lz Sz and those of the Lambda doubling, whose matrices in the basis Omega = 3/2,
    1/2 are, with x = J + 1/2, r = sqrt(x^2 - 1) and upper sign for e::

        N^2 = ((x^2-1, -r), (-r, x^2+1))      N.S = ((0, r/2), (r/2, -1))
        q: +-((0, x r/2), (x r/2, -x))        p: +-((0, 0), (0, -x/2))

    (Brown & Merer 1979, J. Mol. Spectrosc. 74, 488), centrifugal terms by anticommutators with powers of N^2.
    """
    table = tables.read("oh_constants.txt")
    k = int(np.flatnonzero(table["v"] == v)[0])
    c = {name: float(column[k]) for name, column in table.items()}
    j = np.arange(0.5, j_max + 0.1)
    x = j + 0.5
    r = np.sqrt(np.maximum(x * x - 1, 0))
    zero, one = np.zeros_like(x), np.ones_like(x)

    def matrix(a: NDArray[np.float64], b: NDArray[np.float64], d: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.moveaxis(np.array([[a, b], [b, d]]), -1, 0)

    def anti(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return (a @ b + b @ a) / 2

    n2 = matrix(x * x - 1, -r, x * x + 1)
    powers = [np.broadcast_to(np.eye(2), n2.shape), n2]
    while len(powers) < 7:
        powers.append(powers[-1] @ n2)
    ns = matrix(zero, r / 2, -one)
    common = c["T"] * powers[0] + c["A"] * matrix(one / 2, zero, -one / 2)
    for power, (name, sign) in enumerate(zip("BDHLMP", (1, -1, 1, 1, 1, 1), strict=True), start=1):
        common = common + sign * c[name] * powers[power]
    for power, name in enumerate(("gamma", "gammaD", "gammaH", "gammaL")):
        common = common + c[name] * anti(ns, powers[power])
    doubling = np.zeros_like(common)
    for power, suffix in enumerate(("", "D", "H", "L")):
        doubling += c["q" + suffix] * anti(matrix(zero, x * r / 2, -x), powers[power])
        doubling += c["p" + suffix] * anti(matrix(zero, zero, -x / 2), powers[power])
    energy, vectors = np.linalg.eigh(np.stack([common + doubling, common - doubling]))
    state = np.swapaxes(vectors, -1, -2)
    # J = 1/2 has Omega = 1/2 only
    energy[:, 0, 1] = (common + np.array([1, -1])[:, None, None, None] * doubling)[:, 0, 1, 1]
    energy[:, 0, 0] = np.nan
    state[:, 0] = (0.0, 0.0), (0.0, 1.0)
    return OHLevels(energy, state)


@lru_cache(maxsize=32)
def oh_band(upper: int, lower: int) -> NDArray[np.void]:
    """Lines of the Meinel band `upper` - `lower` of OH.

    Returns
    -------
    structured ndarray
        Fields ``wave`` (air, Angstrom), ``photons`` (relative photon rate, per molecule in `upper`),
        ``branch`` (P, Q, R), ``j`` (J of the lower level), ``f``, ``g`` (1, 2: ladder of the upper
        and the lower level), ``parity`` (e, f of the upper level).  Lines between the ladders are there if they
        have a strength of more than 0.01.
    """
    up, low = oh_levels(upper), oh_levels(lower)
    j = np.arange(0.5, _J_MAX + 0.1)
    weight = 2 * j[None, :, None] + 1
    above = up.energy - np.nanmin(up.energy)
    hot, t_hot = float(_HOT[0][upper]), float(_HOT[1][upper])
    population = np.zeros_like(above)
    for share, temperature in ((1 - hot, OH_TEMPERATURE), (hot, t_hot)):
        boltzmann = np.nan_to_num(weight * np.exp(-above / (K_CM * temperature)))
        population += share * boltzmann / boltzmann.sum()
    a, b = _HERMAN_WALLIS
    rows = []
    for parity in (0, 1):
        for k, ju in enumerate(j):
            for step, branch in ((1, "P"), (0, "Q"), (-1, "R")):
                m = k + step
                if not 0 <= m < len(j):
                    continue
                jl = float(j[m])
                # amplitudes of Omega = 3/2 and 1/2 (Hoenl & London)
                omega = np.array([1.5, 0.5])
                if step == 0:
                    amplitude = omega * np.sqrt((2 * ju + 1) / (ju * (ju + 1)))
                else:
                    amplitude = np.sqrt(np.maximum(max(ju, jl) ** 2 - omega**2, 0) / max(ju, jl))
                other = parity if step else 1 - parity
                for fu in (0, 1):
                    for fl in (0, 1):
                        nu = up.energy[parity, k, fu] - low.energy[other, m, fl]
                        strength = float(np.sum(up.state[parity, k, fu] * low.state[other, m, fl] * amplitude) ** 2)
                        if not nu > 0 or strength < 1e-6 or (fu != fl and strength < 0.01):
                            continue
                        n = round(jl + 0.5) if fl else round(jl - 0.5)
                        rotation = {"P": -n, "Q": 0, "R": n + 1}[branch]
                        photons = (
                            population[parity, k, fu] / (2 * ju + 1) * strength * nu**3 * 1e-12
                            * (1 + a * rotation + b * rotation**2)
                        )  # fmt: skip
                        rows.append((nu, photons, branch, jl, fu + 1, fl + 1, "ef"[parity]))
    lines = np.array(
        rows,
        [("wave", "f8"), ("photons", "f8"), ("branch", "U1"), ("j", "f8"), ("f", "i4"), ("g", "i4"),
         ("parity", "U1")],
    )  # fmt: skip
    lines["wave"] = air_wavelength(lines["wave"])
    lines = np.sort(lines, order="wave")
    lines.setflags(write=False)
    return lines


# --- O2 -----------------------------------------------------------------------------------------------------------

#: O2 X 3Sigma-g, v = 0 and 1: origin, B, D, spin-spin lambda, spin-rotation gamma [cm-1] (Rouille et al. 1992,
#: J. Mol. Spectrosc. 154, 372; Yu et al. 2012, JQSRT 113, 902; rounded)
_O2_X = (
    (0.0, 1.43767639, 4.8402e-6, 1.9847511, -0.00842536),
    (1556.38, 1.42188, 4.86e-6, 1.98967, -0.008447),
)
#: O2 b 1Sigma+g, v = 0, 1, 2: origin, B, D [cm-1] (Babcock & Herzberg 1948, ApJ 108, 167; Schermaul & Learner
#: 1999, JQSRT 61, 781; rounded; the first with the line PP9 at 13091.710 cm-1)
_O2_B = (
    (13120.92, 1.391250, 5.369e-6),
    (14525.66, 1.373046, 5.41e-6),
    (15902.42, 1.354691, 5.46e-6),
)


def _o2_x(v: int, n: int, j: int) -> float:
    """Term energy of O2 X 3Sigma-g [cm-1] (Schlapp 1937, Phys. Rev. 51, 342)."""
    origin, b, d, lam, gamma = _O2_X[v]
    energy = origin + b * n * (n + 1) - d * (n * (n + 1)) ** 2
    if j == n + 1:
        k = 2 * n + 3
        energy += k * b - lam - np.sqrt(k * k * b * b + lam * lam - 2 * lam * b) + gamma * (n + 1)
    elif j == n - 1:
        k = 2 * n - 1
        root = np.sqrt(k * k * b * b + lam * lam - 2 * lam * b)
        energy += -k * b - lam + root - gamma * n
    return float(energy)


@lru_cache(maxsize=4)
def o2_band(upper: int, lower: int) -> NDArray[np.void]:
    """Lines of the atmospheric band b 1Sigma+g (v = `upper`) - X 3Sigma-g (v = `lower`) of O2.

    Returns
    -------
    structured ndarray
        Fields ``wavenumber`` (cm-1, vacuum), ``wave`` (air, Angstrom), ``strength`` (Hoenl-London factor, of Hund's
        case b), ``upper``, ``lower`` (rotational energies, cm-1), ``n``, ``j`` (of X) and ``branch``.
    """
    origin, b, d = _O2_B[upper]
    rows = []
    for n in range(1, 44, 2):
        for step in (1, -1):
            nb = n + step
            above = b * nb * (nb + 1) - d * (nb * (nb + 1)) ** 2
            for j in (n, nb):
                if nb == j == 0:
                    continue
                below = _o2_x(lower, n, j)
                strength = nb / 2 if step > 0 else (nb + 1) / 2
                branch = ("R" if step > 0 else "P") + ("Q" if j == nb else "R" if step > 0 else "P")
                rows.append((origin + above - below, 0.0, strength, above, below - _O2_X[lower][0], n, j, branch))
    lines = np.array(
        rows,
        [("wavenumber", "f8"), ("wave", "f8"), ("strength", "f8"), ("upper", "f8"), ("lower", "f8"), ("n", "i4"),
         ("j", "i4"), ("branch", "U2")],
    )  # fmt: skip
    lines["wave"] = air_wavelength(lines["wavenumber"])
    lines = np.sort(lines, order="wave")
    lines.setflags(write=False)
    return lines


#: absorption bands of O2 from X, v = 0: upper level, integrated strength at 296 K [cm/molecule] (HITRAN 2020,
#: Gordon et al. 2022, JQSRT 277, 107949; rounded)
O2_BANDS = ((0, 2.24e-22), (1, 1.5e-23), (2, 9.4e-25))
#: molecules of O2 over Paranal [cm-2]: 743 hPa of air with 20.95 % O2
_O2_COLUMN = 3.3e24
#: mean temperature of the absorbing air [K], half width by collisions at half the pressure of Paranal [cm-1]
_O2_TEMPERATURE, _O2_WIDTH = 250.0, 0.019


def o2_transmission(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Transmission at airmass 1 of the bands A (7605), B (6875) and gamma (6285 Angstrom) of O2.

    Line by line with Voigt profiles, on a grid of 0.004 cm-1.

    Parameters
    ----------
    edges : ndarray of float64, shape (n + 1,)
        Edges of the bins [Angstrom, air], ascending, narrow compared with the bands.

    Returns
    -------
    ndarray of float64, shape (n,)
        Mean over each bin.
    """
    from scipy.special import voigt_profile

    result = np.ones(len(edges) - 1)
    step = 0.004
    for upper, total in O2_BANDS:
        lines = o2_band(upper, 0)
        weight = lines["strength"] * np.exp(-lines["lower"] / (K_CM * _O2_TEMPERATURE))
        intensity = total * _O2_COLUMN * weight / weight.sum()
        first = lines["wavenumber"].min() - 30
        nu = np.arange(first, lines["wavenumber"].max() + 30, step)
        depth = np.zeros_like(nu)
        for line, tau in zip(lines["wavenumber"], intensity, strict=True):
            # Doppler width of O2
            sigma = line * np.sqrt(8314.46 * _O2_TEMPERATURE / 32) / 299792458
            k0, k1 = (int((line + d - first) / step) for d in (-15, 15))
            c0, c1 = (int((line + d - first) / step) for d in (-1, 1))
            d = nu[k0:k1] - line
            profile = _O2_WIDTH / np.pi / (d * d + _O2_WIDTH**2)
            profile[c0 - k0 : c1 - k0] = voigt_profile(d[c0 - k0 : c1 - k0], sigma, _O2_WIDTH)
            depth[k0:k1] += tau * profile
        wave = air_wavelength(nu)[::-1]
        integral = np.concatenate([[0], np.cumsum(np.exp(-depth[::-1])[:-1] * np.diff(wave))])
        inside = (edges[:-1] > wave[0]) & (edges[1:] < wave[-1])
        mean = np.diff(np.interp(edges, wave, integral)) / np.diff(edges)
        result[inside] *= mean[inside]
    return result


# --- Raman scattering ---------------------------------------------------------------------------------------------

#: wavelength of the lasers in vacuum [Angstrom]: the sodium line D2a
LASER = 5891.59
#: molecules that scatter, by name: origin of v = 1 - 0, B of v = 0 and 1 [cm-1] (Huber & Herzberg 1979); weights of
#: even and odd J by the spin of the nuclei; part of the O and S branches in the scattered light, from the
#: depolarization; light relative to N2
_RAMAN = {
    "O2": (1556.38, 1.43768, 1.42188, 0, 1, 0.065, 0.32),
    "N2": (2329.912, 1.98957, 1.97219, 2, 1, 0.04, 1.0),
}
#: temperature of the scattering air [K]
_RAMAN_TEMPERATURE = 270.0


@lru_cache(maxsize=1)
def raman_lines() -> NDArray[np.void]:
    """Light of the sodium lasers after vibrational Raman scattering by N2 and O2.

    Returns
    -------
    structured ndarray
        Fields ``molecule``, ``branch`` (O, Q, S), ``j`` (of the lower level), ``wave`` (air, Angstrom), ``flux``
        (energy; the sum for N2 is 1), sorted by wavelength.
    """
    rows = []
    for molecule, (origin, b0, b1, even, odd, wings, share) in _RAMAN.items():
        j = np.arange(0, 32)
        weight = np.where(j % 2 == 0, even, odd) * (2 * j + 1) * np.exp(-b0 * j * (j + 1) / (K_CM * _RAMAN_TEMPERATURE))
        weight = weight / weight.sum()
        # Placzek & Teller: of the anisotropic part, Q has 1/4, O and S 3/8 each for large J
        strengths = {
            "O": wings * 2 * j * (j - 1) / ((2 * j + 1) * np.abs(2 * j - 1)),
            "Q": np.full(len(j), 1 - wings),
            "S": wings * 2 * (j + 1) * (j + 2) / ((2 * j + 1) * (2 * j + 3)),
        }
        for branch, step in (("O", -2), ("Q", 0), ("S", 2)):
            upper = j + step
            shift = origin + b1 * upper * (upper + 1) - b0 * j * (j + 1)
            flux = weight * strengths[branch]
            rows += [
                (molecule, branch, j[k], 1e8 / LASER - shift[k], share * flux[k]) for k in np.flatnonzero(flux > 1e-4)
            ]
    lines = np.array(rows, [("molecule", "U2"), ("branch", "U1"), ("j", "i4"), ("wave", "f8"), ("flux", "f8")])
    lines["wave"] = air_wavelength(lines["wave"])
    lines = np.sort(lines, order="wave")
    lines.setflags(write=False)
    return lines
