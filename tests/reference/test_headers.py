"""Every card of the reference's products is in ours with the same value, or there is a reason why not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import warnings

import numpy as np
import pytest
from astropy.io import fits

from musedask.cube.exposure import group_exposures, place
from musedask.cube.grid import Limits, make_grid
from musedask.cube.params import ResampleParams
from musedask.cube.products import (
    FilterInfo,
    fov_header,
    image_headers,
    product_headers,
    qc_fwhm,
    sdp_headers,
    sdp_image_headers,
    stat_unit,
)
from musedask.cube.store import block_limits, prepare, read_block
from musedask.instrument import pack_origin
from musedask.io.cube import open_cube, open_source
from musedask.io.euro3d import write_euro3d
from musedask.io.headers import STRUCTURAL, cards_to_json
from musedask.io.pixtable import set_limits, write_pixtable
from musedask.io.tables import read_offset_list, read_output_wcs
from musedask.recipes import EXP_COMBINE, MAKE_CUBE
from musedask.sim import Scene, Star, simulate_pixtables

pytestmark = pytest.mark.esorex

FIELD = {
    "ifus": (12, 13),
    "slices": 12,
    "slice_width": 24,
    "wave_range": (6540.0, 6550.0),
    "scene": Scene((Star(0.6, -0.4, 60000.0), Star(-1.6, 0.9, 40000.0)), fwhm=1.0),
}

#: cards that may differ from those of the reference, and why
REASONS = {
    r"DATE": "time of the run",
    r"DATAMD5|CHECKSUM|DATASUM": "made by the writer from the bytes of the file",
    r"COMMENT": "boilerplate of CFITSIO about the FITS format",
    r"ESO PRO REC\d+ (DRS|PIPE) ID": "says that musedask made the file",
    r"ESO QC .*": "tested in test_qc",
}
#: the same for images
IMAGE_REASONS = {
    **REASONS,
    r"ESO PRO REC\d+ CAL\d+ .*": "an image of the reference lists what had been read when it was written:"
    " FILTER_LIST is missing in those before its first use; ours lists what the cube lists",
}
#: cards whose value the reference spoils
SPOILT = {
    r"CONTINUE": "the reference cuts long strings into cards that are no FITS",
    r"LONGSTR": "the reference cuts long strings into cards that are no FITS",
    r"UNDEF": "the reference turns a missing value into its comment",
}


@pytest.fixture(autouse=True)
def esorex():
    if shutil.which("esorex") is None:
        if os.environ.get("CI"):
            pytest.fail("esorex is not installed, but CI needs it")
        pytest.skip("esorex is not installed")


def run(recipe, inputs, folder, **options):
    """Run a recipe on (path, tag) pairs; returns the folder of its products."""
    folder.mkdir()
    sof = folder / "in.sof"
    sof.write_text("".join(f"{path} {tag}\n" for path, tag in inputs))
    done = subprocess.run(
        ["esorex", recipe.name, *(f"--{k}={v}" for k, v in options.items()), str(sof)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return folder


def layout(recipe, inputs, **options):
    """Header of the combined table, grid and other arguments of product_headers, as in a run of ours."""
    values = recipe.resolve(options)
    params = ResampleParams.from_values(values)
    of = {tag: path for path, tag in inputs}
    tables = [path for path, tag in inputs if tag.startswith("PIXTABLE")]
    exposures = group_exposures(tables)
    offsets = read_offset_list(of["OFFSET_LIST"]) if "OFFSET_LIST" in of else None
    output = read_output_wcs(of["OUTPUT_WCS"]) if "OUTPUT_WCS" in of else None
    stage = exposures[0].stage
    if stage == "rad":
        placements, header = place(exposures, offsets, params.weight)
    else:
        placements, header = None, exposures[0].header.copy()
    if stage != "rad":
        limits = Limits.from_header(header)
    else:
        extremes = np.array([np.inf, -np.inf] * 3)
        for i, exposure in enumerate(exposures):
            for source in exposure.sources:
                rows, _ = read_block(exposure, source, 0, source.table.n_rows, (4000.0, 10000.0))
                if placements:
                    vacuum = output is not None and output.ctype3.startswith("WAVE")
                    prepare(rows, placements[i], vacuum=vacuum)
                found = np.array(block_limits(rows))
                extremes[::2] = np.minimum(extremes[::2], found[::2])
                extremes[1::2] = np.maximum(extremes[1::2], found[1::2])
        zero = (header["CRVAL1"], header["CRVAL2"]) if stage != "pix" else (0.0, 0.0)
        limits = Limits.from_rows(extremes, zero)
    grid = make_grid(header, limits, params, output, celestial=stage != "pix")
    calibs = []
    for path, tag in inputs:
        filters = str(values["filter"]).split(",")
        if tag.startswith("PIXTABLE") or (tag == "FILTER_LIST" and filters == ["white"]):
            continue
        calibs.append((os.path.basename(path), tag, fits.getheader(path).get("DATAMD5")))
    unit = exposures[0].sources[0].table.columns["data"].unit
    return header, grid, {
        "recipe": recipe,
        "values": values,
        "raws": [(os.path.basename(p), tag) for p, tag in inputs if tag.startswith("PIXTABLE")],
        "calibs": calibs,
        "units": (unit, stat_unit(unit)),
        "raw_header": fits.getheader(tables[0]),
    }  # fmt: skip


def written(header):
    """The header after it has been in a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        return fits.Header.fromstring(header.tostring())


