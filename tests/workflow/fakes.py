"""A night of tiny frames with real headers, and a program that does what esorex does, as far as files go.

What the program makes depends on the content of its inputs and on its parameters alone, so that products can be
compared bit by bit, and it notes each call.
"""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import numpy as np
from astropy.io import fits

from musedask.recipes import RECIPES
from musedask.sim import Target, plan_night
from musedask.sim.headers import primary_header

#: questions about versions are many, and answered without starting Python
_FRONT = r'''#!/bin/sh
here=$(dirname "$0")
case "$1" in
--version)
    echo "     ***** ESO Recipe Execution Tool, version 3.13.6  *****"
    echo "Libraries used: CPL = 7.2.3, CFITSIO = 4.2.0" ;;
--man-page)
    echo RELEASE
    echo "  $2 -- version $(cat "$here/version")" ;;
*)
    exec PYTHON -ISs "$here/esorex.py" "$@" ;;
esac
'''
_SCRIPT = r'''
import hashlib, json, os, signal, sys, time
here = os.path.dirname(os.path.abspath(__file__))
words = sys.argv[1:]
options = dict(w[2:].split("=", 1) for w in words if w.startswith("--"))
recipe, sof = [w for w in words if not w.startswith("--")]
say = open(options["log-file"], "a")
def tell(kind, text):
    line = "01:02:03 [%s] %s: [tid=000] %s" % (kind, recipe, text)
    print(line, flush=True)
    print(line, file=say, flush=True)
tell(" INFO  ", "begins")
frames = [line.split() for line in open(sof).read().splitlines()]
ifu = int(options.get("nifu", 0))
line = json.dumps({"recipe": recipe, "ifu": ifu, "frames": frames, "options": options, "time": time.time(),
                   "threads": os.environ["OMP_NUM_THREADS"], "cwd": os.getcwd()}) + "\n"
# in one piece, since others write and read at the same time
log = os.open(here + "/calls.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
os.write(log, line.encode())
end = os.lseek(log, 0, os.SEEK_CUR)
os.close(log)
def gate():
    """Whether this call has to wait, being beyond those that may go on."""
    try:
        return open(here + "/calls.jsonl", "rb").read(end).count(b"\n") > int(open(here + "/gate").read())
    except OSError:
        return False
parent = os.getppid()
while gate() and os.getppid() == parent:
    time.sleep(0.01)
digest = hashlib.sha256()
settings = ("output-dir", "log-dir", "log-file", "products-sof", "nifu")
digest.update(repr(sorted((k, v) for k, v in options.items() if k not in settings)).encode())
def content(path):
    data = open(path, "rb").read()
    # cards about the act of writing do not count
    i = data.find(b"DATE    =")
    return data if i < 0 else data[:i] + data[i + 80:]
for path, tag in frames:
    digest.update(tag.encode() + content(path))
fault = ""
for key in (recipe, "%s-%02d" % (recipe, ifu)):
    try:
        fault = open(here + "/fault-" + key).read()
        if fault.startswith("once "):
            os.unlink(here + "/fault-" + key)
            fault = fault[5:]
    except OSError:
        pass
if fault == "fail":
    tell(" ERROR ", "the lamp was off")
    tell(" ERROR ", "Execution of recipe '%s' failed, status = -1" % recipe)
    sys.exit(255)
if fault == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if fault == "nothing":
    sys.exit(0)
if fault == "full":
    tell(" ERROR ", "No space left on device")
    sys.exit(28)
if fault.startswith("wait"):
    time.sleep(float(fault.split()[1]))
if fault.startswith("until"):
    other, its = fault.split()[1:]
    deadline = time.time() + 60
    while not any((c["recipe"], c["ifu"]) == (other, int(its)) for c in map(json.loads, open(here + "/calls.jsonl"))):
        if time.time() > deadline:
            tell(" ERROR ", "waited in vain for " + other)
            sys.exit(1)
        time.sleep(0.01)
tell("WARNING", "it is warm")
time.sleep(float(open(here + "/seconds").read()))
tags = {tag for _, tag in frames}
made = []
for product in json.load(open(here + "/products.json"))[recipe]:
    good = all(tag in tags for tag in product["frames"])
    for name, values in product["when"]:
        value = options[name].replace(" ", "").split(",")
        good = good and (bool(set(value) & set(values)) if values else value == ["true"])
    if not good:
        continue
    template = here + "/templates/" + product["tag"] + ".fits"
    if not os.path.exists(template):
        template = here + "/templates/" + ("ifu" if product["per_ifu"] else "all") + ".fits"
    data = open(template, "rb").read()
    own = hashlib.sha256(digest.digest() + product["tag"].encode()).hexdigest()
    data = data.replace(b"0" * 64, own.encode()).replace(b"CHAN00", b"CHAN%02d" % ifu)
    data = data.replace(b"PLACEHOLDER_OF_THE_CATEGORY", product["tag"].ljust(27).encode())
    name = product["name"].replace("NN", "%02d" % ifu)
    open(name, "wb").write(data)
    made.append({"name": name, "category": product["tag"]})
if fault == "late":
    os.kill(os.getpid(), signal.SIGKILL)
json.dump(made, open(options["products-sof"], "w"))
'''


