"""Cubes: opening, the Zarr store, streaming to FITS, and how other packages see the result."""

from __future__ import annotations

import hashlib
import tracemalloc
import warnings
from pathlib import Path

import mpdaf
import numpy as np
import pytest
import xarray as xr
from astropy.io import fits

from musedask.errors import InputError, OutputExistsError, PlanError
from musedask.io.cards import float_text, header_bytes
from musedask.io.checksum import MD5_PERIOD, datamd5, encode, fold, sum_bytes, swap_and_sum
from musedask.io.cube import (
    create_cube_store,
    cube_to_fits,
    cube_to_zarr,
    default_chunks,
    finish_cube_store,
    open_cube,
    open_source,
    scan_cube,
    wavelength_axis,
    write_image,
    write_region,
)
from musedask.io.cube_write import band_step, iter_regions, run_pieces
from musedask.io.headers import cards_from_json

SDETECT = Path(mpdaf.__file__).parent / "data" / "sdetect"
MINICUBE = SDETECT / "minicube.fits"
MOSAIC = SDETECT / "subcub_mosaic.fits"


def data_header(shape, **changes):
    """Cards of a DATA extension; None removes one."""
    cards = {
        "OBJECT": "field (DATA)",
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg",
        "CD1_1": -5.55555555555556e-05, "CD2_2": 5.55555555555556e-05, "CD1_2": 0.0, "CD2_1": 0.0,
        "CRPIX1": 3.5, "CRPIX2": 2.25, "CRVAL1": 150.0, "CRVAL2": -27.8,
        "CTYPE3": "AWAV", "CUNIT3": "Angstrom", "CD3_3": 1.25, "CRPIX3": 1.0, "CRVAL3": 4750.0,
        "BUNIT": "count",
    } | changes  # fmt: skip
    return fits.Header([(k, v) for k, v in cards.items() if v is not None])


def primary_header():
    return fits.Header(
        [
            ("OBJECT", "field"),
            ("PIPEFILE", "DATACUBE_FINAL.fits"),
            (
                "HIERARCH ESO PRO REC1 PARAM14 VALUE",
                "4000",
                "Default: 4000 " + "and a comment that is too long " * 2,
            ),
            ("HIERARCH ESO OBS NTPL", 12),
        ]
    )


