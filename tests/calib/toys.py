"""Small raw frames, native recipes that do next to nothing, and a program that says it is esorex."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import numpy as np
from astropy.io import fits

from musedask.calib.task import Made
from musedask.errors import InputError
from musedask.io.calibrations import WavecalTable
from musedask.io.muse_image import MuseImage
from musedask.io.product_files import write_product
from musedask.io.product_headers import recipe_header
from musedask.io.raw import read_raw, write_raw
from musedask.io.sof import Frame
from musedask.recipes import get_recipe

#: pixels of a quadrant of the small frames
NX = NY = 64


def raw_headers(number, *, kind="BIAS", ifus=(1, 2), cards=None, channel_cards=None):
    """Primary header and those of the IFUs of a small raw frame, as far as the reference needs them."""
    primary = fits.Header()
    for key, value in {
        "INSTRUME": "MUSE", "OBJECT": kind, "RADECSYS": "FK5", "ORIGFILE": "MUSE.fits",
        "DATE-OBS": f"2018-11-08T21:{number:02d}:00.000", "MJD-OBS": 58430.875 + number / 1440, "EXPTIME": 1.0,
        "ARCFILE": f"MUSE.2018-11-08T21:{number:02d}:00.000.fits", "ESO DET BINX": 1, "ESO DET BINY": 1,
        "ESO DET READ CURID": 1, "ESO DET READ CURNAME": "SCI1.0", "ESO INS MODE": "WFM-NOAO-N",
        "ESO DPR CATG": "CALIB", "ESO DPR TYPE": kind, "ESO DPR TECH": "IFU", **(cards or {}),
    }.items():  # fmt: skip
        primary[f"HIERARCH {key}" if " " in key else key] = value
    headers = []
    for ifu in ifus:
        header = fits.Header()
        header["EXTNAME"] = f"CHAN{ifu:02d}"
        named = {"CHIP NAME": f"chip{ifu}", "CHIP ID": f"id{ifu}", "CHIP LIVE": True}
        for n, (x, y) in enumerate([(1, 1), (4096, 1), (4096, 4112), (1, 4112)], 1):
            named |= {f"OUT{n} {k}": v for k, v in {
                "X": x, "Y": y, "NX": NX, "NY": NY, "PRSCX": 32, "PRSCY": 32, "OVSCX": 32, "OVSCY": 32, "GAIN": 1.1,
                "RON": 2.5,
            }.items()}  # fmt: skip
        for key, value in named.items():
            header[f"HIERARCH ESO DET {key}"] = value
        for key, value in (channel_cards or {}).items():
            header[f"HIERARCH {key}" if " " in key else key] = value
        headers.append(header)
    return primary, headers


def write_frame(path, number, *, level=1000.0, light=0.0, **options):
    """Write a small raw frame: noise on a level, and light on the pixels that are no overscans."""
    primary, headers = raw_headers(number, **options)
    images = []
    for k, header in enumerate(headers):
        rng = np.random.default_rng([number, k])
        image = rng.normal(level, 2.5, (2 * NY + 128, 2 * NX + 128))
        for y in (32, NY + 96):
            for x in (32, NX + 96):
                image[y : y + NY, x : x + NX] += light
        images.append((header, image.round().astype(np.uint16)))
    return write_raw(path, primary, images, overwrite=True)


def write_frames(folder, n=3, *, tag="BIAS", name=None, **options):
    """Write small raw frames and return them with their tags."""
    Path(folder).mkdir(exist_ok=True)
    name = name or tag.lower()
    return [
        Frame(write_frame(Path(folder) / f"{name}{i}.fits", i, kind=tag, **options), tag) for i in range(1, n + 1)
    ]


# --- native recipes --------------------------------------------------------------------------------


def toy_bias(task):
    """Master bias that is the mean of its frames; ``ovscreject`` says what goes wrong, and for which IFU."""
    from logging import getLogger

    images = [read_raw(f.path, task.ifu)[1].astype(np.float32) for f in task.tagged("BIAS")]
    fault, _, ifu = str(task.values["ovscreject"]).partition(":")
    if fault != "dcr" and (not ifu or int(ifu) == task.ifu):
        if fault == "input":
            raise InputError(f"{task.frames[0].path}[CHAN{task.ifu:02d}]: ESO DET BINX 2 found, expected 1")
        if fault == "crash":
            raise ZeroDivisionError("oh")
        if fault == "nothing":
            return
        if fault == "die":
            # once for each IFU
            marker = Path(os.environ["TOY_FOLDER"]) / f"died-{task.ifu}"
            if not marker.exists():
                marker.touch()
                os._exit(1)
        if fault == "slow":
            time.sleep(1.0)
        if fault == "warn":
            getLogger("musedask").warning("%s: 3 pixels are saturated", task.frames[0].path.name)
    mean = np.mean(images, axis=0, dtype=np.float64).astype(np.float32)
    header = read_raw(task.frames[0].path, task.ifu, merge=True)[0]
    header["HIERARCH ESO QC BIAS MASTER NBADPIX"] = 0
    yield Made("MASTER_BIAS", MuseImage(mean, np.zeros(mean.shape, np.int32), mean / 100, "adu"), header)


def toy_flat(task):
    """Master flat, and a trace that fails."""
    image = read_raw(task.tagged("FLAT")[0].path, task.ifu)[1].astype(np.float32)
    yield Made("MASTER_FLAT", MuseImage(image), read_raw(task.tagged("FLAT")[0].path, task.ifu, merge=True)[0])
    raise InputError(f"IFU {task.ifu}: no slice was found")


def toy_wavecal(task):
    """Images of two lamps, and one of wavelengths."""
    arcs = task.tagged("ARC")
    for first in (0, 2):
        header, image = read_raw(arcs[first].path, task.ifu, merge=True)
        yield Made("ARC_RED_LAMP", MuseImage(image.astype(np.float32)), header, arcs[first : first + 2])
    header, image = read_raw(arcs[0].path, task.ifu, merge=True)
    header["BUNIT"] = "Angstrom"
    yield Made("WAVE_MAP", image.astype(np.float32), header)
    header, _ = read_raw(arcs[0].path, task.ifu, merge=True)
    yield Made("WAVECAL_TABLE", WavecalTable(np.zeros((48, 3, 7)), np.zeros(48)), header)


# --- a program that says it is esorex ---------------------------------------------------------------

_SCRIPT = r"""#!/bin/sh
here=$(dirname "$0")
case "$1" in
  --version) echo "     ***** ESO Recipe Execution Tool, version 3.13.6  *****"
             echo "Libraries used: CPL = 7.2.3, CFITSIO = 4.2.0"; exit 0;;
  --man-page) [ "$2" = muse_bias ] || exit 13
             printf 'RELEASE\n  %s -- version %s\n' "$2" "$(cat "$here/version")"; exit 0;;
