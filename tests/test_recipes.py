"""Declarations of recipes: consistent in themselves, and what is made of them: cards, options, pages."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from musedask import instrument, recipes
from musedask.cli import main
from musedask.cli_recipe import RecipeCommand
from musedask.errors import InputError
from musedask.recipe import Input, Parameter, Product
from musedask.recipe_pages import recipe_page
from musedask.recipes import RECIPES, get_recipe
from musedask.tags import TAGS

_SPEC = importlib.util.spec_from_file_location("docs_update", Path(__file__).parents[1] / "docs" / "update.py")
update = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(update)

ALL = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def run(*args, code=0):
    result = CliRunner().invoke(main, args)
    assert result.exit_code == code, result.output
    return result.output


# ------------------------------------------------------------------------------------- consistency


def test_all_are_there():
    assert len(RECIPES) == 27
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    assert recipes._N_IFUS == instrument.N_IFUS
    assert [name for name, recipe in RECIPES.items() if recipe.per_ifu] == [
        "muse_bias", "muse_dark", "muse_flat", "muse_wavecal", "muse_lsf", "muse_scibasic", "muse_ampl",
        "muse_lingain", "muse_qi_mask",
    ]  # fmt: skip
    assert set(recipes.NATIVE) <= set(RECIPES)


@ALL
def test_declaration(recipe):
    names = [p.name for p in recipe.parameters]
    assert len(set(names)) == len(names)
    for p in recipe.parameters:
        assert type(p.default) is p.type and p.check(p.default) == p.default
        assert p.check(p.to_card(p.default)) == p.default
        assert "\n" not in p.help and p.help[0].isupper() and p.help.endswith(".")
    for inputs in (recipe.inputs, recipe.alternative):
        tags = [i.tag for i in inputs]
        assert len(set(tags)) == len(tags)
        assert sorted(tags, key=lambda tag: recipe.input(tag).group == "calib") == tags
    assert len({p.tag for p in recipe.products}) == len(recipe.products)
    for product in recipe.products:
        for name, values in (c for alternatives in product.conditions() for c in alternatives):
            if values is not None:
                parameter = recipe.parameter(name)
                assert parameter.type is (bool if set(values) <= {"true", "false"} else str)
                assert not parameter.choices or set(values) <= set(parameter.choices)
    assert recipe.resolve({}) == {p.name: p.default for p in recipe.parameters}
    assert any(p.expected(recipe.resolve({})) is not False for p in recipe.products)


def test_every_tag_is_explained():
    used = {x.tag for r in RECIPES.values() for x in (*r.inputs, *r.alternative, *r.products)}
    assert set(TAGS) == used
    assert all(text.endswith(".") and "\n" not in text for text in TAGS.values())


def test_what_a_recipe_needs_others_make_or_is_static():
    made = {p.tag for r in RECIPES.values() for p in r.products}
    static = {
        "ASTROMETRY_REFERENCE", "BADPIX_TABLE", "EXTINCT_TABLE", "FILTER_LIST", "LINE_CATALOG", "OUTPUT_WCS",
        "RAMAN_LINES", "STD_FLUX_TABLE", "TELLURIC_REGIONS", "VIGNETTING_MASK", "MASK_CHECK",
    }  # fmt: skip
    needed = {i.tag for r in RECIPES.values() for i in r.inputs if i.group == "calib"}
    assert needed <= made | static


def test_declarations_load_quickly():
    code = "import sys, musedask.recipes, musedask.recipe_pages, musedask.cli_recipe; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "astropy", "dask", "difflib", "rich"} & set(loaded)


def test_getting_a_recipe():
    assert get_recipe("flat") is get_recipe("muse_flat") is recipes.FLAT
    assert get_recipe("scipost-make-cube") is recipes.MAKE_CUBE
    for wrong, meant in [("muse_flta", "muse_flat"), ("make_cube", "muse_scipost_make_cube"), ("biass", "muse_bias")]:
        with pytest.raises(InputError, match=f"no recipe '{wrong}'; did you mean .*{meant}"):
            get_recipe(wrong)
    with pytest.raises(InputError, match="see musedask recipe list"):
        get_recipe("xyzzy")


# ------------------------------------------------------------------------------------- parts


def test_values_as_text():
    number = Parameter("sigma", float, 3.0, "")
    cards = {3.0: "3", 0.05: "0.05", -1.0: "-1", 1234567.5: "1.23457e+06", 1e-7: "1e-07"}
    assert {v: number.to_card(v) for v in cards} == cards
    assert number.to_option(1234567.5) == "--sigma=1234567.5" and number.to_option(3) == "--sigma=3.0"
    flag = Parameter("merge", bool, False, "")
    assert (flag.to_card(True), flag.to_option(False)) == ("true", "--merge=false")
    assert flag.comment_of_card() == "Default: false" and number.comment_of_card() == "Default: 3"
    assert Parameter("orig", str, "", "").comment_of_card() == "Default: ''"
    texts = [
        Parameter("a", int, 1, "", minimum=-1, maximum=24),
        Parameter("a", float, 1.0, "", minimum=0),
        Parameter("a", int, 1, "", maximum=9),
        Parameter("a", str, "x", "", ("x", "y")),
        flag,
    ]
    assert [p.values_text() for p in texts] == ["-1 to 24", "number >= 0", "whole number <= 9", "x, y", "true or false"]


def test_wrong_values():
    nifu = recipes.BIAS.parameter("nifu")
    for value, message in [("25", "25 found, expected -1 to 24"), ("x", "of type int"), (1.5, "of type int")]:
        with pytest.raises(InputError, match=f"parameter nifu: .*{message}"):
            nifu.check(value)
    with pytest.raises(InputError, match="'mean' found, expected one of average, median, minmax, sigclip"):
        recipes.BIAS.resolve({"combine": "mean"})
    with pytest.raises(InputError, match="muse_bias has no parameter lampwise"):
        recipes.BIAS.resolve({"lampwise": True})


def test_numbers_of_frames_as_text():
    counts = [(0, None), (3, None), (1, 1), (0, 1)]
    assert [Input("X", "raw", *c).count_text() for c in counts] == ["any number", "3 or more", "1", "0 or 1"]


@pytest.mark.parametrize(
    "name, values, expected",
    [
        ("MASTER_FLAT", {}, True),
        ("TRACE_SAMPLES", {}, False),
        ("TRACE_SAMPLES", {"samples": True}, True),
        ("TRACE_SAMPLES", {"samples": True, "trace": False}, False),
    ],
)
def test_which_products_of_flat(name, values, expected):
    assert recipes.FLAT.product(name).expected(recipes.FLAT.resolve(values)) is expected


@pytest.mark.parametrize(
    "values, lamps, total",
    [
        ({}, False, False),
        ({"saveimages": True}, None, False),
        ({"saveimages": True, "resample": True}, None, True),
        ({"saveimages": True, "lampwise": False}, None, True),
        ({"lampwise": False, "resample": True}, False, False),
    ],
)
def test_which_images_of_wavecal(values, lamps, total):
    """The sum of lamps is only written if it is needed, as the reference does."""
    values = recipes.WAVECAL.resolve(values)
    found = [recipes.WAVECAL.product(tag).expected(values) for tag in ("ARC_RED_LAMP", "ARC_RED")]
    assert found == [lamps, total]


def test_which_products_of_scipost():
    def expected(tag, **values):
        return recipes.SCIPOST.product(tag).expected(recipes.SCIPOST.resolve(values))

    assert expected("DATACUBE_FINAL") is True
    assert expected("DATACUBE_FINAL", save="individual, combined") is False
    assert expected("PIXTABLE_COMBINED", save="individual, combined") is True
    assert expected("IMAGE_FOV") is None and expected("IMAGE_FOV", format="xCube") is False
    assert expected("SKY_MASK", skymethod="simple") is True and expected("SKY_LINES", skymethod="simple") is False
    assert expected("SKY_CONTINUUM") is None
    assert expected("AUTOCAL_MASK") is False


def test_names_of_files():
    assert recipes.FLAT.product("MASTER_FLAT").file_name(3) == "MASTER_FLAT-03.fits"
    assert recipes.SCIBASIC.product("PIXTABLE_STD").file_name(24, 2) == "PIXTABLE_STD_0002-24.fits"
    assert recipes.SCIBASIC.product("PIXTABLE_STD").file_name() == "PIXTABLE_STD_0001.fits"
    assert recipes.SCIPOST.product("IMAGE_FOV").file_name(number=12) == "IMAGE_FOV_0012.fits"
    assert Product("DATACUBE_FINAL").file_name(7) == "DATACUBE_FINAL.fits"


def test_raw_tags():
    assert recipes.SCIBASIC.raw_tags == ("OBJECT", "STD", "SKY", "ASTROMETRY", "REDUCED")
    assert recipes.LSF.raw_tags == ("ARC", "ARC_LSF") and recipes.QI_MASK.raw_tags == ()
    assert recipes.TWILIGHT.raw_tags == ("SKYFLAT",)
    assert {r.name for r in RECIPES.values() if r.exposures and not r.per_ifu} == {
        "muse_geometry", "muse_twilight", "muse_illum"
    }  # fmt: skip


# ------------------------------------------------------------------------------------- options


def parsed(recipe, *args):
    """Values of the options that a command with the parameters of a recipe has been given, and its arguments."""
    seen = {}

    def callback(sofs, **options):
        seen.update(options, sofs=sofs)

    sofs = click.Argument(["sofs"], nargs=-1)
    command = RecipeCommand(recipe, name=recipe.name, params=[sofs], callback=callback)
    result = CliRunner().invoke(command, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return {name: value for name, value in seen.items() if value is not None}


def test_parameters_are_options():
    args = ("--nifu", "-1", "--ovscsigma=30", "--merge", "a.sof", "--combine", "median", "b.sof")
    assert parsed(recipes.BIAS, *args) == {
        "nifu": -1, "ovscsigma": 30.0, "merge": True, "combine": "median", "sofs": ("a.sof", "b.sof"),
    }  # fmt: skip
    assert parsed(recipes.LSF, "--save_subtracted", "--lsf-range=7", "--lambda_size", "31") == {
        "save_subtracted": True, "lsf_range": 7.0, "lambda_size": 31, "sofs": (),
    }  # fmt: skip
    assert parsed(recipes.LSF, "--save-subtracted", "--merge=FALSE", "--", "--merge") == {
        "save_subtracted": True, "merge": False, "sofs": ("--merge",),
    }  # fmt: skip
    # a value apart is not a set of frames
    assert parsed(recipes.LSF, "--save-subtracted", "false", "a.sof", "--merge", "true", "--merge") == {
        "save_subtracted": False, "merge": True, "sofs": ("a.sof",),
    }  # fmt: skip


def test_wrong_options():
    command = RecipeCommand(recipes.BIAS, name="muse_bias", callback=lambda **_: None)
    with pytest.raises(InputError, match="parameter nifu: 25 found, expected -1 to 24"):
        CliRunner().invoke(command, ["--nifu=25"], catch_exceptions=False)
    assert "No such option" in CliRunner().invoke(command, ["--lampwise"]).output


@ALL
def test_help_names_every_parameter(recipe):
    text = CliRunner().invoke(RecipeCommand(recipe, name=recipe.name), ["--help"], terminal_width=200).output
    for p in recipe.parameters:
        assert re.search(rf"--{p.name}\b", text)


# ------------------------------------------------------------------------------------- pages and commands


def test_list():
    text = run("recipe", "list")
    lines = text.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert "per IFU  esorex, native" in text and lines[-1].split()[:4] == ["muse_qi_mask", "per", "IFU", "esorex"]


@ALL
def test_page(recipe):
    page = recipe_page(recipe)
    for p in recipe.parameters:
        line = re.search(rf"^\| `{p.name}`( †)? \|.*$", page, flags=re.MULTILINE)
        assert line and p.help in line[0].replace("\\|", "|") and bool(line[1]) == p.expert
    for i in (*recipe.inputs, *recipe.alternative):
        assert re.search(rf"^\| `{i.tag}` \| \w+ \| {i.count_text()} \|", page, flags=re.MULTILINE)
    for product in recipe.products:
        assert re.search(rf"^\| `{product.tag}(_0001)?(-01)?\.fits` \|", page, flags=re.MULTILINE)
    widths = [line.replace("\\|", "").count("|") for line in page.splitlines() if line.startswith("|")]
    assert set(widths) <= {4, 5}


@ALL
def test_show_prints_the_page_of_the_documentation(recipe):
    page = (update.ROOT / "docs" / "recipes" / f"{recipe.name}.md").read_text()
    shown = run("recipe", "show", recipe.name.removeprefix("muse_"))
    assert page == f"<!-- generated: recipe {recipe.name} -->\n{shown}<!-- end -->\n"


def test_pages_are_those_of_the_recipes():
    found = {page.stem for page in (update.ROOT / "docs" / "recipes").glob("*.md")}
    assert found == {"index", *RECIPES}
    assert update.recipe_pages().keys() == {update.ROOT / "docs" / "recipes" / f"{name}.md" for name in RECIPES}


def test_unknown_recipe():
    assert "did you mean muse_flat?" in run("recipe", "show", "falt", code=1)


def test_check_without_esorex():
    assert "nosuch: not found; install" in run("recipe", "check", "--esorex", "nosuch", code=1)