def compare(ours, reference, *, reasons=REASONS, rel=1e-13, qc=3e-6):
    """Compare all cards; returns the keywords that were let pass for a reason."""
    ours = written(ours)
    passed = re.compile("|".join(f"({pattern})$" for pattern in reasons))
    keys = {
        name: [c.keyword for c in header.cards if not STRUCTURAL.match(c.keyword)]
        for name, header in (("ours", ours), ("reference", reference))
    }
    for name, found in keys.items():
        twice = {k for k in found if found.count(k) > 1 and k not in ("COMMENT", "HISTORY", "CONTINUE")}
        assert not twice, f"{name}: {twice}"
    differing = {k for k in set(keys["ours"]) ^ set(keys["reference"]) if not passed.match(k)}
    assert not differing, {k: "ours" if k in ours else "reference" for k in differing}
    for key in set(keys["ours"]) & set(keys["reference"]):
        if passed.match(key):
            continue
        mine, theirs = ours[key], reference[key]
        if isinstance(mine, (int, float)) and isinstance(theirs, (int, float)):
            if key.startswith("ESO QC"):
                rel = qc
            elif key == "ABMAGLIM":
                # rounding of a smoothed image
                rel = 1e-8
            # the last digits of a projection depend on the mathematical library
            tolerance = 1e-9 if key.startswith("CRPIX") else 1e-300
            assert mine == pytest.approx(theirs, rel=rel, abs=tolerance), key
            assert isinstance(mine, bool) == isinstance(theirs, bool), key
        else:
            assert str(mine) == str(theirs), key


def compare_comments(ours, reference):
    """Comments of cards are the same as far as they fit, except descriptions of parameters."""
    ours = written(ours)
    for key in set(ours) & set(reference):
        if re.match(r"ESO PRO REC\d+ (PARAM\d+ NAME|.* ID|CAL\d+ .*)|DATE|DATAMD5|.*SUM|COMMENT", key):
            continue
        a, b = (h.comments[key].strip() for h in (ours, reference))
        # a number of more digits leaves less room
        assert a.startswith(b[:12]) or b.startswith(a[:12]), (key, a, b)


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    return simulate_pixtables(
        tmp_path_factory.mktemp("rad") / "in",
        **FIELD,
        rotations=(0.0, 90.0, 33.0),
        exptimes=(900, 600),
        flux_scales=(1.0, 1.2, 0.9),
        pointing_errors=[(2.0, -1.0), (-1.0, 0.5), (0.3, 0.8)],
    )


def filter_list(path):
    wave = np.arange(6500.0, 6600.0)
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column("lambda", "1D", unit="Angstrom", array=wave),
            fits.Column("throughput", "1D", array=np.exp(-0.5 * ((wave - 6550) / 10) ** 2)),
        ]
    )
    table.header.update({"EXTNAME": "Narrow", "ZP_VEGA": 0.5, "ZP_AB": 1.5})
    primary = fits.PrimaryHDU()
    primary.header["DATAMD5"] = "0123456789abcdef0123456789abcdef"
    fits.HDUList([primary, table]).writeto(path)
    return path


