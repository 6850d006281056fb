"""The simulated detector: its numbers have the right statistics, its defects and hits are where it says."""

from __future__ import annotations

import numba as nb
import numpy as np
import pytest
from scipy import stats

from musedask.errors import InputError
from musedask.instrument import N_IFUS
from musedask.io.raw import RAW_SHAPE
from musedask.sim import detector as module
from musedask.sim.detector import NX, NY, RAW_NX, RAW_NY, SCAN, Detector, _hash, _normal, _poisson

HALF = RAW_NY // 2, RAW_NX // 2
#: data sections of the quadrants on the raw image
SECTIONS = (
    np.s_[32:2088, 32:2080],
    np.s_[32:2088, 2144:4192],
    np.s_[2152:4208, 2144:4192],
    np.s_[2152:4208, 32:2080],
)


@nb.njit
def draw(mean, key, n):
    out = np.empty(n)
    for i in range(n):
        bits = _hash(np.uint64(key), np.uint64(i))
        out[i] = _normal(bits) if mean < 0 else _poisson(mean, bits)
    return out


def trim(image):
    y = np.r_[SCAN : HALF[0] - SCAN, HALF[0] + SCAN : RAW_NY - SCAN]
    x = np.r_[SCAN : HALF[1] - SCAN, HALF[1] + SCAN : RAW_NX - SCAN]
    return image[np.ix_(y, x)]


@pytest.fixture(scope="module")
def detector():
    return Detector(5)


@pytest.fixture(scope="module")
def bias(detector):
    return detector.expose(None, 0.0, (1, 1), cosmic_rays=False)


# ------------------------------------------------------------------------------ random numbers


@pytest.mark.parametrize("mean", [0.01, 0.5, 5.0, 9.99, 10.0, 30.0, 1000.0, 40000.0])
def test_poisson_numbers(mean):
    n = 1_000_000
    numbers = draw(mean, 12345, n)
    assert np.array_equal(numbers, np.round(numbers)) and numbers.min() >= 0
    # five standard errors; that of the variance from the fourth moment
    assert numbers.mean() == pytest.approx(mean, abs=5 * np.sqrt(mean / n))
    assert numbers.var() == pytest.approx(mean, abs=5 * np.sqrt((mean + 2 * mean**2) / n))
    # the whole distribution, in bins of at least 50 expected
    edges = np.unique(stats.poisson.ppf(np.linspace(0, 1, 41)[1:-1], mean))
    cdf = np.concatenate([[0], stats.poisson.cdf(edges, mean), [1]])
    expected = n * np.diff(cdf)
    found = np.diff(np.concatenate([[0], np.searchsorted(np.sort(numbers), edges, side="right"), [n]]))
    used = expected > 50
    chi2 = ((found - expected)[used] ** 2 / expected[used]).sum()
    assert stats.chi2.sf(chi2, used.sum() - 1) > 1e-4


def test_poisson_of_nothing_is_nothing():
    assert not draw(0.0, 1, 1000).any()


def test_normal_numbers():
    n = 4_000_000
    z = draw(-1.0, 777, n)
    assert z.mean() == pytest.approx(0, abs=5 / np.sqrt(n))
    assert z.var() == pytest.approx(1, abs=5 * np.sqrt(2 / n))
    assert stats.kstest(z[:500_000], "norm").pvalue > 1e-4
    for limit in (2, 3, 3.6, 3.7, 4, 4.5):
        for tail in (z > limit, z < -limit):
            expected = n * stats.norm.sf(limit)
            assert tail.sum() == pytest.approx(expected, abs=5 * np.sqrt(expected))
    # the tail beyond the last layer is used, too
    assert 4.7 < np.abs(z).max() < 6.5


