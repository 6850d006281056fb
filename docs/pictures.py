"""Make the pictures of docs/simulate.md from a simulated night that the reference pipeline has reduced.

    python benchmarks/chain.py --ifus 1-4 --masters --keep --work FOLDER
    python docs/pictures.py FOLDER
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from astropy.visualization import AsinhStretch, ImageNormalize, PercentileInterval

from musedask import open_cube
from musedask.io.raw import read_raw
from musedask.sim import NightTruth

IMAGES = Path(__file__).resolve().parent / "images"
#: piece of the frame that is shown enlarged: first and last column and row of the trimmed image
ZOOM = (2450, 2830, 800, 1120)


def _norm(image: np.ndarray, percent: float, a: float = 0.1) -> ImageNormalize:
    return ImageNormalize(image, interval=PercentileInterval(percent), stretch=AsinhStretch(a))


def trimmed(image: np.ndarray) -> np.ndarray:
    """The light-sensitive pixels of a raw image: without pre- and overscans."""
    rows = np.r_[32:2088, 2152:4208]
    columns = np.r_[32:2080, 2144:4192]
    return image[np.ix_(rows, columns)]


def frame(truth: NightTruth, path: Path) -> None:
    """A raw science frame, and the true edges of the slices on a piece of it."""
    exposure, ifu = truth.select("OBJECT")[0], truth.ifus[0]
    _, image = read_raw(exposure.path, ifu)
    pixels = trimmed(image)
    figure, (whole, piece) = plt.subplots(1, 2, figsize=(12, 6.2), layout="constrained")
    whole.imshow(image, origin="lower", cmap="gray", norm=_norm(image[::8, ::8], 98), interpolation="nearest")
    whole.set(title=f"raw exposure of {exposure.plan.exptime:g} s, IFU {ifu}", xlabel="x [pixel]", ylabel="y [pixel]")
    x0, x1, y0, y1 = ZOOM
    part = pixels[y0 - 1 : y1, x0 - 1 : x1]
    piece.imshow(
        part, origin="lower", cmap="gray", norm=_norm(part, 98.5), interpolation="nearest",
        extent=(x0 - 0.5, x1 + 0.5, y0 - 0.5, y1 + 0.5), aspect="auto",
    )  # fmt: skip
    y = np.linspace(y0, y1, 50)
    table, waves = truth.trace_table(ifu), truth.wavecal_table(ifu)
    for s in range(1, 49):
        left, right = table.edges(s, y)
        if right.max() < x0 or left.min() > x1:
            continue
        piece.plot(left, y, color="tab:orange", lw=1)
        piece.plot(right, y, color="tab:cyan", lw=1)
        middle = float((left + right)[25] / 2)
        if x0 + 20 < middle < x1 - 20:
            wave = float(waves.wavelength(s, middle, float(y[-1])))
            piece.text(middle, y1 - 12, f"{s}\n{wave:.0f} Å", color="w", ha="center", va="top", fontsize=8)
    piece.set(
        xlim=(x0, x1), ylim=(y0, y1), xlabel="x [trimmed pixel]", ylabel="y [trimmed pixel]",
        title="true edges of slices, wavelength at the upper end",
    )  # fmt: skip
    figure.savefig(path, dpi=90)
    plt.close(figure)


def cube(truth: NightTruth, source: Path, path: Path) -> None:
    """White light of the reduced cube, of the truth, and the spectrum of the brightest star."""
    data = open_cube(source)
    wave = data.wavelength.values
    step = slice(None, None, 16)
    with warnings.catch_warnings():
        # spaxels outside the field
        warnings.simplefilter("ignore", RuntimeWarning)
        image = np.nanmean(data.flux[step].values, axis=0)
    true = truth.truth_cube(source, wave[step]).mean(axis=0)
    figure, axes = plt.subplots(3, 1, figsize=(11, 8), layout="constrained", height_ratios=(1, 1, 1.6))
    norm = _norm(true, 99.5, 0.02)
    for axis, values, title in ((axes[0], image, "reduced by the reference"), (axes[1], true, "truth")):
        axis.imshow(values, origin="lower", cmap="magma", norm=norm, interpolation="nearest")
        axis.set(title=title, xticks=[], yticks=[])
    inner = np.where(np.isfinite(image), true, 0)[6:-6, 6:-6]
    y, x = (int(k) + 6 for k in np.unravel_index(np.argmax(inner), inner.shape))
    box = (slice(y - 3, y + 4), slice(x - 3, x + 4))
    spectrum = data.flux[:, box[0], box[1]].sum(("y", "x")).values
    model = truth.truth_cube(source, wave[::4], lsf_sigma=1.1)[:, box[0], box[1]].sum((1, 2))
    axes[2].plot(wave, spectrum, lw=0.5, label="reduced")
    axes[2].plot(wave[::4], model, lw=1, label="truth, where it was seen without losses")
    axes[2].set(
        xlabel="wavelength [Å]", ylabel="flux in 1.4 x 1.4 arcsec\n[1e-20 erg/s/cm²/Å]", xlim=(wave[0], wave[-1]),
        ylim=(0, 1.4 * float(np.nanmax(model))), title="the brightest star",
    )  # fmt: skip
    axes[2].legend(frameon=False)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Both pictures."""
    folder = Path(sys.argv[1])
    truth = NightTruth.open(folder / "night")
    frame(truth, IMAGES / "raw-frame.png")
    cube(truth, folder / "reduced" / "muse_exp_combine" / "DATACUBE_FINAL.fits", IMAGES / "simulated-cube.png")


if __name__ == "__main__":
    main()