def output_wcs(path):
    hdu = fits.ImageHDU(np.zeros((8, 40, 38), np.float32))
    hdu.header.update(
        {
            "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CTYPE3": "WAVE-LOG",
            "CUNIT1": "deg", "CUNIT2": "deg", "CUNIT3": "Angstrom",
            "CRVAL1": 150.1, "CRVAL2": -27.8, "CRVAL3": 6541.123456789012,
            "CRPIX1": 20.3, "CRPIX2": 19.7, "CRPIX3": 1.0,
            "CD1_1": -0.25 / 3600, "CD2_2": 0.25 / 3600, "CD1_2": 1e-6, "CD2_1": 1e-6, "CD3_3": 1.5,
        }
    )  # fmt: skip
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    return path


def check_cube(folder, ours, *, reasons=REASONS):
    with fits.open(folder / "DATACUBE_FINAL.fits") as hdus:
        for header, name in zip(ours, (0, "DATA", "STAT"), strict=True):
            compare(header, hdus[name].header, reasons=reasons)
            if reasons is REASONS:
                compare_comments(header, hdus[name].header)


@pytest.mark.parametrize("with_wcs", [False, True])
def test_combine(tmp_path, sim, with_wcs):
    inputs = [(str(path), "PIXTABLE_REDUCED") for path in sim.paths]
    inputs.append((str(filter_list(tmp_path / "filters.fits")), "FILTER_LIST"))
    inputs.append((str(sim.offset_list), "OFFSET_LIST"))
    options = {"filter": "white,Narrow", "lambdamin": 4000.125, "pixfrac": "0.5"}
    if with_wcs:
        inputs.insert(3, (str(output_wcs(tmp_path / "wcs.fits")), "OUTPUT_WCS"))
        options["crsigma"] = 5.25
    folder = run(EXP_COMBINE, inputs, tmp_path / "out", **options)
    header, grid, given = layout(EXP_COMBINE, inputs, **options)
    ours = product_headers(header, grid, **given)
    check_cube(folder, ours)
    for number, name in enumerate(("white", "Narrow"), 1):
        with fits.open(folder / f"IMAGE_FOV_{number:04d}.fits") as hdus:
            fraction = hdus[0].header["ESO DRS MUSE FILTER FRACTION"]
            zero = (0.5, 1.5) if name == "Narrow" else ()
            image = image_headers(*ours[:2], FilterInfo(name, fraction, *zero).cards(), number)
            for i in (0, 1):
                compare(image[i], hdus[i].header, reasons=IMAGE_REASONS)
                compare_comments(image[i], hdus[i].header)


def test_images_in_cube(tmp_path, sim):
    inputs = [(str(path), "PIXTABLE_REDUCED") for path in sim.paths]
    folder = run(EXP_COMBINE, inputs, tmp_path / "out", format="xCube")
    header, grid, given = layout(EXP_COMBINE, inputs, format="xCube")
    ours = product_headers(header, grid, **given)
    check_cube(folder, ours)
    with fits.open(folder / "DATACUBE_FINAL.fits") as hdus:
        reference = hdus["white"].header
        info = FilterInfo("white", reference["ESO DRS MUSE FILTER FRACTION"])
        image = fov_header(*ours[:2], info.cards())
        compare(image, reference)
        compare_comments(image, reference)


