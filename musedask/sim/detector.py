"""The detector of one IFU: light in, the 16-bit frame that is read from it out.

A CCD of 4096 x 4112 pixels is read through four ports in its corners; every quadrant has a prescan and
an overscan of 32 pixels in both directions, which makes 4224 x 4240.  What is fixed (levels and shape
of the bias, gains, read-out noise, dark current, defects) is the truth of an instrument that never
changes: it follows from the number of the IFU alone.  Noise, cosmic rays and the drift of the bias
follow from the key of an exposure.

Random numbers are counter-based: the number of a pixel is a hash of the key and the pixel's index
(SplitMix64: Steele, Lea & Flood 2014, OOPSLA, doi 10.1145/2660193.2660195), so that no frame depends
on the order in which anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..instrument import N_IFUS

#: trimmed image: rows and columns
NY, NX = 4112, 4096
#: raw image: rows and columns
RAW_NY, RAW_NX = 4240, 4224
#: pixels of a prescan or overscan
SCAN = 32
#: data pixels of a quadrant in y and x
QUADRANT = (NY // 2, NX // 2)
#: highest value of the converters [adu]
ADU_MAX = 65535
#: time to read a frame [s]; 4.5 million pixels a port at about 100 kHz
READ_TIME = 45.0
#: temperature at which the dark current is given [K]
CCD_TEMPERATURE = 163.0
#: edge of a pixel and depth of the silicon [micron]: the deep-depleted e2v CCD231-84 of MUSE
PIXEL_SIZE, THICKNESS = 15.0, 40.0
#: events per cm2 and second of muons, electrons and gamma rays together: through an upright surface pass
#: half as many muons as through a level one, about 1 per cm2 and minute at sea level (Particle Data
#: Group, "Cosmic rays"), 1.7 at 2600 m; the rest makes up about two in five of the events
COSMIC_RATE = 1.3 / 60

#: scatter of the response of pixels to light
PRNU = 0.006

#: bits of the Euro3D convention for defects (formats of the reference pipeline)
HOT, DARK, LOW_QE, DEAD, TRAP = 0x100, 0x200, 0x40, 0x2000, 0x20000000

#: key of everything that is fixed; it is no seed of a user
_INSTRUMENT = 20140131
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
#: number of photo-electrons from which their Poisson number comes from a normal deviate
_EXACT_BELOW = 10.0

#: kinds of column defects: factor on the light, electrons added to each pixel, electrons lost in each
_FACTOR, _ADD, _LOSE = 0, 1, 2

BADPIX_DTYPE = np.dtype([("x", np.int32), ("y", np.int32), ("status", np.int32), ("value", np.float32)])


@dataclass(frozen=True)
class RawFrame:
    """A frame as read, and what is known of it.

    Attributes
    ----------
    image : ndarray of uint16, shape (4240, 4224)
        [adu]
    cosmic_pixels : ndarray of int32, shape (n,)
        Pixels that cosmic rays hit: ascending indices into the flat trimmed image (4112, 4096).
    cosmic_charge : ndarray of float32, shape (n,)
        What they left there [e-].
    saturated : int
        Pixels at the highest value of the converters.
    level : ndarray of float64, shape (4,)
        Drift of the bias level of the quadrants from its fixed value [adu].
    """

    image: NDArray[np.uint16]
    cosmic_pixels: NDArray[np.int32]
    cosmic_charge: NDArray[np.float32]
    saturated: int
    level: NDArray[np.float64]

    def cosmic_mask(self) -> NDArray[np.bool_]:
        """Pixels of the trimmed image that cosmic rays hit, shape (4112, 4096)."""
        mask = np.zeros(NY * NX, np.bool_)
        mask[self.cosmic_pixels] = True
        return mask.reshape(NY, NX)


class Detector:
    """The CCD of one IFU, the same in every exposure.

    Parameters
    ----------
    ifu : int
        1..24.

    Attributes
    ----------
    ifu : int
    chip_name, chip_id : str
        Values of ``ESO DET CHIP NAME`` and ``ESO DET CHIP ID``.
    gain : ndarray of float64, shape (4,)
        Of the quadrants (bottom left, bottom right, top right, top left) [e-/adu].
    read_noise : ndarray of float64, shape (4,)
        [e-]

    Raises
    ------
    InputError
        If there is no such IFU.
    """

    def __init__(self, ifu: int) -> None:
        if not (isinstance(ifu, int | np.integer) and 1 <= ifu <= N_IFUS):
            raise InputError(f"IFU {ifu!r} found, expected 1 to {N_IFUS}")
        self.ifu = int(ifu)
        self.chip_name = f"CCD231-84-{self.ifu:02d}"
        self.chip_id = f"SIM-{self.ifu:02d}"
        random = self._random(0)
        # values that headers can hold exactly
        self.gain = np.round(random.uniform(1.05, 1.2, 4), 3)
        self.read_noise = np.round(random.uniform(2.5, 3.1, 4), 2)
        # bias along y: level, amplitude and length of the settling after the first rows, slope, curvature [adu]
        self._bias = np.column_stack(
            [
                random.normal(1000.0, 40.0, 4),
                random.uniform(2.0, 6.0, 4),
                random.uniform(0.08, 0.2, 4),
                random.uniform(-3.0, 3.0, 4),
                random.uniform(-1.5, 1.5, 4),
            ]
        )
        #: direction on the chip that points to the zenith [rad]
        self._up = float(random.uniform(0, 2 * math.pi))

    def _random(self, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([_INSTRUMENT, self.ifu, purpose])))

    @cached_property
    def column_pattern(self) -> NDArray[np.float64]:
        """Fixed structure of the bias along x, shape (4096,); the overscans do not have it [adu]."""
        random = self._random(1)
        halves = []
        t = (np.arange(NX // 2) + 0.5) / (NX // 2)
        for _ in range(2):
            waves = [
                random.normal(0, 0.12 / k) * np.sin(math.pi * k * t + random.uniform(0, 2 * math.pi)) for k in (1, 2, 3)
            ]
            halves.append(np.sum(waves, axis=0) + random.normal(0, 0.03, t.size))
        return np.concatenate(halves)

    def bias_level(self, level: Sequence[float] | NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Bias along y, without `column_pattern`.

        Parameters
        ----------
        level : sequence of 4 floats, optional
            Drift of the quadrants [adu].

        Returns
        -------
        ndarray of float64, shape (2, 4240)
            Left and right half [adu].
        """
        drift = np.zeros(4) if level is None else np.asarray(level, np.float64)
        half = RAW_NY // 2
        # counted from the port, in the order of read-out
        t = np.arange(half) / (half - 1)
        curves = [
            base + change + amplitude * np.exp(-t / length) + slope * t + curvature * t * t
            for (base, amplitude, length, slope, curvature), change in zip(self._bias, drift, strict=True)
        ]
        bottom_left, bottom_right, top_right, top_left = curves
        return np.array(
            [np.concatenate([bottom_left, top_left[::-1]]), np.concatenate([bottom_right, top_right[::-1]])]
        )

    @cached_property
    def _dark_terms(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Dark current as a sum of products of functions of y and x [e-/s]: shapes (k, 4112), (k, 4096)."""
        random = self._random(2)
        x, y = np.arange(1, NX + 1.0), np.arange(1, NY + 1.0)
        terms = [(np.full(NY, random.uniform(1.5, 3.0)), 1 + random.normal(0, 0.1) * (x / NX - 0.5))]
        # the amplifiers glow into their corners
        for px, py in ((1, 1), (NX, 1), (NX, NY), (1, NY)):
            size = random.uniform(200, 350)
            terms.append(
                (random.uniform(2, 12) * np.exp(-0.5 * ((y - py) / size) ** 2), np.exp(-0.5 * ((x - px) / size) ** 2))
            )
        # two faint stripes, where the reference's model of the dark looks for them
        for centre, width in ((1180.0, 120.0), (3560.0, 150.0)):
            terms.append(
                (
                    random.uniform(0.2, 1.0) * np.exp(-0.5 * ((y - centre) / width) ** 2),
                    1 + random.normal(0, 0.2) * np.sin(math.pi * x / NX),
                )
            )
        return np.array([a for a, _ in terms]) / 3600, np.array([b for _, b in terms])

    def dark_current(self) -> NDArray[np.float32]:
        """Dark current without hot pixels and columns, shape (4112, 4096) [e-/s]."""
        a, b = self._dark_terms
        return (a.T @ b).astype(np.float32)

    def response(self) -> NDArray[np.float32]:
        """Response of the pixels to light without defects of columns, 1 on average, shape (4112, 4096)."""
        return _response_map(self._response_key)

    @cached_property
    def _response_key(self) -> np.uint64:
        return np.random.SeedSequence([_INSTRUMENT, self.ifu, 5]).generate_state(1, np.uint64)[0]

    @cached_property
    def hot_pixels(self) -> NDArray[Any]:
        """Hot pixels in ascending order: structured array index (into the flat trimmed image), rate [e-/s]."""
        random = self._random(3)
        n = int(random.integers(300, 700))
        index = np.unique(random.integers(0, NY * NX, n))
        out = np.empty(index.size, [("index", np.int32), ("rate", np.float64)])
        out["index"] = index
        out["rate"] = 10 ** random.uniform(-1.7, 1.3, index.size)
        return out

    @cached_property
    def column_defects(self) -> NDArray[Any]:
        """Defects of columns: structured array x, first, last (0-based, trimmed), kind, value, status.

        Kinds: 0 factor on the light, 1 electrons added to each pixel in read-out, 2 electrons lost.
        They reach from a row to the middle of the chip, since all charge of those rows passes the defect.
        """
        random = self._random(4)
        half = NY // 2

        def span() -> tuple[int, int]:
            start = int(random.integers(20, half - 20))
            return (start, half - 1) if random.random() < 0.5 else (half, NY - 1 - start)

        def column() -> int:
            return int(random.integers(8, NX - 8))

        def number(low: int, high: int) -> range:
            return range(int(random.integers(low, high + 1)))

        rows = [(column(), *span(), _ADD, random.uniform(8.0, 60.0), HOT) for _ in number(1, 3)]
        for factor in [random.uniform(0.1, 0.8) for _ in number(1, 3)]:
            rows += [(column(), *span(), _FACTOR, factor, LOW_QE if factor < 0.2 else DARK)]
        rows += [(column(), *span(), _FACTOR, 0.0, DEAD) for _ in number(0, 1)]
        rows += [(column(), *span(), _LOSE, random.uniform(10.0, 80.0), TRAP) for _ in number(2, 4)]
        return np.array(
            rows,
            [("x", np.int32), ("first", np.int32), ("last", np.int32), ("kind", np.int32), ("value", np.float64),
             ("status", np.int32)],
        )  # fmt: skip

    def bad_pixels(self) -> NDArray[Any]:
        """All defects, as in a BADPIX_TABLE.

        Returns
        -------
        structured ndarray
            ``x``, ``y`` (raw untrimmed pixel, 1-based), ``status`` (Euro3D bits), ``value`` (rate of a hot
            pixel [e-/s], value of a column's defect), ascending in y, then x; each pixel once.
        """
        bits: dict[int, tuple[int, float]] = {}
        for index, rate in self.hot_pixels:
            bits[int(index)] = (HOT, float(rate))
        for x, first, last, _, value, status in self.column_defects:
            for row in range(first, last + 1):
                index = int(row) * NX + int(x)
                bits[index] = (bits.get(index, (0, 0.0))[0] | int(status), float(value))
        order = sorted(bits)
        flat = np.array(order)
        y, x = np.divmod(flat, NX)
        out = np.empty(flat.size, BADPIX_DTYPE)
        out["x"] = x + 1 + SCAN + np.where(x >= NX // 2, 2 * SCAN, 0)
        out["y"] = y + 1 + SCAN + np.where(y >= NY // 2, 2 * SCAN, 0)
        out["status"] = [bits[i][0] for i in order]
        out["value"] = [bits[i][1] for i in order]
        return out

    def expose(
        self,
        rate: NDArray[np.float32] | None,
        exptime: float,
        key: tuple[int, ...],
        *,
        cosmic_rays: bool = True,
        temperature: float = CCD_TEMPERATURE,
        drift: Sequence[float] | NDArray[np.float64] | None = None,
        nonlinearity: float = 0.0,
    ) -> RawFrame:
        """Expose and read the detector.

        Parameters
        ----------
        rate : ndarray of float32, shape (4112, 4096), or None
            Expected photo-electrons of each pixel [e-/s]; None if the shutter is closed.
        exptime : float
            [s]; 0 for a bias.
        key : tuple of int
            What tells this exposure from all others, as (seed, index of the exposure).
        cosmic_rays : bool
            Whether there are any.
        temperature : float
            Of the chip [K]; the dark current depends on it.
        drift : sequence of 4 floats, optional
            Drift of the bias of the quadrants [adu]; by default drawn with a scale of 0.8.
        nonlinearity : float
            Part of the charge that is missing in a pixel of 65535 adu; it grows linearly with the charge.

        Returns
        -------
        RawFrame

        Raises
        ------
        InputError
            For rates that are negative or not finite, a wrong shape, time, temperature or key.
        """
        if not (math.isfinite(exptime) and exptime >= 0):
            raise InputError(f"exposure time {exptime} s found, expected a number >= 0")
        if not (100 <= temperature <= 320):
            raise InputError(f"temperature of the chip {temperature} K found, expected 100 to 320 K")
        if not (0 <= nonlinearity < 0.5):
            raise InputError(f"nonlinearity {nonlinearity} found, expected 0 <= nonlinearity < 0.5")
        if rate is not None and rate.shape != (NY, NX):
            raise InputError(f"rates of shape {rate.shape} found, expected {(NY, NX)}")
        light = np.zeros((0, NX), np.float32) if rate is None else np.ascontiguousarray(rate, np.float32)
        seeds = _sequence(key, self.ifu)
        photon_key, read_key, cosmic_key, drift_key = seeds.generate_state(4, np.uint64)
        level = np.asarray(drift, np.float64) if drift is not None else _normals(drift_key, 4) * 0.8
        if level.shape != (4,) or not np.isfinite(level).all():
            raise InputError(f"drift {drift!r} found, expected 4 numbers [adu]")

        if cosmic_rays:
            area = NX * NY * (PIXEL_SIZE * 1e-4) ** 2
            # a pixel waits for half the read-out on average
            expected = COSMIC_RATE * area * (exptime + READ_TIME / 2)
            pixels, charge = _cosmics(cosmic_key, expected, self._up)
        else:
            pixels, charge = np.empty(0, np.int32), np.empty(0, np.float32)

        a, b = self._dark_terms
        warm = exptime * _dark_factor(temperature)
        hot = self.hot_pixels
        columns = self.column_defects
        image = np.empty((RAW_NY, RAW_NX), np.uint16)
        saturated, wrong = _read(
            light, exptime, self._response_key, a * warm, b, hot["index"].copy(), hot["rate"] * warm,
            columns["x"].copy(), columns["first"].copy(), columns["last"].copy(), columns["kind"].copy(),
            columns["value"].copy(), pixels, charge, self.bias_level(level), self.column_pattern,
            self.gain, self.read_noise, nonlinearity, photon_key, read_key, image,
        )  # fmt: skip
        if wrong >= 0:
            y, x = divmod(int(wrong), NX)
            raise InputError(
                f"rate {light[y, x]} e-/s found at x = {x + 1}, y = {y + 1} of IFU {self.ifu}, expected numbers >= 0"
            )
        return RawFrame(image, pixels, charge, int(saturated), level)


def _sequence(key: tuple[int, ...], ifu: int) -> np.random.SeedSequence:
    if not (isinstance(key, tuple) and all(isinstance(k, int | np.integer) and k >= 0 for k in key)):
        raise InputError(f"key {key!r} found, expected a tuple of integers >= 0")
    # the length comes first: to a seed sequence (1,) and (1, 0) are the same
    return np.random.SeedSequence([len(key), *(int(k) for k in key), ifu])


def _dark_factor(temperature: float) -> float:
    """Dark current relative to that at `CCD_TEMPERATURE`.

    T^1.5 exp(-E / 2kT), the rate of generation in depleted silicon (Janesick 2001, "Scientific CCDs", 7.1).
    """

    def law(t: float) -> float:
        gap = 1.1557 - 7.021e-4 * t * t / (1108 + t)
        return t**1.5 * math.exp(-gap / (2 * 8.617e-5 * t))

    return law(temperature) / law(CCD_TEMPERATURE)


# ------------------------------------------------------------------------------ random numbers


def _ziggurat() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges of the 256 layers of equal area, and the ratios of neighbours (Doornik 2005, "ZIGNOR")."""
    r, v = 3.6541528853610088, 0.00492867323399
    x = np.zeros(257)
    f = math.exp(-0.5 * r * r)
    x[0], x[1] = v / f, r
    for i in range(2, 256):
        x[i] = math.sqrt(-2 * math.log(v / x[i - 1] + f))
        f = math.exp(-0.5 * x[i] * x[i])
    return x, x[1:] / x[:-1]


_EDGES, _RATIOS = _ziggurat()
#: of 1, 2, ...: more photo-electrons than these are never seen where they are counted one by one
_RECIPROCALS = 1.0 / np.arange(1.0, 64.0)


@nb.njit(cache=True, nogil=True, inline="always")
def _hash(key: np.uint64, counter: np.uint64) -> np.uint64:
    """64 random bits of a counter: one output of SplitMix64."""
    z = key + counter * _GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@nb.njit(cache=True, nogil=True, inline="always")
def _uniform(bits: np.uint64) -> float:
    """Number in the open interval (0, 1)."""
    return (np.float64(bits >> np.uint64(11)) + 0.5) * (1.0 / 9007199254740992.0)


@nb.njit(cache=True, nogil=True)
def _normal_rest(bits: np.uint64) -> float:
    """Normal deviate where the first layer of the ziggurat did not decide."""
    state = bits
    while True:
        i = np.int64(bits & np.uint64(255))
        u = np.float64(np.int64(bits) >> 11) * (1.0 / 4503599627370496.0)
        if abs(u) < _RATIOS[i]:
            return u * _EDGES[i]
        if i == 0:
            r = _EDGES[1]
            while True:
                state += _GAMMA
                x = math.log(_uniform(_hash(state, np.uint64(1)))) / r
                y = math.log(_uniform(_hash(state, np.uint64(2))))
                if -2 * y >= x * x:
                    return x - r if u < 0 else r - x
        x = u * _EDGES[i]
        low = math.exp(-0.5 * (_EDGES[i] * _EDGES[i] - x * x))
        high = math.exp(-0.5 * (_EDGES[i + 1] * _EDGES[i + 1] - x * x))
        state += _GAMMA
        if high + _uniform(_hash(state, np.uint64(3))) * (low - high) < 1.0:
            return x
        bits = _hash(state, np.uint64(4))


@nb.njit(cache=True, nogil=True, inline="always")
def _normal(bits: np.uint64) -> float:
    """Normal deviate of 64 random bits."""
    i = np.int64(bits & np.uint64(255))
    u = np.float64(np.int64(bits) >> 11) * (1.0 / 4503599627370496.0)
    if abs(u) < _RATIOS[i]:
        return u * _EDGES[i]
    return _normal_rest(bits)


@nb.njit(cache=True, nogil=True)
def _poisson(mean: float, bits: np.uint64) -> float:
    """Poisson number of 64 random bits.

    Below `_EXACT_BELOW` by inversion of the distribution function; above by the expansion of its inverse
    in a normal deviate (Giles 2016, ACM TOMS 42, 7, eq. 6), whose
    distribution function errs by less than 5e-5 and its variance by less than 3e-4 there.
    """
    if mean >= _EXACT_BELOW:
        w = _normal(bits)
        s = math.sqrt(mean)
        w2 = w * w
        x = mean + s * w + (1.0 / 3.0 + w2 / 6.0) - w * (1.0 / 36.0 + w2 / 72.0) / s
        x += (-8.0 / 405.0 + w2 * (7.0 / 810.0 + w2 / 270.0)) / mean
        return max(math.floor(x), 0.0)
    u = _uniform(bits)
    # counted from the other end, so that most pixels without light are done at once: P(N > 0) < mean
    if u >= mean:
        return 0.0
    p = math.exp(-mean)
    rest = 1.0 - u - p
    k = 0
    while rest > 0.0:
        p *= mean * _RECIPROCALS[k]
        k += 1
        rest -= p
        if k == _RECIPROCALS.size:
            break
    return np.float64(k)


@nb.njit(cache=True, nogil=True)
def _normals(key: np.uint64, n: int) -> NDArray[np.float64]:
    out = np.empty(n)
    for i in range(n):
        out[i] = _normal(_hash(key, np.uint64(i)))
    return out


# ------------------------------------------------------------------------------ reading the chip


@nb.njit(cache=True, nogil=True, inline="always")
def _response(key: np.uint64, pixel: int) -> float:
    """Response of a pixel of the trimmed image to light, 1 on average."""
    return 1.0 + PRNU * min(max(_normal(_hash(key, np.uint64(pixel))), -5.0), 5.0)


@nb.njit(cache=True, nogil=True)
def _read(  # type: ignore[no-untyped-def]
    light, exptime, response_key, dark_y, dark_x, hot_index, hot_charge, column_x, column_first, column_last,
    column_kind, column_value, cosmic_index, cosmic_charge, bias, pattern, gain, noise, nonlinearity, photon_key,
    read_key, image,
):  # fmt: skip
    """Fill the raw image row by row; returns the number of saturated pixels and the first wrong rate or -1."""
    half = NX // 2
    mean = np.zeros(NX)
    charge = np.zeros(NX)
    hot = 0
    cosmic = 0
    saturated = 0
    for raw_y in range(RAW_NY):
        top = raw_y >= RAW_NY // 2
        y = raw_y - 3 * SCAN if top else raw_y - SCAN
        data = (NY // 2 <= y < NY) if top else (0 <= y < NY // 2)
        if data:
            first = y * NX
            mean[:] = 0.0
            if light.shape[0] > 0:
                row = light[y]
                bad = 0
                for x in range(NX):
                    value = np.float64(row[x])
                    # also true for NaN
                    bad += not ((value >= 0.0) & (value < math.inf))
                    mean[x] = value * exptime
                if bad:
                    for x in range(NX):
                        if not (0.0 <= row[x] < math.inf):
                            return saturated, first + x
                for x in range(NX):
                    if mean[x] > 0.0:
                        mean[x] *= _response(response_key, first + x)
            for k in range(dark_y.shape[0]):
                factor = dark_y[k, y]
                if factor > 1e-9:
                    for x in range(NX):
                        mean[x] += factor * dark_x[k, x]
            while hot < hot_index.size and hot_index[hot] < first + NX:
                mean[hot_index[hot] - first] += hot_charge[hot]
                hot += 1
            for i in range(column_x.size):
                if column_first[i] <= y <= column_last[i]:
                    if column_kind[i] == _FACTOR:
                        mean[column_x[i]] *= column_value[i]
                    elif column_kind[i] == _ADD:
                        mean[column_x[i]] += column_value[i]
            for x in range(NX):
                charge[x] = _poisson(mean[x], _hash(photon_key, np.uint64(first + x)))
            while cosmic < cosmic_index.size and cosmic_index[cosmic] < first + NX:
                charge[cosmic_index[cosmic] - first] += cosmic_charge[cosmic]
                cosmic += 1
            for i in range(column_x.size):
                if column_kind[i] == _LOSE and column_first[i] <= y <= column_last[i]:
                    x = column_x[i]
                    charge[x] = max(charge[x] - column_value[i], 0.0)
        out = image[raw_y]
        for side in range(2):
            quadrant = 3 - side if top else side
            level = bias[side, raw_y]
            scale = 1.0 / gain[quadrant]
            sigma = noise[quadrant] * scale
            bend = nonlinearity * scale / ADU_MAX
            start = side * (RAW_NX // 2)
            shift = SCAN + 2 * SCAN * side
            for raw_x in range(start, start + RAW_NX // 2):
                x = raw_x - shift
                value = level
                if data and side * half <= x < (side + 1) * half:
                    e = charge[x]
                    value += pattern[x] + (e - bend * e * e) * scale
                value += sigma * _normal(_hash(read_key, np.uint64(raw_y * RAW_NX + raw_x)))
                value = math.floor(value + 0.5)
                if value >= ADU_MAX:
                    saturated += 1
                    value = np.float64(ADU_MAX)
                out[raw_x] = np.uint16(max(value, 0.0))
    return saturated, -1


@nb.njit(cache=True, nogil=True)
def _response_map(key: np.uint64) -> NDArray[np.float32]:
    out = np.empty((NY, NX), np.float32)
    for y in range(NY):
        for x in range(NX):
            out[y, x] = _response(key, y * NX + x)
    return out


# ------------------------------------------------------------------------------ cosmic rays


def _cosmics(key: np.uint64, expected: float, up: float) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Charge that cosmic rays leave.

    Parameters
    ----------
    key : uint64
    expected : float
        Mean number of events on the chip.
    up : float
        Direction on the chip to the zenith [rad].

    Returns
    -------
    index : ndarray of int32, shape (n,)
        Ascending indices into the flat trimmed image.
    charge : ndarray of float32, shape (n,)
        [e-], >= 1
    """
    index, charge = _tracks(key, expected, up)
    if not index.size:
        return index, charge.astype(np.float32)
    order = np.argsort(index, kind="stable")
    index = index[order]
    starts = np.flatnonzero(np.concatenate([[True], index[1:] != index[:-1]]))
    total = np.rint(np.add.reduceat(charge[order].astype(np.float64), starts)).astype(np.float32)
    keep = total >= 1
    return index[starts][keep], total[keep]


@nb.njit(cache=True, nogil=True)
def _deposit(x, y, depth, charge, index, value, n):  # type: ignore[no-untyped-def]
    """Spread the charge of one step over pixels; it diffuses more the deeper it was made."""
    sigma = 0.12 + 0.38 * math.sqrt(min(max(depth / THICKNESS, 0.0), 1.0))
    scale = 1.0 / (sigma * math.sqrt(2.0))
    x0, y0 = math.floor(x + 0.5), math.floor(y + 0.5)
    for j in range(y0 - 2, y0 + 3):
        if j < 0 or j >= NY:
            continue
        wy = 0.5 * (math.erf((j + 0.5 - y) * scale) - math.erf((j - 0.5 - y) * scale))
        if wy * charge < 0.1:
            continue
        for i in range(x0 - 2, x0 + 3):
            if i < 0 or i >= NX:
                continue
            q = charge * wy * 0.5 * (math.erf((i + 0.5 - x) * scale) - math.erf((i - 0.5 - x) * scale))
            if q >= 0.1:
                if n < index.size:
                    index[n] = j * NX + i
                    value[n] = q
                n += 1
    return n


@nb.njit(cache=True, nogil=True)
def _walk(key, expected, up, index, value):  # type: ignore[no-untyped-def]
    """Follow all particles; returns the number of contributions, which may exceed the room for them."""
    events = int(_poisson(expected, _hash(key, np.uint64(0))))
    n = 0
    for event in range(events):
        own = _hash(key, np.uint64(event + 1))
        c = np.uint64(1)
        x = _uniform(_hash(own, c)) * NX - 0.5
        y = _uniform(_hash(own, c + np.uint64(1))) * NY - 0.5
        kind = _uniform(_hash(own, c + np.uint64(2)))
        c += np.uint64(3)
        if kind < 0.6:
            # a muon, straight.  The chip stands upright: intensity cos^2 of the zenith angle times the
            # projected area of the chip
            while True:
                cz = _uniform(_hash(own, c))
                phi = 2.0 * math.pi * _uniform(_hash(own, c + np.uint64(1)))
                sz = math.sqrt(1.0 - cz * cz)
                normal = sz * abs(math.cos(phi))
                accept = _uniform(_hash(own, c + np.uint64(2))) < 2.0 * cz * cz * normal
                c += np.uint64(3)
                if accept and normal > 0.01:
                    break
            path = THICKNESS / normal
            side = sz * math.sin(phi)
            # per micron of path; most probable 72, with the tail of Moyal's distribution
            z = _normal(_hash(own, c))
            density = 72.0 + 6.0 * min(-math.log(z * z + 1e-12), 40.0)
            c += np.uint64(1)
            dx = (cz * math.cos(up) - side * math.sin(up)) / PIXEL_SIZE
            dy = (cz * math.sin(up) + side * math.cos(up)) / PIXEL_SIZE
            steps = int(path / 5.0) + 1
            length = path / steps
            for i in range(steps):
                t = (i + 0.5) * length
                z = _normal(_hash(own, c))
                c += np.uint64(1)
                charge = density * length * max(1.0 + 0.3 * z, 0.1)
                n = _deposit(x + t * dx, y + t * dy, t * normal, charge, index, value, n)
        elif kind < 0.85:
            # an electron of low energy: it is scattered and loses more and more on its way
            path = -math.log(_uniform(_hash(own, c))) * 140.0 + 5.0
            angle = 2.0 * math.pi * _uniform(_hash(own, c + np.uint64(1)))
            depth = THICKNESS * _uniform(_hash(own, c + np.uint64(2)))
            tilt = 2.0 * _uniform(_hash(own, c + np.uint64(3))) - 1.0
            c += np.uint64(4)
            path = min(path, 1200.0)
            steps = int(path / 5.0) + 1
            length = path / steps
            for i in range(steps):
                left = path - (i + 0.5) * length
                charge = length * (90.0 + 900.0 / (3.0 + left / 4.0))
                n = _deposit(x, y, depth, charge, index, value, n)
                bend = 0.3 + 2.0 / (1.0 + left / 15.0)
                angle += bend * _normal(_hash(own, c))
                tilt = min(max(tilt + 0.3 * bend * _normal(_hash(own, c + np.uint64(1))), -1.0), 1.0)
                c += np.uint64(2)
                plane = math.sqrt(1.0 - tilt * tilt) * length / PIXEL_SIZE
                x += math.cos(angle) * plane
                y += math.sin(angle) * plane
                depth += tilt * length
                if depth < 0.0 or depth > THICKNESS:
                    break
        else:
            # absorbed at one place
            charge = -math.log(_uniform(_hash(own, c))) * 1500.0 + 50.0
            depth = THICKNESS * _uniform(_hash(own, c + np.uint64(1)))
            n = _deposit(x, y, depth, charge, index, value, n)
    return n


@nb.njit(cache=True, nogil=True)
def _tracks(key, expected, up):  # type: ignore[no-untyped-def]
    room = int(1000 + 300 * expected)
    while True:
        index = np.empty(room, np.int32)
        value = np.empty(room, np.float32)
        n = _walk(key, expected, up, index, value)
        if n <= room:
            return index[:n].copy(), value[:n].copy()
        room = n