def test_noise_is_white(detector, bias):
    """Neither pixels side by side, nor one above the other, nor two frames have to do with each other."""
    other = detector.expose(None, 0.0, (1, 2), cosmic_rays=False, drift=bias.level)
    section = SECTIONS[0]
    level = detector.bias_level(bias.level)[0][section[0], None]
    a, b = (
        frame.image[section].astype(np.float64) - level - detector.column_pattern[: NX // 2] for frame in (bias, other)
    )
    a, b = (np.clip(v, -12, 12) for v in (a, b))
    n = a.size
    noise = np.hypot(detector.read_noise[0] / detector.gain[0], 12**-0.5)
    assert a.std() == pytest.approx(noise, rel=0.01)

    def correlation(u, v):
        return np.mean((u - u.mean()) * (v - v.mean())) / (u.std() * v.std())

    pairs = [(a[:, 1:], a[:, :-1]), (a[1:], a[:-1]), (a[1:, 1:], a[:-1, :-1]), (a, b), (a[:, 64:], a[:, :-64])]
    for u, v in pairs:
        assert abs(correlation(u, v)) < 6 / np.sqrt(n) + 1e-3
    # 64 frames of a pixel, from the counters themselves
    seeds = [module._sequence((1, i), 5).generate_state(1, np.uint64)[0] for i in range(64)]
    frames = np.array([draw(-1.0, seed, 20_000) for seed in seeds])
    matrix = np.corrcoef(frames)
    assert np.abs(matrix[~np.eye(64, dtype=bool)]).max() < 6 / np.sqrt(20_000)


# ------------------------------------------------------------------------------ frames


def test_frame_is_that_of_the_instrument(detector, bias):
    assert bias.image.shape == (RAW_NY, RAW_NX) == RAW_SHAPE
    assert bias.image.dtype == np.uint16
    assert bias.saturated == 0 and bias.cosmic_pixels.size == 0
    model = detector.bias_level(bias.level)
    for quadrant, (rows, columns) in enumerate(
        ((slice(0, HALF[0]), slice(0, HALF[1])), (slice(0, HALF[0]), slice(HALF[1], RAW_NX)),
         (slice(HALF[0], RAW_NY), slice(HALF[1], RAW_NX)), (slice(HALF[0], RAW_NY), slice(0, HALF[1])))
    ):  # fmt: skip
        side = int(quadrant in (1, 2))
        expected = model[side, rows]
        # overscan columns next to the middle hold the level alone
        strip = bias.image[rows, HALF[1] + (0 if side else -SCAN) : HALF[1] + (SCAN if side else 0)]
        assert np.abs((strip.mean(axis=1) - expected).mean()) < 0.05
        assert np.abs(np.add.reduceat(strip.mean(axis=1) - expected, range(0, HALF[0], 106)) / 106).max() < 0.3
        noise = np.hypot(detector.read_noise[quadrant] / detector.gain[quadrant], 12**-0.5)
        assert (strip - expected[:, None]).std() == pytest.approx(noise, rel=0.02)
        assert columns.start == side * HALF[1]


def test_photon_transfer_gives_the_gains(detector):
    """Variance over mean of differences of two flats."""
    rate = np.full((NY, NX), 500.0, np.float32)
    drift = np.zeros(4)
    first, second = (detector.expose(rate, 10.0, (3, i), cosmic_rays=False, drift=drift).image for i in (0, 1))
    response = detector.response()
    assert response.mean() == pytest.approx(1, abs=1e-4)
    assert response.std() == pytest.approx(module.PRNU, rel=0.01)
    model = detector.bias_level(drift)
    for quadrant, section in enumerate(SECTIONS):
        level = model[int(quadrant in (1, 2)), section[0]][:, None]
        difference = first[section].astype(np.float64) - second[section]
        signal = (first[section].astype(np.float64) + second[section]) / 2 - level
        good = np.abs(signal - np.median(signal)) < 500
        noise = detector.read_noise[quadrant] / detector.gain[quadrant]
        gain = signal[good].mean() / (difference[good].var() / 2 - noise**2 - 1 / 12)
        assert gain == pytest.approx(detector.gain[quadrant], rel=0.005)
        assert signal[good].mean() * gain == pytest.approx(5000, rel=0.005)
    # the response is that of the same pixels in all frames
    flat = first[SECTIONS[0]][100:1000, 100:2000].astype(np.float64)
    truth = response[100:1000, 100:2000].astype(np.float64)
    clean = np.abs(flat - np.median(flat)) < 400
    slope = np.cov(truth[clean], flat[clean])[0, 1] / truth[clean].var()
    assert slope * detector.gain[0] == pytest.approx(5000, rel=0.03)


def test_keys_and_truth(detector):
    kwargs = {"rate": None, "exptime": 30.0}
    first = detector.expose(**kwargs, key=(1, 1))
    again = Detector(5).expose(**kwargs, key=(1, 1))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.cosmic_pixels, again.cosmic_pixels)
    assert np.array_equal(first.cosmic_charge, again.cosmic_charge)
    # to a seed sequence alone the last one would be the same
    for key in ((1, 2), (2, 1), (1, 1, 0)):
        other = detector.expose(**kwargs, key=key)
        assert (other.image != first.image).mean() > 0.8
        assert not np.array_equal(other.cosmic_pixels, first.cosmic_pixels)
        assert not np.array_equal(other.level, first.level)