esac
for word; do case "$word" in
  --nifu=*) ifu=$(printf %02d "${word#--nifu=}");;
  --log-file=*) log="${word#--log-file=}";;
  --products-sof=*) list="${word#--products-sof=}";;
esac; done
say() { echo "01:02:03 [$1] $2" | tee -a "$log"; }
product="MASTER_BIAS-$ifu.fits"
say " INFO  " "muse_bias: [tid=000] MUSE Instrument Pipeline v2.8.7"
say WARNING "muse_bias: [tid=000] quadrant 1 of IFU $ifu is warm"
mode=$(cat "$here/mode-$ifu" 2>/dev/null || cat "$here/mode")
env > "$here/environment"
printf '%s\n' "$@" > "$here/arguments"
cp frames.sof "$here/frames-$ifu.sof"
case "$mode" in
  fail) say " ERROR " "muse_bias: [tid=000] Required 3, found 2 input frames with tag \"BIAS\" with IFU $ifu"
        say " ERROR " "muse_bias: [tid=000] Dumping the 1 most recent error(s) out of a total of 1 errors:"
        say " ERROR " "muse_bias: [tid=000]   [1/1] 'An unspecified error' (1) at muse_bias_compute:muse_bias.c:152"
        say " ERROR " "esorex: [tid=000] Execution of recipe 'muse_bias' failed, status = -1"; exit 255;;
  nothing) exit 0;;
  truncated) head -c 6000 "$here/product-$ifu.fits" > "$product";;
  unsigned) cp "$here/unsigned-$ifu.fits" "$product";;
  killed) cp "$here/product-$ifu.fits" "$product"; kill -9 $$;;
  crash) kill -SEGV $$;;
  hang) cp "$here/product-$ifu.fits" "$product"; touch "$here/hangs-$ifu"; sleep 4321;;
  noise) echo "something else is wrong"; exit 3;;
  *) cp "$here/product-$ifu.fits" "$product";;
esac
printf '[{"name": "%s", "category": "MASTER_BIAS"}]' "$product" > "$list"
"""


class FakeEsorex:
    """A script that answers like esorex, with a master bias that was made before.

    Attributes
    ----------
    path : Path
        What to give as ``esorex``.
    """

    def __init__(self, folder, ifus=(1, 2, 3)):
        self.folder = Path(folder)
        self.folder.mkdir()
        self.path = self.folder / "esorex"
        self.path.write_text(_SCRIPT)
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)
        self.mode("good")
        (self.folder / "version").write_text("2.8.7")
        image = MuseImage(np.zeros((64, 64), np.float32), unit="adu")
        recipe = get_recipe("muse_bias")
        for ifu in ifus:
            primary, (channel,) = raw_headers(1, ifus=(ifu,))
            channel.extend(primary)
            header = recipe_header(
                channel, primary, recipe=recipe, values=recipe.resolve({}), raws=[], calibs=[],
                category="MASTER_BIAS", file_name=f"MASTER_BIAS-{ifu:02d}.fits",
            )  # fmt: skip
            write_product(self.folder / f"product-{ifu:02d}.fits", image, header)
            write_product(self.folder / f"unsigned-{ifu:02d}.fits", image, header, checksums=False)

    def mode(self, what, ifu=None):
        """Say how the calls end, all or those of an IFU."""
        (self.folder / ("mode" if ifu is None else f"mode-{ifu:02d}")).write_text(what)