class FakePipeline:
    """A program that answers like esorex, for all recipes.

    Parameters
    ----------
    folder : Path
    seconds : float
        How long a call takes.

    Attributes
    ----------
    path : Path
        What to give as ``esorex``.
    """

    def __init__(self, folder, seconds=0.0):
        self.folder = Path(folder)
        self.folder.mkdir()
        self.path = self.folder / "esorex"
        self.path.write_text(_FRONT.replace("PYTHON", sys.executable, 1))
        (self.folder / "esorex.py").write_text(_SCRIPT)
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)
        (self.folder / "version").write_text("2.8.7")
        (self.folder / "seconds").write_text(str(seconds))
        (self.folder / "products.json").write_text(json.dumps({name: _products(r) for name, r in RECIPES.items()}))
        templates = self.folder / "templates"
        templates.mkdir()
        _template(templates / "ifu.fits", EXTNAME="CHAN00")
        _template(templates / "all.fits")
        lines = np.array(
            [("OH 8-3 P1", 1, 7000.0, 1.0, 0), ("O2 0-1", 2, 8650.0, 2.0, 0), ("[O I] 6300", 3, 6300.3, 3.0, 0),
             ("Na I 5890", 4, 5890.0, 1.0, 0), ("OH 6-1", 5, 6562.6, 1.0, 0)],
            dtype=[("name", "S40"), ("group", "i4"), ("lambda", "f8"), ("flux", "f8"), ("dq", "i4")],
        )  # fmt: skip
        _template(templates / "SKY_LINES.fits", fits.BinTableHDU(lines, name="LINES"))
        continuum = np.array([(5000.0, 1.5), (6000.0, 2.5)], dtype=[("lambda", "f8"), ("flux", "f8")])
        _template(templates / "SKY_CONTINUUM.fits", fits.BinTableHDU(continuum, name="CONTINUUM"))

    def fault(self, what, recipe, ifu=None):
        """Say how calls of a recipe end; ``once fail`` for the next one only, empty for well.

        ``until muse_flat 1`` holds them until there is a call of that.
        """
        path = self.folder / ("fault-" + (recipe if ifu is None else f"{recipe}-{ifu:02d}"))
        if what:
            path.write_text(what)
        else:
            path.unlink(missing_ok=True)

    def gate(self, count=None):
        """Say how many calls go on; the others wait. None for all."""
        path = self.folder / "gate"
        if count is None:
            path.unlink(missing_ok=True)
        else:
            path.with_suffix(".new").write_text(str(count))
            path.with_suffix(".new").rename(path)

    def calls(self, recipe=None):
        """All calls so far."""
        path = self.folder / "calls.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [c for c in found if recipe in (None, c["recipe"])]

    def forget(self):
        """Forget the calls."""
        (self.folder / "calls.jsonl").unlink(missing_ok=True)


def _products(recipe):
    found = []
    for p in recipe.products:
        frames, when = [], []
        for alternatives in p.conditions():
            name, values = alternatives[0]
            if len(alternatives) > 1:
                break
            if values is not None:
                when.append((name, values))
            elif name.endswith(" frames are given"):
                frames.append(name.split()[0])
            elif name != "a filter is chosen":
                break
        else:
            found.append({"tag": p.tag, "when": when, "frames": frames, "per_ifu": p.per_ifu, "name": _name(p)})
    return found


def _name(product):
    name = product.file_name(99 if product.per_ifu else None)
    return name.replace("-99.fits", "-NN.fits")


def _template(path, *extensions, **cards):
    primary = fits.PrimaryHDU(np.zeros(8, np.uint8))
    primary.header["PIPEFILE"] = "x.fits"
    primary.header["HIERARCH ESO PRO CATG"] = "PLACEHOLDER_OF_THE_CATEGORY"
    primary.header["HASH"] = "0" * 64
    primary.header["HIERARCH ESO QC FAKE VALUE"] = 1.5
    primary.header.update(cards)
    fits.HDUList([primary, *extensions]).writeto(path, checksum=True)