def test_ifus_differ():
    detectors = [Detector(i) for i in range(1, N_IFUS + 1)]
    assert len({d.chip_id for d in detectors}) == len({d.chip_name for d in detectors}) == N_IFUS
    assert len({tuple(d.gain) for d in detectors}) == N_IFUS
    for d in detectors:
        assert ((d.gain > 1) & (d.gain < 1.25)).all()
        assert ((d.read_noise > 2.4) & (d.read_noise < 3.2)).all()
        assert (np.abs(d.bias_level() - 1000) < 250).all()
        assert {int(kind) for kind in d.column_defects["kind"]} >= {0, 1, 2}


def test_bad_pixels_are_the_defects(detector):
    table = detector.bad_pixels()
    assert 1000 < len(table) < 30_000
    assert np.unique(table["y"].astype(np.int64) * 10_000 + table["x"]).size == len(table)
    mask = np.zeros((RAW_NY, RAW_NX), bool)
    mask[table["y"] - 1, table["x"] - 1] = True
    # all of them are data pixels
    assert trim(mask).sum() == len(table)
    status = np.zeros((RAW_NY, RAW_NX), np.int64)
    status[table["y"] - 1, table["x"] - 1] = table["status"]
    status = trim(status)
    assert set(np.unique(status)) <= {0, 0x100, 0x200, 0x40, 0x2000, 0x20000000, 0x20000100}
    hot = detector.hot_pixels
    assert (status.flat[hot["index"]] & 0x100).all()

    dark = trim(detector.expose(None, 1800.0, (1, 1), cosmic_rays=False).image).astype(np.float64)
    flat = trim(
        detector.expose(np.full((NY, NX), 3.0, np.float32), 100.0, (1, 2), cosmic_rays=False).image
    ).astype(np.float64)
    bright = hot["index"][hot["rate"] > 0.1]
    y, x = np.divmod(bright, NX)
    usual = np.where(x < NX // 2, np.median(dark[y, : NX // 2], axis=1), np.median(dark[y, NX // 2 :], axis=1))
    assert (dark[y, x] > usual + 80).all()
    for defect in detector.column_defects:
        rows = slice(defect["first"], defect["last"] + 1)
        here, near = (np.median(flat[rows, defect["x"] + i]) for i in (0, 3))
        change = {0: 300 * (defect["value"] - 1), 1: defect["value"], 2: -defect["value"]}[int(defect["kind"])]
        side, top = int(defect["x"] >= NX // 2), defect["first"] >= NY // 2
        gain = detector.gain[3 - side if top else side]
        assert here - near == pytest.approx(change / gain, abs=6)


def test_dark_current(detector):
    expected = detector.dark_current()
    assert 1.0 < np.median(expected) * 3600 < 5.0
    # brighter in the corners
    assert expected[5, 5] > expected[1000, 1000]
    frame = detector.expose(None, 3600.0, (4,), cosmic_rays=False, drift=np.zeros(4))
    for quadrant, section in enumerate(SECTIONS):
        side, top = int(quadrant in (1, 2)), quadrant > 1
        level = detector.bias_level()[side, section[0]][:, None]
        where = (slice(NY // 2, NY) if top else slice(NY // 2)), (slice(NX // 2, NX) if side else slice(NX // 2))
        charge = (frame.image[section] - level - detector.column_pattern[where[1]]) * detector.gain[quadrant]
        usual = charge < 60
        assert charge[usual].mean() == pytest.approx(3600 * expected[where].mean(), abs=0.05)
    warm = detector.expose(None, 3600.0, (4,), cosmic_rays=False, drift=np.zeros(4), temperature=173.0)
    assert np.median(warm.image) > np.median(frame.image)


def test_cosmic_rays_are_where_the_truth_says(detector):
    rate = np.full((NY, NX), 0.001, np.float32)
    clean = detector.expose(rate, 900.0, (9, 1), cosmic_rays=False)
    frame = detector.expose(rate, 900.0, (9, 1))
    assert (np.diff(frame.cosmic_pixels) > 0).all()
    mask = frame.cosmic_mask()
    assert mask.sum() == frame.cosmic_pixels.size
    # of a 15-minute exposure, pixels that stand out
    assert 1e-4 < (frame.cosmic_charge > 10).sum() / mask.size < 1.2e-3
    difference = trim(frame.image).astype(np.float64) - trim(clean.image)
    assert not difference[~mask].any()
    gain = np.empty((NY, NX))
    gain[: NY // 2, : NX // 2], gain[: NY // 2, NX // 2 :] = detector.gain[:2]
    gain[NY // 2 :, NX // 2 :], gain[NY // 2 :, : NX // 2] = detector.gain[2:]
    free = ~np.isin(np.arange(NX), detector.column_defects["x"])
    used = mask & free & (trim(frame.image) < 65535)
    charge = np.zeros(mask.shape)
    charge.flat[frame.cosmic_pixels] = frame.cosmic_charge
    assert np.abs(difference - charge / gain)[used].max() <= 1.0


def test_cosmic_rays_look_real():
    """Tracks: mostly short, some long; most pixels of a hit have neighbours in it; as many as time tells."""
    from scipy.ndimage import find_objects, label

    detector = Detector(2)
    frames = [detector.expose(None, t, (2, i)) for i, t in enumerate((0.0, 300.0, 3600.0))]
    events = []
    for frame in frames:
        strong = np.zeros(NY * NX, bool)
        strong[frame.cosmic_pixels[frame.cosmic_charge > 10]] = True
        labels, n = label(strong.reshape(NY, NX), np.ones((3, 3)))
        events.append(n)
    area = NX * NY * (module.PIXEL_SIZE * 1e-4) ** 2
    for n, time in zip(events, (0.0, 300.0, 3600.0), strict=True):
        expected = module.COSMIC_RATE * area * (time + module.READ_TIME / 2)
        assert n == pytest.approx(expected, abs=5 * np.sqrt(expected) + 0.05 * expected)
    sizes = np.bincount(labels.ravel())[1:]
    assert 3 < np.median(sizes) < 20
    lengths = np.array([max(s.stop - s.start for s in box) for box in find_objects(labels)])
    assert 1 <= np.percentile(lengths, 5) <= 3
    assert 10 < np.percentile(lengths, 95) < 60
    assert 30 < lengths.max() < 700
    charge = np.zeros(NY * NX)
    charge[frame.cosmic_pixels] = frame.cosmic_charge
    total = np.bincount(labels.ravel(), charge)[1:]
    # 40 micron of silicon at 72 e-/micron and more
    assert 2000 < np.median(total) < 12000


def test_saturation_and_nonlinearity(detector):
    rate = np.full((NY, NX), 1000.0, np.float32)
    rate[100:110, 200:220] = 1e6
    frame = detector.expose(rate, 1.0, (1,), cosmic_rays=False)
    assert frame.saturated == 200 == (frame.image == 65535).sum()
    assert (trim(frame.image)[100:110, 200:220] == 65535).all()
    rate[:] = 30_000.0
    straight, bent = (
        detector.expose(rate, 1.0, (1,), cosmic_rays=False, nonlinearity=n).image[SECTIONS[0]].astype(float)
        for n in (0.0, 0.02)
    )
    signal = np.median(straight) - 1000
    assert np.median(straight - bent) == pytest.approx(0.02 * signal**2 / 65535, rel=0.1)


@pytest.mark.parametrize("ifu", [0, 25, -1, 1.5, "3", None])
def test_no_such_ifu(ifu):
    with pytest.raises(InputError, match="expected 1 to 24"):
        Detector(ifu)


@pytest.mark.parametrize("value", [np.nan, -1e-3, np.inf, -np.inf])
def test_bad_rates(detector, value):
    rate = np.ones((NY, NX), np.float32)
    rate[4000, 17] = value
    with pytest.raises(InputError, match=r"x = 18, y = 4001 of IFU 5.*>= 0"):
        detector.expose(rate, 1.0, (1,))


@pytest.mark.parametrize(
    "change",
    [
        {"rate": np.ones((10, 10), np.float32)},
        {"rate": np.ones((RAW_NY, RAW_NX), np.float32)},
        {"exptime": -1.0},
        {"exptime": np.nan},
        {"exptime": np.inf},
        {"key": (1, -1)},
        {"key": 5},
        {"key": (1.5,)},
        {"temperature": 20.0},
        {"temperature": np.nan},
        {"drift": [1.0, 2.0]},
        {"drift": [np.nan] * 4},
        {"nonlinearity": -0.1},
        {"nonlinearity": 1.0},
    ],
)
def test_bad_requests(detector, change):
    with pytest.raises(InputError, match="expected"):
        detector.expose(**{"rate": None, "exptime": 1.0, "key": (1,), **change})
