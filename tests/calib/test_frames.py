"""Frames of an IFU: which files are for it, how many there must be, and what is said if they are not right."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from musedask.calib.frames import check_frames, ifus_of
from musedask.errors import InputError
from musedask.io.channels import Channel, number_ranges, read_channels
from musedask.io.sof import Frame
from musedask.recipes import RECIPES, get_recipe

FLAT, SCIBASIC, TWILIGHT = (get_recipe(name) for name in ("flat", "scibasic", "twilight"))


def write(path, *names, own=None, product=False, dead=(), empty=(), compressed=False):
    """A file with extensions of some names, and perhaps the name of an IFU in its primary header."""
    primary = fits.PrimaryHDU()
    if own:
        primary.header["EXTNAME"] = own
    if product:
        primary.header["PIPEFILE"] = path.name
    hdus = [primary]
    for name in names:
        kind = fits.CompImageHDU if compressed else fits.ImageHDU
        hdu = fits.ImageHDU(name=name) if name in empty else kind(np.zeros((8, 8), np.int16), name=name)
        hdu.header["HIERARCH ESO DET CHIP LIVE"] = name not in dead
        hdus.append(hdu)
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


@pytest.fixture
def make(tmp_path):
    """Frames by their tag; equal names are one file."""

    def frame(tag, name, *names, **options):
        path = tmp_path / name
        if names or options or not path.exists():
            write(path, *names, **options)
        return Frame(path, tag)

    return frame


@pytest.fixture
def raws(make):
    def frames(tag, n=3, **options):
        return [make(tag, f"{tag.lower()}{i}.fits", "CHAN01", "CHAN12", **options) for i in range(n)]

    return frames


@pytest.fixture
def warnings(caplog, monkeypatch):
    # the command line, which other tests call, keeps messages to itself
    monkeypatch.setattr(logging.getLogger("musedask"), "propagate", True)
    caplog.set_level(logging.WARNING, "musedask")
    return caplog


def masters(make, ifu, *tags):
    return [
        make(tag, f"{tag}-{ifu:02d}.fits", "DATA", "DQ", "STAT", own=f"CHAN{ifu:02d}", product=True) for tag in tags
    ]


# ------------------------------------------------------------------------------------- channels of a file

FILES = {
    "raw": (("CHAN01", "CHAN12"), {}, {1, 12}),
    "of an IFU": (("DATA", "DQ"), {"own": "CHAN01", "product": True}, {1}),
    "merged": (("CHAN01.DATA", "CHAN01.DQ", "CHAN12.DATA"), {"product": True}, {1, 12}),
    "static": (("X",), {}, set(range(1, 25))),
    "static without extensions": ((), {}, set(range(1, 25))),
    "static with a strange name": (("CHANXX",), {"own": "CHAN1"}, set(range(1, 25))),
    "product of no IFU": (("DATA",), {"product": True}, set()),
    "product with a strange name": (("DATA",), {"own": "CHAN1", "product": True}, set()),
    "more after the name": (("DATA",), {"own": "CHAN01X", "product": True}, {1}),
    "own name and that of an extension": (("CHAN01",), {"own": "CHAN02", "product": True}, {1, 2}),
    "static of one IFU": (("X",), {"own": "CHAN02"}, {2}),
}


@pytest.mark.parametrize("kind", FILES)
def test_whom_a_file_is_for(make, kind):
    names, options, expected = FILES[kind]
    bias = make("MASTER_BIAS", "x.fits", *names, **options)
    flats = [make("FLAT", "flat.fits", *(f"CHAN{n:02d}" for n in range(1, 25)))] * 3
    found = set()
    for ifu in range(1, 25):
        try:
            assert bias in check_frames(FLAT, [*flats, bias], ifu)
            found.add(ifu)
        except InputError as error:
            assert f"muse_flat, IFU {ifu}: MASTER_BIAS: expected 1, found none; with " in str(error)
    assert found == expected


def test_geometry_and_twilight_are_for_all(make, raws):
    frames = [
        *raws("OBJECT", 1),
        *masters(make, 1, "MASTER_BIAS", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE"),
        make("GEOMETRY_TABLE", "g.fits", "X", product=True),
        make("TWILIGHT_CUBE", "t.fits", "X", own="CHAN05", product=True),
    ]
    assert check_frames(SCIBASIC, frames, 1) == frames


def test_compressed_files(tmp_path):
    path = write(tmp_path / "x.fits.fz", "CHAN03", "CHAN04", compressed=True, dead=("CHAN04",))
    channels = read_channels(path)
    assert channels.extensions == {3: Channel(True, True), 4: Channel(False, True)}
    assert channels.text() == "IFUs 3-4" and not channels.generic


def test_changed_files_are_read_again(tmp_path):
    path = write(tmp_path / "x.fits", "CHAN03")
    assert read_channels(path).ifus == [3] and read_channels(path) is read_channels(path)
    assert read_channels(write(path, "CHAN03", "CHAN04")).ifus == [3, 4]


def test_ranges_as_text():
    assert number_ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10" and number_ranges([]) == ""


def test_broken_files(tmp_path, make):
    (tmp_path / "x.fits").write_text("no FITS")
    path = write(tmp_path / "y.fits", "CHAN01", "CHAN02")
    path.write_bytes(path.read_bytes()[:-100])
    for name, message in [("x", "cannot be read as FITS"), ("y", r"truncated; \d+ bytes found, expected at least")]:
        with pytest.raises(InputError, match=rf"{name}\.fits: {message}"):
            ifus_of(FLAT, [Frame(tmp_path / f"{name}.fits", "FLAT")])
    with pytest.raises(InputError, match=r"z\.fits: No such file"):
        read_channels(tmp_path / "z.fits")


# ------------------------------------------------------------------------------------- frames of an IFU


def test_frames_of_an_ifu_among_all(make, raws):
    flats = raws("FLAT")
    bias1, bias12 = masters(make, 1, "MASTER_BIAS") + masters(make, 12, "MASTER_BIAS")
    badpix = make("BADPIX_TABLE", "badpix.fits", "CHAN12")
    both = make("MASTER_DARK", "MASTER_DARK.fits", "CHAN01.DATA", "CHAN12.DATA", product=True)
    other = make("TRACE_TABLE", "t.fits")
    frames = [bias12, *flats, other, bias1, badpix, both]
    assert ifus_of(FLAT, frames) == [1, 12]
    assert check_frames(FLAT, frames, 1) == [*flats, bias1, both]
    assert check_frames(FLAT, iter(frames), 12) == [bias12, *flats, badpix, both]


def test_wrong_numbers(make, raws):
    bias, other = masters(make, 1, "MASTER_BIAS")[0], make("MASTER_BIAS", "other.fits", own="CHAN01", product=True)
    flats = raws("FLAT")
    with pytest.raises(InputError) as error:
        check_frames(FLAT, [*flats[:2], bias], 1)
    assert str(error.value) == (
        f"muse_flat, IFU 1: FLAT: expected 3 or more, found 2: {flats[0].path}, {flats[1].path}"
    )
    with pytest.raises(InputError) as error:
        check_frames(FLAT, [*flats, bias, other, *masters(make, 1, "MASTER_DARK") * 2], 1)
    assert str(error.value).splitlines() == [
        "muse_flat, IFU 1: the frames do not fit",
        f"  MASTER_BIAS: expected 1, found 2: {bias.path}, {other.path}",
        f"  MASTER_DARK: expected 0 or 1, found 2: {bias.path.parent}/MASTER_DARK-01.fits (2 times)",
    ]
    with pytest.raises(InputError) as error:
        check_frames(FLAT, [*flats[:2], make("FLAT", "12.fits", "CHAN12"), *masters(make, 12, "MASTER_BIAS")], 1)
    text = str(error.value)
    assert f"FLAT: expected 3 or more, found 2: {flats[0].path}, {flats[1].path}; with IFU 12: " in text
    assert f"MASTER_BIAS: expected 1, found none; with IFU 12: {bias.path.parent}/MASTER_BIAS-12.fits" in text
    with pytest.raises(InputError, match=r"MASTER_BIAS: expected 1, found none$"):
        check_frames(FLAT, flats, 1)
    many = [make("FLAT", f"many{i}.fits", "CHAN12") for i in range(6)]
    with pytest.raises(InputError, match=r"found none; with IFU 12: (\S+, ){3}\S+ and 2 more"):
        check_frames(FLAT, [*many, bias], 1)


def test_static_calibration_with_pipefile(make, raws):
    """As products of musedask would be, if they were not careful."""
    frames = [
        *raws("ARC", 1), *masters(make, 1, "MASTER_BIAS", "TRACE_TABLE"),
        make("LINE_CATALOG", "lines.fits", "X", product=True),
    ]  # fmt: skip
    message = r"found none; with a product without IFU \(PIPEFILE, no EXTNAME CHANnn\): \S+lines\.fits"
    with pytest.raises(InputError, match=message):
        check_frames(get_recipe("wavecal"), frames, 1)


def test_nothing_to_work_on(make, raws):
    biases = raws("BIAS", 1)
    for frames, message in [
        (biases, "muse_flat: no frames to work on found, expected FLAT; there are BIAS"),
        ([], "muse_flat: no frames to work on found, expected FLAT; the set of frames is empty"),
    ]:
        for call in (ifus_of, check_frames):
            with pytest.raises(InputError, match=message):
                call(FLAT, frames)
    illum = make("ILLUM", "i.fits", "CHAN01")
    with pytest.raises(InputError, match="expected OBJECT or STD or SKY or ASTROMETRY or REDUCED; there are ILLUM"):
        ifus_of(SCIBASIC, [illum])
    calibrations = masters(make, 3, "MASTER_BIAS", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE")
    calibrations.append(make("GEOMETRY_TABLE", "g.fits"))
    with pytest.raises(InputError, match=r"IFU 3: no frame to work on is of this IFU; with IFUs 1, 12: \S+object0"):
        check_frames(SCIBASIC, [*raws("OBJECT", 1), *calibrations], 3)
    with pytest.raises(InputError, match="muse_flat works on one IFU at a time, and none was given"):
        check_frames(FLAT, raws("FLAT"))
    with pytest.raises(InputError, match=r"x\.fits: no extension CHANnn found"):
        ifus_of(FLAT, [make("FLAT", "x.fits", "DATA")])


def test_second_set_of_inputs(make, warnings):
    reduced = masters(make, 1, "REDUCED", "TRACE_TABLE", "WAVECAL_TABLE")
    frames = [*reduced, make("GEOMETRY_TABLE", "g.fits")]
    assert check_frames(SCIBASIC, frames, 1) == frames and ifus_of(SCIBASIC, frames) == [1]
    assert not warnings.messages
    mixed = [make("OBJECT", "o.fits", "CHAN01", "CHAN02"), *frames]
    assert check_frames(SCIBASIC, mixed, 1) == frames and ifus_of(SCIBASIC, mixed) == [1]
    assert warnings.messages == ["muse_scibasic works on REDUCED alone if there are such frames; left out: OBJECT"]
    with pytest.raises(InputError, match="muse_scibasic, IFU 1: TRACE_TABLE: expected 1, found none"):
        check_frames(SCIBASIC, [f for f in mixed if f.tag != "TRACE_TABLE"], 1)


def test_recipe_that_can_do_without_raw_frames(make):
    recipe = get_recipe("qi_mask")
    frames = masters(make, 3, "TRACE_TABLE", "WAVECAL_TABLE")
    assert ifus_of(recipe, frames) == [3] and check_frames(recipe, frames, 3) == frames


def test_dead_detector(make, raws, warnings):
    bias = make("MASTER_BIAS", "b.fits", "X")
    # dead, but there are data: the reference takes them
    assert ifus_of(FLAT, raws("FLAT", dead=("CHAN12",))) == [1, 12] and not warnings.messages
    flats = [*raws("FLAT", dead=("CHAN12",), empty=("CHAN12",)), bias]
    assert ifus_of(FLAT, flats) == [1]
    told = "the detector is dead (ESO DET CHIP LIVE = F) and there are no data; IFU 12 is left out"
    assert warnings.messages == [f"{flats[0].path}[CHAN12]: {told}"]
    assert check_frames(FLAT, flats, 1) == flats
    with pytest.raises(InputError, match=r"expected 3 or more, found none; with no data of IFU 12, whose detector"):
        check_frames(FLAT, flats, 12)
    with pytest.raises(InputError, match=r"no data of the IFUs 1, 12, their detectors are dead"):
        ifus_of(FLAT, raws("FLAT", dead=("CHAN01", "CHAN12"), empty=("CHAN01", "CHAN12")))
    flats = [*raws("FLAT", empty=("CHAN12",)), bias]
    with pytest.raises(InputError, match=r"flat0\.fits\[CHAN12\]: there are no data although the detector works"):
        check_frames(FLAT, flats, 12)


# ------------------------------------------------------------------------------------- calls for all IFUs


def test_all_ifus_at_once(make, raws, warnings):
    tags = ("MASTER_BIAS", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE")
    geometry = make("GEOMETRY_TABLE", "g.fits")
    frames = [*raws("SKYFLAT"), *masters(make, 1, *tags), *masters(make, 12, *tags), geometry]
    assert check_frames(TWILIGHT, frames) == frames and not warnings.messages
    some = [f for f in frames if f.path.name != "TRACE_TABLE-12.fits"]
    assert check_frames(TWILIGHT, some) == [f for f in some if not f.path.name.endswith("-12.fits")]
    assert len(warnings.messages) == 1
    assert "muse_twilight, IFU 12: TRACE_TABLE: expected 1, found none; with IFU 1: " in warnings.messages[0]
    assert warnings.messages[0].endswith("; left out")
    with pytest.raises(InputError, match="muse_twilight, IFU 1: GEOMETRY_TABLE: expected 1, found none"):
        check_frames(TWILIGHT, frames[:-1])


def test_standard_of_all_ifus(make, raws):
    """The reference compares the brightness of all IFUs with that of the first, and fails without it."""
    tags = ("MASTER_BIAS", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE")
    twelve = [*masters(make, 12, *tags), make("GEOMETRY_TABLE", "g.fits")]
    frames = [*raws("SKYFLAT"), *twelve, *masters(make, 1, *tags[:-1])]
    text = "muse_twilight, IFU 1: WAVECAL_TABLE: expected 1, found none; with IFU 12: .*\n  This IFU cannot be left out"
    with pytest.raises(InputError, match=text):
        check_frames(TWILIGHT, frames)
    others = [make("SKYFLAT", f"other{i}.fits", "CHAN12") for i in range(3)]
    text = "IFU 1: no frame to work on is of this IFU; with IFU 12: .*other0.fits.*\n  This IFU cannot"
    with pytest.raises(InputError, match=text):
        check_frames(TWILIGHT, others + twelve)
    dead = [make("SKYFLAT", f"dead{i}.fits", "CHAN01", "CHAN12", dead=("CHAN01",), empty=("CHAN01",)) for i in range(3)]
    with pytest.raises(InputError, match=r"IFU 1: no frame .* no data of IFU 1, whose detector is dead: .*dead0\.fits"):
        check_frames(TWILIGHT, dead + twelve)
    assert [r.name for r in RECIPES.values() if r.standard_ifu] == ["muse_twilight"]


def test_pixel_tables(make, warnings):
    recipe = get_recipe("exp_combine")
    tables = [make("PIXTABLE_REDUCED", f"{i}.fits", "data") for i in range(2)]
    offsets = [make("OFFSET_LIST", f"o{i}.fits", "X") for i in range(2)]
    assert check_frames(recipe, [*tables, offsets[0]]) == [*tables, offsets[0]]
    with pytest.raises(InputError, match=r"OFFSET_LIST: expected 0 or 1, found 2: \S+o0\.fits, \S+o1\.fits"):
        check_frames(recipe, [*tables, *offsets])
    with pytest.raises(InputError, match=r"exp_combine: PIXTABLE_REDUCED: expected 2 or more, found 1: \S+0\.fits"):
        check_frames(recipe, tables[:1])
    # tables of two IFUs of one exposure
    parts = [make("PIXTABLE_REDUCED", f"p{i}.fits", "data", own=f"CHAN{i:02d}") for i in (3, 4)]
    with pytest.raises(InputError, match="expected 2 or more, found 1"):
        check_frames(recipe, parts)
    assert not warnings.messages


def test_calibrations_of_pixel_tables(make, warnings):
    """There may be one for each IFU; those that are missing are the recipe's affair."""
    recipe = get_recipe("create_sky")
    frames = [
        *(make("PIXTABLE_SKY", f"s{i}.fits", "data", own=f"CHAN{i:02d}") for i in (3, 4)),
        *masters(make, 3, "LSF_PROFILE"),
        *masters(make, 4, "LSF_PROFILE"),
        make("SKY_LINES", "l.fits", "X"),
        make("EXTINCT_TABLE", "e.fits", "X"),
    ]
    assert check_frames(recipe, frames) == frames
    assert warnings.messages == ["muse_create_sky: STD_RESPONSE: expected 1, found none"]
    with pytest.raises(InputError, match=r"LSF_PROFILE: expected 1, found 2: "):
        check_frames(recipe, [*frames, make("LSF_PROFILE", "static.fits", "X")])


def test_every_recipe_takes_its_minimum(make):
    path = make("X", "x.fits", "CHAN01").path
    for recipe in RECIPES.values():
        frames = []
        for i in recipe.inputs:
            number = i.minimum or (1 if i.tag == (recipe.raw_tags or ("BIAS",))[0] else 0)
            frames += [Frame(path, i.tag)] * number
        ifu = 1 if recipe.per_ifu else None
        assert check_frames(recipe, frames, ifu) == frames
        if recipe.exposures:
            assert ifus_of(recipe, frames) == [1]


def test_many_ifus_are_quick(tmp_path):
    """Headers are read once for all IFUs."""
    paths = [write(tmp_path / f"{i}.fits", *(f"CHAN{n:02d}" for n in range(1, 25))) for i in range(3)]
    frames = [Frame(Path(p), "BIAS") for p in paths]
    opened = []
    original = fits.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fits, "open", lambda *args, **kw: opened.append(args) or original(*args, **kw))
        for ifu in ifus_of(get_recipe("bias"), frames):
            assert check_frames(get_recipe("bias"), frames, ifu) == frames
    assert len(opened) == 3