def spoil(path, number):
    """Add cards of many kinds to a table, different in each."""
    plain = (
        "ORIGIN TELESCOP INSTRUME PI-COI OBSERVER TIMESYS AIRMASS IMAGETYP FOO PROGRAM ARCFILE ORIGFILE "
        "MJD-END TEXPTIME NCOMBINE OBID1 PROG_ID PRODCATG DATAMD5 EXTVER PROCSOFT AUTHOR HDUCLASS HDUCLAS1 "
        "HDUVERS BUNIT TITLE CROTA1 RESTWAV SPECSYS SSYSOBS VELOSYS ZSOURCE EXTNAME LONPOLE LATPOLE CSYER1 "
        "CSYER2 CRDER1 HDRVER CHECKSUM BLANK NIGHT UTC LST SCIDATA"
    )
    numbers = "EXTVER BLANK VELOSYS ZSOURCE RESTWAV LONPOLE LATPOLE CSYER1 CSYER2 CRDER1 CROTA1 UTC LST"
    groups = "OBS TPL GEN TEL ADA INS DET DET2 DPR OCS AOS SEQ COM QC DRS RTC ACQ PRO"
    with fits.open(path, mode="update") as hdus:
        head = hdus[0].header
        del head["RADESYS"]
        head["RADECSYS"] = "FK5"
        for key in plain.split():
            head[key] = (number + 0.5 if key in numbers.split() else f"v{number}", f"c{number}")
        head["EXTVER"] = head["BLANK"] = number
        for group in groups.split():
            head[f"HIERARCH ESO {group} ZFOO"] = (number, f"c{number}")
            head[f"HIERARCH ESO {group} ONLY{number}"] = (number, f"c{number}")
        head[f"ONLY{number}"] = number
        head["HIERARCH ESO DRS MUSE ZFOO"] = (number, "foo")
        head["HIERARCH ESO DRS MUSE RTC STREHL"] = 0.3
        head["HIERARCH ESO DRS MUSE RTC STREHERR"] = 0.1
        head["HIERARCH ESO DRS MUSE PIXTABLE FFCORR"] = 24
        head["HIERARCH ESO PRO REC1 FOO"] = number
        head["HIERARCH ESO PRO REC2 CAL1 NAME"] = f"xx{number}"
        head["HIERARCH ESO PRO REC3 ID"] = f"xx{number}"
        head["HIERARCH FOOBAR BAZ"] = number
        head["FLOAT1"] = 1.23456789012345678e-7
        head["LONGI"] = 2**40
        if number == 3:
            del head["OBSERVER"], head["ESO PRO ANCESTOR"]
        head.add_history("something was done")