# --- frames ------------------------------------------------------------------------------------------

#: frames of a night, small numbers
COUNTS = {"BIAS": 3, "FLAT": 3, "ARC": 1, "SKYFLAT": 3, "ASTROMETRY": 0, "STD": 1, "SKY": 1, "ILLUM": 1, "DARK": 3}


def two_nights(mode="WFM-NOAO-N"):
    """Plans of two observing blocks of two exposures each, one of them split over two nights."""
    place = {"ra": 30.0, "dec": -33.0, "dithers": 2, "exptimes": (300.0,)}
    split = {**place, "ra": 31.0, "id": 200002}
    first = Target("Field A", id=200001, **place)
    plans = plan_night("2018-11-08", mode=mode, targets=[first, Target("Field-B", part=(0, 1), **split)], counts=COUNTS)
    second = Target("Field-B", part=(1, 2), sky=0, **split)
    return plans + plan_night(
        "2018-11-09", mode=mode, targets=[second], counts={**COUNTS, "DARK": 0}, first_index=len(plans)
    )


def write_raws(folder, plans, ifus=(1, 2)):
    """Write frames with all their headers and next to no pixels."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for plan in plans:
        name = f"MUSE.{plan.date_obs}.fits"
        header = primary_header(plan, origfile=name, arcfile=name)
        hdus = [fits.PrimaryHDU(header=header)]
        for ifu in ifus:
            hdu = fits.ImageHDU(np.full((2, 2), plan.index * 100 + ifu, np.int16), name=f"CHAN{ifu:02d}")
            hdu.header["HIERARCH ESO DET CHIP LIVE"] = True
            hdus.append(hdu)
        fits.HDUList(hdus).writeto(folder / name, overwrite=True)
    return folder


def write_statics(folder, mode="WFM-NOAO-N"):
    """Static calibrations with nothing in them but what they are."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for tag in (
        "LINE_CATALOG", "BADPIX_TABLE", "GEOMETRY_TABLE", "ASTROMETRY_WCS", "EXTINCT_TABLE", "STD_FLUX_TABLE",
        "TELLURIC_REGIONS", "FILTER_LIST", "SKY_LINES", "RAMAN_LINES", "VIGNETTING_MASK", "ASTROMETRY_REFERENCE",
    ):  # fmt: skip
        primary = fits.PrimaryHDU(np.arange(4, dtype=np.int16))
        primary.header["HIERARCH ESO PRO CATG"] = tag
        primary.header["HIERARCH ESO INS MODE"] = mode
        primary.header["INSTRUME"] = "MUSE"
        primary.writeto(folder / f"{tag.lower()}.fits", overwrite=True)
    return folder


#: categories of master calibrations, and the frames of which they are
MASTERS = {
    "MASTER_BIAS": "BIAS", "MASTER_FLAT": "FLAT", "TRACE_TABLE": "FLAT", "WAVECAL_TABLE": "ARC", "LSF_PROFILE": "ARC",
    "TWILIGHT_CUBE": "SKYFLAT", "MASTER_DARK": "DARK", "STD_RESPONSE": "STD",
}  # fmt: skip


def write_masters(folder, plans, tags=tuple(MASTERS), ifus=(1, 2)):
    """Write master calibrations of the archive, of the first frame of their kind; merged, and with few pixels."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for tag in tags:
        plan = next(p for p in plans if p.tag == MASTERS[tag])
        header = primary_header(plan, origfile="x", arcfile="x")
        for card in [*header["ESO DPR*"], "ARCFILE", "ORIGFILE"]:
            header.remove(card, ignore_missing=True)
        header["HIERARCH ESO PRO CATG"] = tag
        hdus = [fits.PrimaryHDU(header=header)]
        if tag not in ("TWILIGHT_CUBE", "STD_RESPONSE"):
            hdus += [fits.ImageHDU(np.full((2, 2), i, np.int16), name=f"CHAN{i:02d}.DATA") for i in ifus]
        fits.HDUList(hdus).writeto(folder / f"M.{tag}.fits", overwrite=True)
    return folder


def sections(nights, root, esorex="esorex", **more):
    """A configuration: that of a reduction by own calibrations, with other sections and keys."""
    found = {
        "global": {"rootpath": str(root), "static_calib_path": str(nights / "static"), "using_ESO_calibration": False},
        "musedask": {"raw": [str(nights / "raw")], "esorex": str(esorex), "engine": "esorex", "ifus": [1]},
    }  # fmt: skip
    for name, keys in more.items():
        found.setdefault(name.removesuffix("_"), {}).update(keys)
    return found
