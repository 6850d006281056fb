"""Running the reference pipeline and ours on the same files, and comparing their cubes bit by bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from musedask.cube.mosaic import combine, make_cube
from musedask.io.headers import cards_from_json, set_card
from musedask.io.pixtable import COLUMNS, scan_pixtable, set_limits, write_pixtable

#: cards of the cube's geometry; values that went through a file have 15 digits
WCS_KEYS = (
    "CTYPE1", "CTYPE2", "CTYPE3", "CUNIT1", "CUNIT2", "CUNIT3", "CRVAL1", "CRVAL2", "CRVAL3", "CRPIX1", "CRPIX2",
    "CRPIX3", "CD1_1", "CD1_2", "CD2_1", "CD2_2", "CD3_3", "CD1_3", "CD2_3", "CD3_1", "CD3_2",
)  # fmt: skip


def require_esorex():
    """Skip without the reference, but not in CI, where a skipped comparison would prove nothing."""
    if shutil.which("esorex") is None:
        if os.environ.get("CI"):
            pytest.fail("esorex is not installed, but CI needs it")
        pytest.skip("esorex is not installed")


class Esorex:
    """Runs recipes, each call once per session; `codes` are the exit statuses that pass."""

    def __init__(self, folder, *, datamd5=False, codes=(0,)):
        self.folder, self.codes = Path(folder), codes
        self.done = {}
        self.call = ["esorex", "--no-checksum", *([] if datamd5 else ["--no-datamd5"]), "--suppress-prefix=TRUE"]

    def __call__(self, recipe, inputs, **options):
        """Folder of the products of a recipe; `inputs` are (path, tag) pairs, None if it failed."""
        key = (recipe, tuple((str(p), t) for p, t in inputs), tuple(sorted(options.items())))
        if key not in self.done:
            folder = self.folder / f"{len(self.done):05d}"
            folder.mkdir()
            sof = folder / "in.sof"
            sof.write_text("".join(f"{path} {tag}\n" for path, tag in inputs))
            done = subprocess.run(
                [
                    *self.call, recipe,
                    *(f"--{k}={v}" for k, v in options.items()), str(sof),
                ],
                cwd=folder,
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                timeout=300,
            )  # fmt: skip
            (folder / "stdout").write_text(done.stdout + done.stderr)
            self.done[key] = (folder, done.returncode)
        folder, code = self.done[key]
        assert code in self.codes, (folder / "stdout").read_text()[-4000:]
        return folder

    def forget(self):
        """Delete all products, when there are too many to keep."""
        for folder, _ in self.done.values():
            shutil.rmtree(folder)
        self.done.clear()

    def cube(self, recipe, inputs, **options):
        """DATA, STAT and the DATA header of the cube that a recipe makes."""
        with fits.open(self(recipe, inputs, **options) / "DATACUBE_FINAL.fits") as hdus:
            data, stat = (hdus[n].data.astype(np.float32) for n in ("DATA", "STAT"))
            return data, stat, hdus["DATA"].header.copy()


def bits(values):
    """Float32 as integers, all NaN alike: equal means the same bits, also of signed zeros."""
    values = np.ascontiguousarray(values, np.float32)
    return np.where(np.isnan(values), 0x7FC00000, values.view(np.int32))


def difference(name, ours, reference, rounding=0.0):
    """What differs between two cubes by more than a relative difference, or an empty text."""
    if ours.shape != reference.shape:
        return f"{name}: shape {ours.shape}, reference {reference.shape}"
    a, b = bits(ours), bits(reference)
    if np.array_equal(a, b):
        return ""
    # sums of terms of both signs may be small: their roundings are those of the terms
    absolute = rounding * float(np.nanmedian(np.abs(reference)))
    if rounding and np.allclose(ours, reference, rtol=rounding, atol=absolute, equal_nan=True):
        return ""
    where = np.argwhere(a != b)
    nans = int((np.isnan(ours) != np.isnan(reference)).sum())
    first = "; ".join(f"{tuple(w)}: {ours[tuple(w)]!r}, reference {reference[tuple(w)]!r}" for w in where[:4])
    return f"{name}: {len(where)} of {a.size} voxels differ, {nans} in being NaN; {first}"


def assert_same(cube, reference, rounding=0.0):
    """The cube is that of the reference: geometry, NaN pattern, DATA and STAT, to the last bit unless told so."""
    data, stat, header = reference
    found = [
        difference("DATA", cube.flux.values, data, rounding),
        difference("STAT", cube.variance.values, stat, rounding),
    ]
    mine = cards_from_json(cube.attrs["data_header"])
    for key in WCS_KEYS:
        if isinstance(header.get(key), str):
            same = mine.get(key) == header[key]
        else:
            same = mine.get(key) == pytest.approx(header[key], rel=2e-14, abs=1e-300)
        if not same:
            found.append(f"{key}: {mine.get(key)}, reference {header[key]}")
    assert not any(found), "\n".join(f for f in found if f)


def compare_combine(esorex, tmp_path, paths, *, offset_list=None, output_wcs=None, order=None, rounding=0.0, **options):
    """Combine with both pipelines and compare; returns our cube."""
    inputs = [(p, "PIXTABLE_REDUCED") for p in (order or paths)]
    inputs += [(p, t) for p, t in ((offset_list, "OFFSET_LIST"), (output_wcs, "OUTPUT_WCS")) if p is not None]
    reference = esorex.cube("muse_exp_combine", inputs, filter="none", **options)
    cube = combine(
        paths, tmp_path / "ours.zarr", offset_list=offset_list, output_wcs=output_wcs, filter="none",
        overwrite=True, **options,
    )  # fmt: skip
    assert_same(cube, reference, rounding)
    return cube


def compare_make_cube(esorex, tmp_path, paths, *, output_wcs=None, **options):
    """Make a cube with both pipelines and compare; returns our cube."""
    inputs = [(p, "PIXTABLE_OBJECT") for p in paths]
    inputs += [(output_wcs, "OUTPUT_WCS")] if output_wcs is not None else []
    reference = esorex.cube("muse_scipost_make_cube", inputs, filter="none", **options)
    cube = make_cube(
        paths, tmp_path / "ours.zarr", output_wcs=output_wcs, filter="none", overwrite=True, **options
    )
    assert_same(cube, reference)
    return cube


# ------------------------------------------------------------------------------ editing inputs


def edit_table(path, change=None, cards=None, *, form="image", output=None):
    """Rewrite a pixel table after ``change(columns)``, with other header cards (None removes one)."""
    table = scan_pixtable(path)
    columns = {name: table.read(name).copy() for name in table.columns}
    units = {name: column.unit for name, column in table.columns.items()}
    header = table.header.copy()
    flat = table.read_flat_field()
    if change is not None:
        columns = change(columns) or columns
        if not set(columns) <= set(units):
            units |= dict.fromkeys(set(columns) - set(units), "")
        origin = columns["origin"]
        zero = [header.get(f"CRVAL{i}", 0.0) if table.stage == "deg" else 0.0 for i in (1, 2)]
        limits = [(float(columns[n].min()), float(columns[n].max())) for n in ("xpos", "ypos", "lambda")]
        set_limits(
            header,
            tuple(float(np.float32(v + zero[0])) for v in limits[0]),
            tuple(float(np.float32(v + zero[1])) for v in limits[1]),
            limits[2],
            *((int(v.min()), int(v.max())) for v in ((origin >> 6) & 31, origin & 63)),
        )
    for key, value in (cards or {}).items():
        if value is None:
            header.remove(key, ignore_missing=True)
        else:
            set_card(header, key, value)
    ordered = {name: columns[name] for name in (*COLUMNS, "weight") if name in columns}
    with warnings.catch_warnings():
        # comments that do not fit are cut
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        write_pixtable(output or path, header, ordered, units, form=form, flat_field=flat, overwrite=True)


def write_wcs(path, *, axes=3, size=(30, 30, 12), crval=(150.1, -27.8), crpix=None, cd=None, wave=None):
    """An OUTPUT_WCS; `wave` is (CTYPE3, CRVAL3, CRPIX3, CD3_3)."""
    hdu = fits.ImageHDU(np.zeros(size[:axes][::-1], np.int16))
    ctype3, crval3, crpix3, cd3_3 = wave or ("AWAV", 6500.0, 1.0, 1.25)
    crpix = crpix or ((size[0] + 1) / 2.0, (size[1] + 1) / 2.0)
    cd = cd or (-0.2 / 3600, 0.0, 0.0, 0.2 / 3600)
    hdu.header.update(
        {
            "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg",
            "CRVAL1": float(crval[0]), "CRVAL2": float(crval[1]), "CRPIX1": float(crpix[0]), "CRPIX2": float(crpix[1]),
            "CD1_1": cd[0], "CD1_2": cd[1], "CD2_1": cd[2], "CD2_2": cd[3],
        }
    )  # fmt: skip
    if axes == 3:
        hdu.header.update({"CTYPE3": ctype3, "CUNIT3": "Angstrom", "CRVAL3": crval3, "CRPIX3": crpix3, "CD3_3": cd3_3})
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path, overwrite=True)
    return path


def rotated_cd(angle, x=0.2, y=0.2):
    """CD matrix of a grid of `x` by `y` arcsec turned by `angle` degrees."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return (-c * x / 3600, s * y / 3600, s * x / 3600, c * y / 3600)