def write_cube(path, shape=(7, 5, 6), *, stat=True, dq=False, dtype="f4", seed=1, extra=(), **changes):
    """Write a cube with astropy; returns its flux."""
    rng = np.random.default_rng(seed)
    flux = rng.normal(size=shape).astype(dtype)
    if np.dtype(dtype).kind == "f":
        flux[0, -1, -1] = np.nan
    hdus = [fits.PrimaryHDU(header=primary_header())]
    hdus.append(fits.ImageHDU(flux, data_header(shape, **changes), name="DATA"))
    if stat:
        hdus.append(fits.ImageHDU(np.abs(flux), data_header(shape, BUNIT="count**2", **changes), name="STAT"))
    if dq:
        hdus.append(fits.ImageHDU((rng.random(shape) < 0.2).astype("i4"), name="DQ"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        fits.HDUList([*hdus, *extra]).writeto(path, overwrite=True)
    return flux


def mpdaf_cube(path):
    """A cube as mpdaf sees it; it warns of the units that the reference writes."""
    from mpdaf.obj import Cube

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cube = Cube(str(path))
        _ = cube.data, cube.var
    return cube


# --- opening -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [MINICUBE, MOSAIC])
def test_real_cubes_equal_mpdaf(path):

    theirs, ours = mpdaf_cube(path), open_cube(path)
    np.testing.assert_array_equal(ours.flux.values, theirs.data.filled(np.nan))
    np.testing.assert_array_equal(ours.variance.values, np.where(theirs.mask, np.nan, theirs.var.data))
    np.testing.assert_allclose(ours.wavelength.values, theirs.wave.coord(), rtol=0, atol=1e-9)
    wcs = ours.muse.to_wcs()
    assert wcs.naxis == 3
    points = np.array([[0.0, 0.0], [10.0, 3.0], [29.0, 29.0]])
    sky = theirs.wcs.pix2sky(points)  # (y, x) -> (dec, ra)
    np.testing.assert_allclose(
        wcs.celestial.wcs_pix2world(points[:, ::-1], 0)[:, ::-1], sky, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    "chunks", [{}, {"wavelength": 2}, {"wavelength": 3, "y": 2, "x": 4}, {"wavelength": -1}]
)
def test_chunks_and_selections(tmp_path, chunks):
    flux = write_cube(tmp_path / "c.fits", dq=True)
    dq = fits.getdata(tmp_path / "c.fits", "DQ")
    flux[dq != 0] = np.nan
    cube = open_cube(tmp_path / "c.fits", chunks)
    assert cube.flux.dtype == np.float32 and cube.flux.attrs["units"] == "count"
    np.testing.assert_array_equal(cube.flux.values, flux)
    np.testing.assert_array_equal(np.isnan(cube.variance.values), np.isnan(flux))
    for key in ((slice(1, 6, 2), 3, slice(None)), (slice(None, None, -2), slice(4, 1, -1), 0), (2, 2, 2)):
        np.testing.assert_array_equal(cube.flux[key].values, flux[key])
    assert cube.flux[2:2].values.shape == (0, 5, 6)


def test_only_data_and_images(tmp_path):
    image = np.arange(30, dtype="f4").reshape(5, 6)
    extra = [fits.ImageHDU(image, fits.Header([("BUNIT", "count")]), name="")]
    extra[0].header["EXTNAME"] = "Johnson_V"
    extra.append(fits.ImageHDU(image.astype("i4"), name="Johnson_V_DQ"))
    write_cube(tmp_path / "c.fits", stat=False, extra=extra)
    cube = open_cube(tmp_path / "c.fits")
    assert set(cube.data_vars) == {"flux", "fov_Johnson_V"}
    np.testing.assert_array_equal(cube.fov_Johnson_V.values, image)
    assert cube.muse.header["OBJECT"] == "field"


@pytest.mark.parametrize("dtype", ["f8", "i2", "i4"])
def test_other_types(tmp_path, dtype):
    flux = write_cube(tmp_path / "c.fits", dtype=dtype, dq=True, stat=False)
    dq = fits.getdata(tmp_path / "c.fits", "DQ")
    cube = open_cube(tmp_path / "c.fits")
    assert cube.flux.dtype == (np.float64 if dtype == "f8" else np.float32)
    np.testing.assert_array_equal(cube.flux.values, np.where(dq != 0, np.nan, flux))


def test_scaled_integers(tmp_path):
    hdu = fits.ImageHDU(np.arange(210, dtype="i2").reshape(7, 5, 6), data_header((7, 5, 6)), name="DATA")
    hdu.header.update(BSCALE=0.5, BZERO=3.0, BLANK=4)
    hdu._scale_back = False
    raw = fits.HDUList([fits.PrimaryHDU(), hdu])
    raw.writeto(tmp_path / "c.fits", output_verify="ignore")
    with fits.open(tmp_path / "c.fits") as hdus:
        expected = hdus["DATA"].data.astype("f4")
        scaled = "BSCALE" in fits.open(tmp_path / "c.fits", do_not_scale_image_data=True)["DATA"].header
    assert scaled
    np.testing.assert_allclose(open_cube(tmp_path / "c.fits").flux.values, expected)


@pytest.mark.parametrize(
    ("unit", "scale"), [("Angstrom", 1), ("angstrom", 1), ("m", 1e-10), ("nm", 0.1), ("um", 1e-4)]
)
def test_wavelength_units(unit, scale):
    header = data_header((3, 1, 1), CUNIT3=unit, CRVAL3=4750.0 * scale, CD3_3=1.25 * scale, CRPIX3=2.0)
    wave, ctype = wavelength_axis(header, 3)
    np.testing.assert_allclose(wave, [4748.75, 4750, 4751.25], rtol=1e-14)
    assert ctype == "AWAV"


def test_logarithmic_axis_is_that_of_wcslib(tmp_path):
    write_cube(tmp_path / "c.fits", (50, 2, 2), CTYPE3="AWAV-LOG", CD3_3=0.78125)
    cube = open_cube(tmp_path / "c.fits")
    planes = np.arange(50)
    np.testing.assert_allclose(cube.wavelength, 4750 * np.exp(planes * 0.78125 / 4750), rtol=1e-15)
    world = cube.muse.to_wcs().wcs_pix2world(np.stack([0 * planes, 0 * planes, planes], 1), 0)
    np.testing.assert_allclose(world[:, 2] * 1e10, cube.wavelength, rtol=1e-12)
    part = cube.isel(wavelength=slice(7, 30))
    world = part.muse.to_wcs().wcs_pix2world([[0, 0, 3]], 0)
    np.testing.assert_allclose(world[0, 2] * 1e10, cube.wavelength[10], rtol=1e-12)


@pytest.mark.parametrize("step", [1, 2])
def test_wcs_follows_selections(step):
    cube = open_cube(MOSAIC)
    part = cube.isel(wavelength=slice(10, 40, step), y=slice(3, 20, step), x=slice(5, 30, step))
    pixels = np.array([[2, 3, 4], [0, 0, 0], [7, 1, 9]])
    there = part.muse.to_wcs().wcs_pix2world(pixels, 0)
    here = cube.muse.to_wcs().wcs_pix2world(pixels * step + [5, 3, 10], 0)
    np.testing.assert_allclose(there, here, rtol=1e-13)
    assert part.muse.to_wcs().pixel_shape == tuple(part.sizes[d] for d in ("x", "y", "wavelength"))


def test_uneven_selection_has_no_wcs():
    with pytest.raises(ValueError, match="not equally spaced"):
        open_cube(MOSAIC).isel(x=[0, 1, 5]).muse.to_wcs()


def change_header(path, keyword, value):
    with fits.open(path, mode="update") as hdus:
        if value is None:
            del hdus["DATA"].header[keyword]
        else:
            hdus["DATA"].header[keyword] = value


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("CTYPE3", "VELO", r"\[DATA\]: CTYPE3 = 'VELO' found, expected one of AWAV"),
        ("CTYPE3", None, r"\[DATA\]: CTYPE3 = ''"),
        ("CUNIT3", "Hz", r"\[DATA\]: CUNIT3 = 'Hz'"),
        ("CRVAL3", None, r"\[DATA\]: CRVAL3, CRPIX3 and CD3_3"),
        ("CD3_3", "x", r"\[DATA\]: CRVAL3, CRPIX3 and CD3_3"),
    ],
)
def test_bad_axis(tmp_path, keyword, value, message):
    write_cube(tmp_path / "c.fits")
    change_header(tmp_path / "c.fits", keyword, value)
    with pytest.raises(InputError, match=message):
        open_cube(tmp_path / "c.fits")


