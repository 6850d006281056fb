"""The command line: every verb, from simulated tables to cubes and back; what options do and where they go."""

from __future__ import annotations

import json
import re

import click
import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner

import musedask
from musedask.cli import main
from musedask.cube.params import EXTRA
from musedask.io.cube import open_cube
from musedask.recipes import EXP_COMBINE, MAKE_CUBE


def run(*args, code=0):
    """What a command prints."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two simulated exposures, made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    text = run(
        "simulate", "pixtables", folder / "in", "--exposures", 2, "--ifus", "12", "--slices", 12,
        "--wave-range", 6540, 6570, "--exptimes", "900,600", "--offsets", "0,0;1.2,-0.5", "--flux-scales", "1,1.1",
        "--pointing-errors", "0,0;1,0.5",
    )  # fmt: skip
    assert "wrote 2 pixel tables" in text
    return folder


@pytest.fixture(scope="module")
def tables(folder):
    found = sorted((folder / "in").glob("PIXTABLE_REDUCED_*.fits"))
    assert len(found) == 2
    return found


@pytest.fixture(scope="module")
def cube(folder, tables):
    """A cube of both, in Zarr and FITS."""
    text = run(
        "combine", *tables, "-o", folder / "c.zarr", "--fits", folder / "c.fits", "--offset-list",
        folder / "in" / "OFFSET_LIST.fits",
    )  # fmt: skip
    for part in (
        "started in",
        "2 exposures",
        "expected peak memory",
        "chunks",
        "disk",
        "wrote",
        "time:",
        "peak memory",
    ):
        assert part in text
    return folder / "c.zarr"


def parameters_of(cube, recipe):
    """Parameters of a recipe as the header of a cube tells them; other recipes have been before it."""
    header = cube.muse.header
    (number,) = (key.split()[2] for key in header if re.match(r"ESO PRO REC\d+ ID$", key) and header[key] == recipe)
    return {
        header[key]: header[key.replace("NAME", "VALUE")]
        for key in header
        if re.match(rf"ESO PRO {number} PARAM\d+ NAME$", key)
    }


def every_command(group=main, names=()):
    for name, command in group.commands.items():
        yield (*names, name), command
        if isinstance(command, click.Group):
            yield from every_command(command, (*names, name))


@pytest.mark.parametrize("names", [(), *(names for names, _ in every_command())])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(names, option):
    """Every command explains itself and each of its options."""
    text = run(*names, option)
    assert text.startswith("Usage:")
    command = main
    for name in names:
        command = command.commands[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in text


def test_version():
    assert run("--version").split()[-1] == musedask.__version__


@pytest.mark.parametrize(("verb", "recipe"), [("combine", EXP_COMBINE), ("make-cube", MAKE_CUBE)])
def test_all_parameters_are_options(verb, recipe):
    text = run(verb, "-h")
    for parameter in (*recipe.parameters, *EXTRA):
        assert "--" + parameter.name.replace("_", "-") in text
        if parameter.type is not bool:
            assert f"[default: {parameter.default}]" in re.sub(r"\s+", " ", text)


def test_options_reach_the_cube(tables, folder):
    """They decide the numbers, and are noted as the reference notes them."""
    args = ["combine", *tables, "-o", folder / "p.zarr"]
    given = {
        "resample": "linear", "dx": "0.4", "dlambda": "2.5", "crsigma": "-1", "crtype": "mean", "weight": "none",
        "ld": "2", "lambdamin": "6545", "filter": "white",
    }  # fmt: skip
    run(*args, *(f"--{k}={v}" for k, v in given.items()), "--weight-map", "--chunks", "5,8,9")
    made = open_cube(folder / "p.zarr")
    found = parameters_of(made, "muse_exp_combine")
    assert {k: found[k] for k in given} == given
    assert found["pixfrac"] == "0.6,0.6"
    assert made.muse.data_header["CD3_3"] == 2.5 and made.muse.data_header["CD1_1"] == pytest.approx(-0.4 / 3600)
    assert made.wavelength[0] >= 6545 and "weight" in made and "n_pixels" in made
    assert {c[0] for c in made.flux.chunksizes.values()} == {5, 8, 9}


def test_function_and_command_agree(tables, folder, cube):
    """``musedask.combine`` and the command make the same cube."""
    ours = musedask.combine(tables, folder / "api.zarr", offset_list=folder / "in" / "OFFSET_LIST.fits")
    theirs = open_cube(cube)
    for name in ("flux", "variance", "fov_white"):
        np.testing.assert_array_equal(ours[name].values, theirs[name].values)


def test_dry_run(tables, tmp_path):
    """The plan, and nothing on disk."""
    text = run("combine", *tables, "-o", tmp_path / "o.zarr", "--fits", tmp_path / "o.fits", "--dry-run")
    assert "dry run" in text and "expected peak memory" in text
    assert not list(tmp_path.iterdir())


def test_verbosity(tables, tmp_path):
    quiet, normal, verbose = (
        run(*option, "combine", *tables, "-o", tmp_path / f"{i}.zarr") for i, option in enumerate(([], ["-q"], ["-v"]))
    )
    quiet, normal = normal, quiet
    assert quiet == "" and "wrote" in normal and len(verbose) > len(normal)


def test_overwrite(tables, tmp_path):
    output = tmp_path / "o.zarr"
    run("combine", *tables, "-o", output)
    before = (output / "zarr.json").stat().st_mtime_ns
    assert "exists already" in run("combine", *tables, "-o", output, code=1)
    assert (output / "zarr.json").stat().st_mtime_ns == before
    run("combine", *tables, "-o", output, "--pixfrac", "0.9", "--overwrite")
    assert parameters_of(open_cube(output), "muse_exp_combine")["pixfrac"] == "0.9"
    assert {p.name for p in tmp_path.iterdir()} == {"o.zarr"}


def test_fits_only(tables, tmp_path, cube):
    """An output named .fits is a FITS cube and nothing else but its images."""
    run("combine", *tables, "-o", tmp_path / "o.fits")
    assert {p.name for p in tmp_path.iterdir()} == {"o.fits", "IMAGE_FOV_0001.fits"}


def test_store_and_its_cubes(tables, tmp_path, cube, folder):
    """A cube from the store is that from the tables; the store is made once for many."""
    run("store", *tables, "-o", tmp_path / "s.zarr", "--memory-limit", "200MB")
    args = ["combine", tmp_path / "s.zarr", "-o", tmp_path / "c.zarr"]
    assert "rows in the store" in run(*args, "--offset-list", folder / "in" / "OFFSET_LIST.fits")
    np.testing.assert_array_equal(open_cube(tmp_path / "c.zarr").flux.values, open_cube(cube).flux.values)


def test_make_cube(tables, tmp_path):
    run("make-cube", tables[0], "-o", tmp_path / "o.zarr", "--resample", "nearest")
    assert parameters_of(open_cube(tmp_path / "o.zarr"), "muse_scipost_make_cube")["resample"] == "nearest"


def test_cube_verbs(cube, folder, tmp_path):
    """info, to-fits, filter, concatenate and combine on what combine made."""
    info = json.loads(run("cube", "info", cube, "--json", "--scan"))
    assert info
    shape = open_cube(cube).flux.shape
    text = run("cube", "info", cube, "--header")
    assert all(str(n) in text for n in shape) and "CTYPE3" in text
    run("cube", "to-fits", cube, tmp_path / "c.fits", "--memory-limit", "50MB")
    for name in ("DATA", "STAT"):
        ours, theirs = fits.getdata(tmp_path / "c.fits", name), fits.getdata(folder / "c.fits", name)
        np.testing.assert_array_equal(ours, theirs)
    assert "exists already" in run("cube", "to-fits", cube, tmp_path / "c.fits", code=1)
    text = run("cube", "filter", tmp_path / "c.fits", "-f", "white", "-l", 6545, 6550)
    assert "wrote" in text
    images = [p for p in tmp_path.iterdir() if p.name != "c.fits"]
    assert len(images) == 2


def test_cube_parts_go_together_again(cube, tmp_path):
    """Two parts of a cube, written as FITS, concatenated."""
    whole = open_cube(cube)
    parts = [tmp_path / "0.fits", tmp_path / "1.fits"]
    musedask.cube_to_fits(whole.isel(wavelength=slice(0, 11)), parts[0])
    musedask.cube_to_fits(whole.isel(wavelength=slice(11, None)), parts[1])
    run("cube", "concatenate", tmp_path / "all.zarr", *parts)
    again = open_cube(tmp_path / "all.zarr")
    np.testing.assert_array_equal(again.flux.values, whole.flux.values)
    np.testing.assert_allclose(again.wavelength.values, whole.wavelength.values, rtol=1e-12)
    # in the wrong order they do not fit
    assert "Error: " in run("cube", "concatenate", tmp_path / "no.zarr", *parts[::-1], code=1)
    assert not (tmp_path / "no.zarr").exists()


@pytest.mark.parametrize(
    "args",
    [
        ("--offsets", "0,0;1"),
        ("--rotations", "0,north"),
        ("--ifus", "1-x"),
        ("--ifus", "0-3"),
        ("--exposures", "0"),
        ("--wave-range", "7000", "6000"),
        ("--scene", "none.fits"),
    ],
)
def test_bad_simulations(args, tmp_path):
    """One message, no files."""
    result = CliRunner().invoke(main, ["simulate", "pixtables", str(tmp_path / "out"), *args])
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.output.count("Error: ") == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
