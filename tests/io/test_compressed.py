"""Files as fpack makes them: images compressed tile by tile, tables as they were."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from musedask.errors import InputError
from musedask.io import calibrations as cal
from musedask.io.merge import merge_products
from musedask.io.muse_image import (
    Mask,
    MuseImage,
    TwilightCube,
    read_mask,
    read_muse_image,
    read_quality,
    read_twilight_cube,
    read_wave_map,
    write_mask,
    write_muse_image,
    write_twilight_cube,
    write_wave_map,
)
from musedask.io.pixtable import COLUMNS, scan_pixtable, write_pixtable
from musedask.io.products import product_header

RNG = np.random.default_rng(5)


def pack(path, *, exact=True):
    """The compressed file; an image of the primary HDU becomes an extension."""
    floats = {"compression_type": "GZIP_2", "quantize_level": 0} if exact else {}
    with fits.open(path) as hdus:
        out = [fits.PrimaryHDU(header=hdus[0].header) if hdus[0].data is None else fits.PrimaryHDU()]
        for hdu in hdus:
            if isinstance(hdu, fits.BinTableHDU):
                out.append(hdu.copy())
            elif hdu.data is not None:
                out.append(fits.CompImageHDU(hdu.data, hdu.header, **(floats if hdu.data.dtype.kind == "f" else {})))
        packed = path.with_name(f"{path.name}.fz")
        fits.HDUList(out).writeto(packed)
    return packed


def image(ifu):
    shape = 30, 40
    return MuseImage(
        RNG.normal(1000, 3, shape).astype(np.float32), RNG.integers(-(2**31), 2**31 - 1, shape, np.int32),
        RNG.uniform(size=shape).astype(np.float32), "adu",
        product_header("MASTER_BIAS", ifu=ifu, cards={"ESO QC X": ifu, "ESO DET CHIP NAME": f"CCD{ifu}"}),
    )  # fmt: skip


def test_images(tmp_path):
    images = {ifu: image(ifu) for ifu in (2, 13)}
    paths = {ifu: write_muse_image(tmp_path / f"MASTER_BIAS-{ifu:02d}.fits", i) for ifu, i in images.items()}
    whole = pack(merge_products(paths.values(), tmp_path / "MASTER_BIAS.fits"))
    for ifu, one in images.items():
        for back in (read_muse_image(pack(paths[ifu])), read_muse_image(whole, ifu=ifu)):
            for name in ("data", "dq", "stat", "unit"):
                np.testing.assert_array_equal(getattr(back, name), getattr(one, name))
            assert back.data.dtype == np.float32 and back.dq.dtype == np.int32
            assert back.header["EXTNAME"] == f"CHAN{ifu:02d}" and back.header["ESO QC X"] == ifu
    found = {ifu: (dq, header) for ifu, dq, header in read_quality(whole)}
    for ifu, one in images.items():
        np.testing.assert_array_equal(found[ifu][0], one.dq)
        assert found[ifu][1]["ESO DET CHIP NAME"] == f"CCD{ifu}"
    with pytest.raises(InputError, match=r"no single DATA of IFU 3; it has CHAN02\.DATA"):
        read_muse_image(whole, ifu=3)


def test_numbers_with_errors(tmp_path):
    """By default fpack rounds numbers to a fraction of the noise."""
    one = image(1)
    back = read_muse_image(pack(write_muse_image(tmp_path / "m.fits", one), exact=False))
    assert not np.array_equal(back.data, one.data)
    np.testing.assert_allclose(back.data, one.data, atol=3.0)
    np.testing.assert_array_equal(back.dq, one.dq)


def test_images_of_the_primary_hdu(tmp_path):
    wave = RNG.uniform(4600, 9400, (20, 10)).astype(np.float32)
    path = write_wave_map(tmp_path / "w.fits", wave, header=product_header("WAVE_MAP", ifu=4))
    np.testing.assert_array_equal(read_wave_map(pack(path)), wave)
    mask = Mask(np.eye(4, 6, dtype=np.int32), (1.0, 2.0), (10.5, -20.25))
    back = read_mask(pack(write_mask(tmp_path / "m.fits", mask)))
    np.testing.assert_array_equal(back.data, mask.data)
    assert back.crval == mask.crval


def test_cubes(tmp_path):
    cube = TwilightCube(
        RNG.uniform(size=(5, 9, 11)).astype(np.float32), -5.0, -4.0, flux={1: 1e9, 24: 9e8},
        images={"white_global_fit": np.ones((9, 11), np.float32)},
    )  # fmt: skip
    back = read_twilight_cube(
        pack(write_twilight_cube(tmp_path / "t.fits", cube, header=product_header("TWILIGHT_CUBE")))
    )
    np.testing.assert_array_equal(back.data, cube.data)
    assert back.flux == cube.flux and list(back.images) == ["white_global_fit"]
    profile = cal.LsfProfile(RNG.uniform(size=(48, 4, 5)).astype(np.float32), wave0=4700.0)
    paths = [
        cal.write_lsf_profile(tmp_path / f"L-{ifu:02d}.fits", profile, header=product_header("LSF_PROFILE", ifu=ifu))
        for ifu in (1, 2)
    ]
    for path, ifu in ((paths[0], None), (merge_products(paths, tmp_path / "L.fits"), 2)):
        again = cal.read_lsf_profile(pack(path), ifu=ifu)
        np.testing.assert_array_equal(again.data, profile.data)
        assert again.wave0 == 4700.0


def trace_file(tmp_path):
    table = cal.TraceTable(*RNG.normal(size=(3, 48, 6)), RNG.uniform(75, 77, 48), RNG.uniform(size=(48, 3)))
    header = product_header("TRACE_TABLE", ifu=7)
    return table, cal.write_trace_table(tmp_path / "TRACE_TABLE-07.fits", table, header=header)


def test_table_beside_images(tmp_path):
    table, path = trace_file(tmp_path)
    np.testing.assert_array_equal(cal.read_trace_table(pack(path), ifu=7).left, table.left)


def test_compressed_table_is_refused(tmp_path):
    """Such as fpack makes with -table: the columns have the names, but not the numbers."""
    path = trace_file(tmp_path)[1]
    with fits.open(path, mode="update") as hdus:
        hdus[1].header["ZTABLE"] = True
    with pytest.raises(InputError, match=r"TRACE_TABLE-07\.fits\[table\]: a compressed table found.*funpack"):
        cal.read_trace_table(path)


def test_compressed_pixel_table_is_refused(tmp_path):
    header = fits.Header([("INSTRUME", "MUSE")])
    header["HIERARCH ESO DRS MUSE PIXTABLE TYPE"] = "SIMPLE"
    columns = {name: np.ones(50, dtype) for name, dtype in COLUMNS.items()}
    units = dict.fromkeys(columns, "") | {"xpos": "pix", "ypos": "pix", "lambda": "Angstrom"}
    path = tmp_path / "PIXTABLE_OBJECT_0001-07.fits"
    write_pixtable(path, header, columns, units)
    with pytest.raises(InputError, match=r"\[xpos\]: a compressed image found.*funpack"):
        scan_pixtable(pack(path))