def test_bad_files(tmp_path):
    path = tmp_path / "c.fits"
    with pytest.raises(InputError, match=r"c\.fits: no such file"):
        open_cube(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a FITS file"):
        open_cube(path)
    path.write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(InputError, match="compressed"):
        open_cube(path)
    fits.PrimaryHDU().writeto(path, overwrite=True)
    with pytest.raises(InputError, match="no image extension DATA"):
        open_cube(path)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros((4, 4), "f4"), name="DATA")]).writeto(
        path, overwrite=True
    )
    with pytest.raises(InputError, match=r"\[DATA\]: NAXIS = 2 found, expected 3"):
        open_cube(path)
    write_cube(path, stat=False, extra=[fits.ImageHDU(np.zeros((7, 5, 5), "f4"), name="STAT")])
    with pytest.raises(
        InputError, match=r"\[STAT\]: 5 x 5 x 7 pixels found, expected those of DATA, 6 x 5 x 7"
    ):
        open_cube(path)
    compressed = fits.CompImageHDU(np.zeros((4, 40, 40), "i4"), name="DATA")
    fits.HDUList([fits.PrimaryHDU(), compressed]).writeto(path, overwrite=True)
    with pytest.raises(InputError, match="funpack"):
        open_cube(path)


@pytest.mark.parametrize("keep", [0.3, 0.55, 0.95])
def test_truncated(tmp_path, keep):
    path = tmp_path / "c.fits"
    write_cube(path, (40, 20, 20))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(InputError, match="truncated"):
        open_cube(path)