def test_which_cards_are_kept(tmp_path, sim):
    # the files are not given in the order of time: some cards are those of the first file given, some those
    # of the first exposure
    inputs = []
    for number in (3, 1, 2):
        path = tmp_path / f"{'long' * 20 if number == 2 else 'short'}{number}.fits"
        shutil.copy(sim.paths[number - 1], path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spoil(path, number)
        inputs.append((str(path), "PIXTABLE_REDUCED"))
    folder = run(EXP_COMBINE, inputs, tmp_path / "out")
    header, grid, given = layout(EXP_COMBINE, inputs)
    ours = product_headers(header, grid, **given)
    check_cube(folder, ours)
    with fits.open(folder / "IMAGE_FOV_0001.fits") as hdus:
        info = FilterInfo("white", hdus[0].header["ESO DRS MUSE FILTER FRACTION"])
        for mine, reference in zip(image_headers(*ours[:2], info.cards(), 1), hdus, strict=True):
            compare(mine, reference.header)


def test_single_ifus(tmp_path):
    sim = simulate_pixtables(tmp_path / "in", **FIELD, n_exposures=2, per_ifu=True, flat_field=True)
    inputs = [(str(path), "PIXTABLE_REDUCED") for path in sim.paths]
    folder = run(EXP_COMBINE, inputs, tmp_path / "out")
    header, grid, given = layout(EXP_COMBINE, inputs)
    check_cube(folder, product_headers(header, grid, **given))


@pytest.mark.parametrize("stage", ["pix", "rad", "deg"])
def test_make_cube(tmp_path, stage):
    sim = simulate_pixtables(tmp_path / "in", **FIELD, n_exposures=1, rotations=(30.0,), stage=stage)
    inputs = [(str(sim.paths[0]), "PIXTABLE_OBJECT")]
    folder = run(MAKE_CUBE, inputs, tmp_path / "out", dlambda=1.5)
    header, grid, given = layout(MAKE_CUBE, inputs, dlambda=1.5)
    check_cube(folder, product_headers(header, grid, **given))


def qc_cards(header):
    return {k: v for k, v in header.items() if k.startswith("ESO QC")}


def star_tables(folder, image):
    """Two tables whose combination with the method "nearest" has this image in each of its three planes."""
    folder.mkdir()
    ny, nx = image.shape
    base = simulate_pixtables(folder / "sim", **{**FIELD, "ifus": (12,)}, n_exposures=1)
    y, x = np.mgrid[1 : ny + 1, 1 : nx + 1]
    x = -0.2 / 3600 * (x - nx / 2 - 0.25)
    y = 0.2 / 3600 * (y - ny / 2 - 0.25)
    phi = np.arctan2(x, -y) % (2 * np.pi)
    theta = np.arctan2(180 / np.pi, np.hypot(x, y))
    data = np.tile(image.ravel(), 3).astype(np.float32)
    n = len(data)
    columns = {
        "xpos": np.tile(phi.ravel(), 3).astype(np.float32),
        "ypos": np.tile((theta - np.pi / 2).ravel(), 3).astype(np.float32),
        "lambda": np.repeat([7000, 7001.25, 7002.5], nx * ny).astype(np.float32),
        "data": np.nan_to_num(data),
        "dq": np.where(np.isfinite(data), 0, 1 << 14).astype(np.int32),
        "stat": np.ones(n, np.float32),
        "origin": pack_origin(*(np.full(n, i) for i in (5, 100, 12, 3))),
    }
    units = {"xpos": "rad", "ypos": "rad", "lambda": "Angstrom", "data": "count", "stat": "count**2"}
    paths = []
    for number in (1, 2):
        header = fits.getheader(base.paths[0])
        header.update({"RA": 150.0, "DEC": 0.0, "DATE-OBS": f"2015-02-08T04:42:0{number}.381"})
        header.update({"CD1_1": -0.2 / 3600, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.2 / 3600})
        limits = [(columns[c].min(), columns[c].max()) for c in ("xpos", "ypos", "lambda")]
        set_limits(header, *limits, (12, 12), (3, 3))
        paths.append(folder / f"table{number}.fits")
        write_pixtable(paths[-1], header, columns, units)
    return paths


def scene(seed, faint=False):
    """Stars of many shapes, some blended, some at the border, with holes; noise is 1."""
    rng = np.random.default_rng(seed)
    ny, nx = rng.integers(25, 70, 2)
    y, x = np.mgrid[:ny, :nx]
    image = rng.normal(rng.choice([0, 5, -3]), 1, (ny, nx))
    for _ in range(rng.integers(1, 14)):
        dx, dy = x - rng.uniform(0, nx - 1), y - rng.uniform(0, ny - 1)
        ratio, width = rng.uniform(0.7, 1.4), rng.uniform(0.6, 2.5)
        peak = 10 ** rng.uniform(0.3, 0.9 if faint else 2.7)
        image += peak * np.exp(-(dx**2 / ratio + dy**2 * ratio) / 2 / width**2)
    if rng.random() < 0.5:
        image[1 : rng.integers(2, 8)] = np.nan
    if rng.random() < 0.5:
        image[rng.random(image.shape) < 0.01] = np.nan
    return image.astype(np.float32)


@pytest.mark.parametrize("faint", [False, True])
def test_qc(tmp_path, faint):
    # positions and numbers are equal, widths to the digits of a float32 card
    options = {"resample": "nearest", "crsigma": 0.0, "filter": "none"}
    found = 0
    for seed in range(6):
        paths = star_tables(tmp_path / f"in{seed}", scene(seed, faint))
        inputs = [(str(path), "PIXTABLE_REDUCED") for path in paths]
        folder = run(EXP_COMBINE, inputs, tmp_path / f"out{seed}", **options)
        _, grid, _ = layout(EXP_COMBINE, inputs, **options)
        with fits.open(folder / "DATACUBE_FINAL.fits") as hdus:
            reference = qc_cards(hdus[0].header)
            plane = hdus["DATA"].data[1]
        ours = {c[0]: c[1] for c in qc_fwhm(plane, grid, "ESO QC EXPCOMB")}
        assert list(ours) == list(reference)
        for key, value in reference.items():
            assert ours[key] == pytest.approx(value, rel=3e-6), key
        found += reference["ESO QC EXPCOMB NDET"]
    assert found >= (3 if faint else 15)


def test_qc_on_turned_grid(tmp_path, sim):
    inputs = [(str(path), "PIXTABLE_REDUCED") for path in sim.paths]
    inputs.append((str(output_wcs(tmp_path / "wcs.fits")), "OUTPUT_WCS"))
    folder = run(EXP_COMBINE, inputs, tmp_path / "out", filter="none")
    header, grid, given = layout(EXP_COMBINE, inputs, filter="none")
    with fits.open(folder / "DATACUBE_FINAL.fits") as hdus:
        qc = qc_fwhm(hdus["DATA"].data[grid.nz // 2], grid, "ESO QC EXPCOMB")
        ours = product_headers(header, grid, **given, qc=qc)
        reference = qc_cards(hdus[0].header)
        assert list(qc_cards(ours[0])) == list(reference)
        assert reference["ESO QC EXPCOMB NDET"] >= 2
        for key, value in reference.items():
            assert ours[0][key] == pytest.approx(value, rel=3e-6), key
        check_cube(folder, ours, reasons={k: v for k, v in REASONS.items() if "QC" not in k})


@pytest.mark.parametrize("kind", ["combine", "output_wcs", "pix", "steps"])
def test_euro3d(tmp_path, sim, kind):
    recipe, options = EXP_COMBINE, {"format": "xEuro3D"}
    inputs = [(str(path), "PIXTABLE_REDUCED") for path in sim.paths]
    if kind == "output_wcs":
        inputs.append((str(output_wcs(tmp_path / "wcs.fits")), "OUTPUT_WCS"))
    elif kind == "steps":
        options.update(dx=0.3, dy=0.4)
    elif kind == "pix":
        one = simulate_pixtables(tmp_path / "in", **FIELD, n_exposures=1, rotations=(30.0,), stage="pix")
        recipe, inputs = MAKE_CUBE, [(str(one.paths[0]), "PIXTABLE_OBJECT")]
    folder = run(recipe, inputs, tmp_path / "out", **options)
    as_cube = run(recipe, inputs, tmp_path / "cube", **{**options, "format": "xCube"})
    header, grid, given = layout(recipe, inputs, **options)
    cube = open_cube(as_cube / "DATACUBE_FINAL.fits")
    primary, data, stat = product_headers(header, grid, **given)
    cube.attrs.update(
        primary_header=cards_to_json(primary), data_header=cards_to_json(data), stat_header=cards_to_json(stat)
    )
    # pieces of a few spaxels
    write_euro3d(cube, tmp_path / "ours.fits", images=True, memory_limit=30000)
    write_euro3d(cube, tmp_path / "whole.fits", images=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        with fits.open(tmp_path / "ours.fits", checksum=True) as ours, fits.open(
            folder / "DATACUBE_FINAL.fits"
        ) as reference, fits.open(tmp_path / "whole.fits") as whole:
            assert [hdu.name for hdu in ours] == [hdu.name for hdu in reference]
            reasons = {
                **REASONS,
                "BITPIX": "of a header without data",
                "ESO DRS MUSE FILTER FRACTION": "the reference counts one plane more for these formats",
            }
            for mine, theirs in zip(ours, reference, strict=True):
                compare(mine.header, theirs.header, reasons=reasons)
            for mine, theirs in zip(ours[1:3], reference[1:3], strict=True):
                assert mine.columns.names == theirs.columns.names
                for a, b in zip(mine.columns, theirs.columns, strict=True):
                    assert (a.format, a.unit, a.null) == (b.format, b.unit, b.null)
                for name in mine.columns.names:
                    a, b = mine.data[name], theirs.data[name]
                    if name in ("XPOS", "YPOS"):
                        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 if kind != "pix" else 1e-5)
                    elif mine.name == "E3D_GRP" and name[0:2] == "G_" and name != "G_SHAPE":
                        np.testing.assert_allclose(a, b, rtol=3e-7)
                    else:
                        np.testing.assert_array_equal(a, b, err_msg=name)
            np.testing.assert_array_equal(ours[1].data.tobytes(), whole[1].data.tobytes())
            for mine, theirs in zip(ours[3:], reference[3:], strict=True):
                # with an OUTPUT_WCS the reference cuts rows and columns with data off at the upper edges
                ny, nx = theirs.shape
                assert kind == "output_wcs" or mine.shape == theirs.shape
                np.testing.assert_array_equal(mine.data[:ny, :nx], theirs.data)


def check_sdp(tmp_path, inputs, **options):
    options["format"] = "sdpCube"
    folder = run(EXP_COMBINE, inputs, tmp_path / "out", **options)
    header, grid, given = layout(EXP_COMBINE, inputs, **options)
    plain = product_headers(header, grid, **given)
    tables = [fits.getheader(path) for path, tag in inputs if tag.startswith("PIXTABLE")]
    images = {}
    for name in str(options.get("filter", "white")).split(","):
        with fits.open(folder / f"IMAGE_FOV_{len(images) + 1:04d}.fits") as hdus:
            images[name] = hdus["DATA"].data.copy()
            info = FilterInfo(name, hdus[0].header["ESO DRS MUSE FILTER FRACTION"])
            mine = sdp_image_headers(image_headers(*plain[:2], info.cards(), len(images)))
            for header, reference in zip(mine, hdus, strict=True):
                compare(header, reference.header, reasons=IMAGE_REASONS)
    source = open_source(folder / "DATACUBE_FINAL.fits")
    ours = sdp_headers(plain, grid, sorted(tables, key=lambda h: h["DATE-OBS"]), source=source, images=images)
    with fits.open(folder / "DATACUBE_FINAL.fits") as hdus:
        for mine, reference in zip(ours, hdus[:3], strict=True):
            compare(mine, reference.header, reasons={**REASONS, "PROCSOFT": "says that musedask made the file"})
    return ours[0]


@pytest.mark.parametrize("kind", ["plain", "output_wcs", "steps", "headers", "no_seeing"])
def test_sdp(tmp_path, sim, kind):
    inputs, options = [(str(path), "PIXTABLE_REDUCED") for path in sim.paths], {}
    if kind == "output_wcs":
        inputs.append((str(output_wcs(tmp_path / "wcs.fits")), "OUTPUT_WCS"))
    elif kind == "steps":
        options.update(dx=0.3, dy=0.25)
    elif kind in ("headers", "no_seeing"):
        inputs = []
        for number, path in enumerate(sim.paths):
            copy = tmp_path / path.name
            shutil.copy(path, copy)
            with warnings.catch_warnings(), fits.open(copy, mode="update") as hdus:
                warnings.simplefilter("ignore", fits.verify.VerifyWarning)
                head = hdus[0].header
                if kind == "no_seeing":
                    del head["ESO TEL IA FWHMLIN"], head["ESO PRO ANCESTOR"]
                    head["ESO DRS MUSE PIXTABLE FLUXCAL"] = number != 1
                else:
                    head["ESO TEL IA FWHMLIN"] = 0.7 + 0.2 * number
                    head["ESO TEL AIRM START"] = 1.5 - 0.1 * number
                    head["ESO TEL AMBI FWHM END"] = 0.6 + number
                    head["ESO OBS ID"] = 200 - number
                    head["ESO OBS PROG ID"] = f"09{number}.B-0001(A)"
            inputs.append((str(copy), "PIXTABLE_REDUCED"))
    elif kind == "plain":
        inputs.append((str(sim.offset_list), "OFFSET_LIST"))
    primary = check_sdp(tmp_path, inputs, **options)
    assert 18 < primary["ABMAGLIM"] < 24


@pytest.mark.parametrize("strehl", [None, 0.3, 25.0])
def test_sdp_narrow_field(tmp_path, strehl):
    field = {**FIELD, "mode": "NFM-AO-N", "scene": None}
    sim = simulate_pixtables(tmp_path / "in", **field, n_exposures=2)
    for path in sim.paths if strehl is not None else ():
        with fits.open(path, mode="update") as hdus:
            hdus[0].header["HIERARCH ESO DRS MUSE RTC STREHL"] = strehl
            hdus[0].header["HIERARCH ESO DRS MUSE RTC STREHERR"] = 0.1
    check_sdp(tmp_path, [(str(path), "PIXTABLE_REDUCED") for path in sim.paths])