def test_reading_is_bounded(tmp_path):
    write_cube(tmp_path / "c.fits", (64, 128, 128), stat=False)
    source = scan_cube(tmp_path / "c.fits")
    tracemalloc.start()
    source.read("flux", (slice(10, 12), slice(0, 128), slice(0, 128)))
    source.read("flux", (slice(0, 64), slice(5, 6), slice(5, 6)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


# --- Zarr --------------------------------------------------------------------------------------


def make_store(path, shape=(10, 9, 8), chunks=(4, 4, 4), shards=(4, 8, 8), extra=None):
    header = data_header(shape)
    group = create_cube_store(
        path,
        shape,
        chunks=chunks,
        shards=shards,
        wavelength=4750 + 1.25 * np.arange(shape[0]),
        ctype="AWAV",
        primary=primary_header(),
        data=header,
        stat=header,
        units=("count", "count**2"),
        extra=extra,
    )
    rng = np.random.default_rng(3)
    flux = rng.normal(size=shape).astype("f4")
    flux[:4, :8] = np.nan
    for name in group.array_keys():
        if name != "wavelength":
            for region in iter_regions(shape, shards or chunks):
                write_region(
                    group[name], tuple(s.start for s in region), flux[region].astype(group[name].dtype)
                )
    return group, flux


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("shards", [(4, 8, 8), None])
def test_store_opens_with_plain_xarray(tmp_path, shards):
    path = tmp_path / "c.zarr"
    group, flux = make_store(path, shards=shards, extra={"n_pixels": "i4", "weight": "f4"})
    write_image(group, "white", flux[0], data_header((9, 8), EXTNAME="white"))
    write_image(group, "Johnson_V", flux[1], data_header((9, 8), EXTNAME="Johnson_V"))
    finish_cube_store(path)
    plain = xr.open_zarr(path)  # warnings are errors
    assert plain.flux.dims == ("wavelength", "y", "x")
    np.testing.assert_array_equal(plain.flux.values, flux)
    assert plain.n_pixels.dtype == np.int32 and plain.flux.attrs["units"] == "count"
    assert plain.wavelength.attrs == {"units": "Angstrom", "ctype": "AWAV"}
    cube = open_cube(path)
    assert cube.flux.data.chunksize == (4, 8, 8) if shards else (4, 4, 4)
    assert open_cube(path, {"wavelength": -1}).flux.data.chunksize[0] == 10
    assert list(open_source(path).images) == ["white", "Johnson_V"]
    assert cube.muse.to_wcs().wcs.crval[0] == 150.0
    assert plain.attrs["schema_version"] == 1 and cards_from_json(plain.attrs["data_header"])["CD3_3"] == 1.25
    # chunks without data take no space
    assert not list((path / "flux").glob("c/0/0/0"))


def test_open_without_gathered_metadata(tmp_path):
    make_store(tmp_path / "c.zarr")
    assert open_cube(tmp_path / "c.zarr").sizes["wavelength"] == 10


def test_write_region_wants_whole_shards(tmp_path):
    group, _ = make_store(tmp_path / "c.zarr")
    for start, shape in (((0, 0, 0), (2, 8, 8)), ((2, 0, 0), (4, 8, 8)), ((8, 8, 0), (2, 2, 8))):
        with pytest.raises(ValueError, match="whole shards"):
            write_region(group["flux"], start, np.zeros(shape, "f4"))


def test_bad_stores(tmp_path):
    import zarr

    path = tmp_path / "c.zarr"
    path.mkdir()
    with pytest.raises(InputError, match="not a Zarr group"):
        open_cube(path)
    group = zarr.create_group(str(path), zarr_format=3, overwrite=True)
    with pytest.raises(InputError, match="schema_version = None found, expected 1"):
        open_cube(path)
    group.attrs["schema_version"] = 1
    with pytest.raises(InputError, match="no flux, wavelength, primary_header"):
        open_cube(path)


def test_default_chunks():
    for shape in ((3681, 3000, 3000), (3681, 40, 40), (10, 70, 300), (1, 1, 1)):
        chunks, shards = default_chunks(shape)
        assert all(s % c == 0 for s, c in zip(shards, chunks, strict=True))
        assert np.prod(shards) * 4 <= 64 << 20 and shards[2] >= shape[2]


# --- FITS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [MINICUBE, MOSAIC])
def test_round_trip_of_real_cubes(tmp_path, path):
    cube_to_zarr(path, tmp_path / "c.zarr")
    cube_to_fits(tmp_path / "c.zarr", tmp_path / "c.fits")
    original, again = open_cube(path), open_cube(tmp_path / "c.fits")
    xr.testing.assert_identical(original.drop_attrs(deep=False), again.drop_attrs(deep=False))
    xr.testing.assert_identical(original, open_cube(tmp_path / "c.zarr"))
    assert original.attrs["data_header"] == again.attrs["data_header"]
    before, after = (plain_cards(cube.muse.header) for cube in (original, again))
    assert len(after) > 50 and after == before


def plain_cards(header):
    """Cards without commentary, whose place among the others is not kept, and DATAMD5."""
    skip = ("COMMENT", "HISTORY", "", "DATAMD5")
    return [(card.keyword, card.value) for card in header.cards if card.keyword not in skip]


@pytest.mark.parametrize("memory", [1, 10_000, 1 << 28])
@pytest.mark.parametrize("threads", [1, 3])
def test_fits_is_valid_whatever_the_pieces(tmp_path, memory, threads):
    group, flux = make_store(tmp_path / "c.zarr")
    write_image(group, "white", flux[9], data_header((9, 8), HDUCLASS="ESO"))
    seen = []
    cube_to_fits(
        tmp_path / "c.zarr", tmp_path / "c.fits", format="xCube", memory_limit=memory, threads=threads,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (2 * flux.nbytes, 2 * flux.nbytes)
    with fits.open(tmp_path / "c.fits", checksum=True) as hdus:
        hdus.verify("exception")
        assert [hdu.header["EXTNAME"] for hdu in hdus[1:]] == ["DATA", "STAT", "white"]
        for name in ("DATA", "STAT"):
            np.testing.assert_array_equal(hdus[name].data, flux)
        np.testing.assert_array_equal(hdus[3].data, flux[9])
        for hdu in hdus:
            assert hdu.verify_checksum() == 1 and hdu.verify_datasum() == 1
        units = [(flux.astype(">f4").tobytes(), 2880)] * 2 + [(flux[9].astype(">f4").tobytes(), 2880)]
        padded = b"".join(block.ljust(2880, b"\0") for block, _ in units)
        assert hdus[0].header["DATAMD5"] == hashlib.md5(padded).hexdigest()
        keywords = list(hdus[3].header)
        assert keywords.index("EXTNAME") == keywords.index("HDUCLASS") - 1
        keywords = list(hdus[0].header)
        assert keywords.index("DATAMD5") == keywords.index("PIPEFILE") - 1
        # all digits, where astropy would cut the last one
        assert b"= -5.55555555555556E-05" in (tmp_path / "c.fits").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.fits", "c.zarr"]


def test_part_of_a_cube_to_fits(tmp_path):
    cube = open_cube(MOSAIC)
    part = cube.isel(wavelength=slice(100, 110), y=slice(2, 12), x=slice(4, 20))
    cube_to_fits(part, tmp_path / "p.fits", datamd5=False)
    again = open_cube(tmp_path / "p.fits")
    np.testing.assert_array_equal(again.flux.values, part.flux.values)
    np.testing.assert_allclose(again.wavelength, part.wavelength, rtol=1e-15)
    there, here = (c.muse.to_wcs().wcs_pix2world([[1, 2, 3]], 0) for c in (again, part))
    np.testing.assert_allclose(there, here, rtol=1e-14)
    assert again.muse.header["DATAMD5"] == "Not computed"


def test_outputs_are_whole_or_absent(tmp_path, monkeypatch):
    write_cube(tmp_path / "c.fits")
    with pytest.raises(OutputExistsError):
        cube_to_fits(tmp_path / "c.fits", tmp_path / "c.fits")
    with pytest.raises(OutputExistsError):
        cube_to_zarr(tmp_path / "c.fits", tmp_path / "c.fits")

    source = scan_cube(tmp_path / "c.fits")

    def fail(*args):
        raise InputError("broken")

    monkeypatch.setattr(type(source), "read", fail)
    for write, name in ((cube_to_fits, "d.fits"), (cube_to_zarr, "d.zarr")):
        with pytest.raises(InputError, match="broken"):
            write(source, tmp_path / name)
    monkeypatch.setattr("os.posix_fallocate", lambda *args: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(PlanError, match="no space left"):
        cube_to_fits(MOSAIC, tmp_path / "d.fits")
    assert [p.name for p in tmp_path.iterdir()] == ["c.fits"]


def test_streaming_is_bounded(tmp_path):
    make_store(tmp_path / "c.zarr", (64, 128, 256), (8, 32, 64), (16, 64, 256))
    cube_to_fits(tmp_path / "c.zarr", tmp_path / "warm.fits")
    tracemalloc.start()
    cube_to_fits(tmp_path / "c.zarr", tmp_path / "c.fits", memory_limit=2_000_000)
    cube_to_zarr(tmp_path / "c.fits", tmp_path / "d.zarr", chunks=(8, 32, 64), shards=(8, 32, 256))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000 < 2 * 4 * 64 * 128 * 256
    assert (tmp_path / "c.fits").stat().st_size == (tmp_path / "warm.fits").stat().st_size


def test_bands_respect_the_limit():
    class Source:
        shape, block = (100, 300, 200), (16, 32, 32)

    for limit in (1, 800, 100_000, 1_000_000, 50_000_000, 1 << 40):
        step = band_step(Source(), limit)
        assert step[2] == 200 and all(1 <= s <= n for s, n in zip(step, Source.shape, strict=True))
        assert 4 * np.prod(step) <= max(limit, 800)
    assert band_step(Source(), 16 * 32 * 800) == (16, 32, 200)


def test_run_pieces_does_each_once():
    done = []
    run_pieces(lambda n: done.append(n) or 1, list(range(50)), threads=3, progress=None, total=50)
    assert sorted(done) == list(range(50))


def test_mpdaf_and_spectral_cube_open_it(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spectral_cube import SpectralCube

    cube_to_zarr(MINICUBE, tmp_path / "c.zarr")
    part = open_cube(tmp_path / "c.zarr").isel(wavelength=slice(0, 60))
    cube_to_fits(part, tmp_path / "c.fits")
    theirs = mpdaf_cube(tmp_path / "c.fits")
    np.testing.assert_array_equal(theirs.data.filled(np.nan), part.flux.values)
    assert theirs.var is not None and theirs.wcs.isEqual(mpdaf_cube(MINICUBE).wcs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spectral = SpectralCube.read(str(tmp_path / "c.fits"), hdu="DATA")
        np.testing.assert_array_equal(spectral.filled_data[:].value, part.flux.values)
        np.testing.assert_allclose(spectral.spectral_axis.to_value("Angstrom"), part.wavelength, rtol=1e-12)


# --- checksums and cards -----------------------------------------------------------------------


def test_sums_are_those_of_astropy():
    rng = np.random.default_rng(0)
    hdu = fits.ImageHDU(rng.normal(size=(37, 11)).astype("f4"))
    hdu.add_datasum()
    words = hdu.data.copy().reshape(-1).view(np.uint32)
    plain = words.copy()
    assert fold(int(swap_and_sum(words))) == int(hdu.header["DATASUM"])
    np.testing.assert_array_equal(words, plain.byteswap())
    assert sum_bytes(words.tobytes()) == int(hdu.header["DATASUM"])
    for value in (0, 1, 0xFFFFFFFF, *rng.integers(0, 1 << 32, 200)):
        assert encode(int(value)) == hdu._char_encode(0xFFFFFFFF & ~int(value))


def test_datamd5_repeats_the_start_of_long_units():
    rng = np.random.default_rng(0)
    data = rng.integers(0, 255, MD5_PERIOD + 2880, dtype=np.uint8).tobytes()
    short = data[:2880]
    expected = hashlib.md5(short + data[:MD5_PERIOD] + data[:2880]).hexdigest()
    assert datamd5([(short, 2880), (data[:MD5_PERIOD], len(data))]) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (150.0, "150."),
        (-5.55555555555556e-05, "-5.55555555555556E-05"),
        (1e-5, "1.E-05"),
        (0.1, "0.1"),
        (-0.0, "-0."),
    ],
)
def test_float_text(value, text):
    assert float_text(value) == text and float(text) == value


def test_header_bytes_are_read_back():
    header = primary_header()
    header["LONG"] = ("x" * 100, "a long string")
    header["CD1_1"] = (-1.2345678901234567e-05, "all digits")
    header["FLAG"] = True
    content = header_bytes(header)
    assert len(content) % 2880 == 0
    again = fits.Header.fromstring(content.decode())
    for keyword in header:
        assert again[keyword] == header[keyword]
