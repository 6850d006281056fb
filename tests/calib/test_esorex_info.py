"""What esorex says of its recipes, read from its pages; an esorex of another version, made up here."""

from __future__ import annotations

import os
import stat
from dataclasses import replace

import pytest
from click.testing import CliRunner

from musedask import recipes
from musedask.calib.esorex_info import Esorex, differences, recipe_differences
from musedask.cli import main
from musedask.errors import InputError
from musedask.recipe import Input, Parameter, Product, Recipe

_PAGE = """
     ***** ESO Recipe Execution Tool, version 3.13.9  *****

NAME
  muse_qi_mask -- Create masks.

DESCRIPTION
  Text with --nifu : and a table of nothing.

  Input frames for raw frame tag "BIAS":

   Frame tag            Type Req #Fr Description
   -------------------- ---- --- --- ------------
   BIAS                 raw   Y  >=2 Raw bias
   TRACE_TABLE          calib Y    1 Trace table
   WAVECAL_TABLE        calib .      2 tables

  Product frames for raw frame tag "BIAS":

   Frame tag            Level    Description
   -------------------- -------- ------------
   MASK_IMAGE           final    Image masks
   MASK_TABLE           intermed Table

  Input frames for raw frame tag "MASK":

   Frame tag            Type Req #Fr Description
   -------------------- ---- --- --- ------------
   MASK                 raw   .    1 Mask

OPTIONS
  Two options are provided by this recipe.

  --nifu                : IFU to handle. [0]
EXPERT
  Note that it is also possible to create a configuration file containing
  these options.

AUTHOR
  Somebody

RELEASE
  muse_qi_mask -- version 2.9.0
"""
_EXPERT = """  --mode                : How, at
                          length. <slow | fast
                          | none> [fast]
  --long_name_of_something  : Number [1/s]. [0.5]
"""
_SCRIPT = """#!/bin/sh
here=$(dirname "$0")
[ "$HOME" = "$PWD" ] || echo "the settings of the user count"
case "$*" in
--recipes) printf 'List :\\n\\n  muse_qi_mask          : Create\\n  fors_bias : x\\n  muse_new: New\\n' ;;
"--man-page muse_qi_mask") if [ "$MUSE_EXPERT_USER" ]; then cat "$here/expert"; else cat "$here/page"; fi ;;
"--params muse_qi_mask") cat "$here/params" ;;
"muse_qi_mask "*--nifu=*) echo "Specified 'int' value (987654321) for the parameter 'nifu' was outside the permitted" \\
    "range -1 to 24"; echo "CPL error occurred during the processing of the option '--nifu'" ;;
"muse_qi_mask "*--kind=*) echo "CPL error occurred during the processing of the option '--kind'" ;;
*) echo "No valid raw tag(s) found!"; exit 255 ;;
esac
"""
_PARAMS = """
Caller Parameters :

  help                  : FALSE

Recipe Parameters :

  nifu                  : 0
  kind                  : thin
  mode                  : fast
  long_name_of_something: 5e-01
  column                : 
  merge                 : TRUE
"""  # noqa: W291


@pytest.fixture(scope="module")
def executable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("esorex")
    (folder / "page").write_text(_PAGE.replace("EXPERT\n", ""))
    (folder / "expert").write_text(_PAGE.replace("EXPERT\n", _EXPERT))
    (folder / "params").write_text(_PARAMS)
    path = folder / "esorex"
    path.write_text(_SCRIPT)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_reading_what_esorex_says(executable, monkeypatch):
    monkeypatch.setenv("MUSE_EXPERT_USER", "1")
    esorex = Esorex(executable)
    assert esorex.recipes() == ["muse_new", "muse_qi_mask"]
    found = esorex.describe("muse_qi_mask")
    assert found.version == "2.9.0"
    assert found.recipe == Recipe(
        "muse_qi_mask",
        "",
        (Input("BIAS", "raw", 2), Input("TRACE_TABLE", "calib", 1, 1), Input("WAVECAL_TABLE", "calib", 0, 2)),
        (Product("MASK_IMAGE"), Product("MASK_TABLE")),
        (
            Parameter("nifu", int, 0, "", minimum=-1.0, maximum=24.0),
            # an enumeration that the help does not explain
            Parameter("kind", str, "thin", "", ("?",), expert=True),
            Parameter("mode", str, "fast", "", ("slow", "fast", "none"), expert=True),
            Parameter("long_name_of_something", float, 0.5, "", expert=True),
            Parameter("column", str, "", "", expert=True),
            Parameter("merge", bool, True, "", expert=True),
        ),
        (Input("MASK", "raw", 0, 1),),
    )


def test_another_version(executable):
    found = differences(executable=executable)
    assert found.version == "2.9.0"
    assert found.differences["muse_bias"] == ["not in esorex"] and found.differences["muse_new"] == ["not declared"]
    assert found.differences["muse_qi_mask"] == [
        "parameter column: not declared",
        "parameter kind: not declared",
        "parameter long_name_of_something: not declared",
        "parameter merge: not declared",
        "parameter mode: not declared",
        "parameter nifu: 0 to 24, esorex: -1 to 24",
        "input BIAS: 0 or 1, esorex: 2 or more",
        "input WAVECAL_TABLE: 1, esorex: 0 or 1 or 2",
        "other input MASK: not declared",
        "product MASK_TABLE: not declared",
    ]


def test_command(executable):
    result = CliRunner().invoke(main, ["recipe", "check", "qi_mask", "--esorex", executable])
    assert result.exit_code == 1
    assert "muse_qi_mask: parameter nifu: 0 to 24, esorex: -1 to 24\n" in result.output
    assert f"esorex has muse 2.9.0, the declarations are of {recipes.DRS_VERSION}; differences: 10" in result.output
    assert "muse_bias" not in result.output


def test_what_differs_between_two_declarations():
    flat = recipes.FLAT
    changed = {
        "overscan": {"default": "offset"},
        "ovscsigma": {"type": int, "default": 30},
        "combine": {"choices": ("average", "median")},
        "nlow": {"name": "lowest"},
        "scale": {"expert": False},
        "nsum": {"maximum": 100.0},
    }
    first, second, *rest = (replace(p, **changed.get(p.name, {})) for p in flat.parameters)
    other = replace(
        flat,
        inputs=(replace(flat.inputs[0], minimum=5), replace(flat.inputs[1], group="raw"), Input("NEW", "calib", 1, 1)),
        products=(*flat.products[:-1], Product("NEW", listed_as="NEW_TABLE"), Product("OWN", listed_as="")),
        parameters=(second, first, *rest),
    )
    found = recipe_differences(other, flat)
    order = found.pop(2)
    assert order.startswith("order of the parameters: overscan, nifu, ovscreject, ")
    assert "; esorex: nifu, overscan, ovscreject, " in order and "lowest" not in order
    assert found == [
        "parameter lowest: not in esorex",
        "parameter nlow: not declared",
        "parameter overscan: default offset, esorex: vpoly",
        "parameter ovscsigma: int, esorex: float",
        "parameter combine: choices average, median, esorex: average, median, minmax, sigclip",
        "parameter scale: for all, esorex: for experts",
        "parameter nsum: whole number <= 100, esorex: whole number",
        "input BADPIX_TABLE: not declared",
        "input MASTER_DARK: not declared",
        "input NEW: not in esorex",
        "input NONLINEARITY_GAIN: not declared",
        "input FLAT: 5 or more, esorex: 3 or more",
        "input MASTER_BIAS: raw, esorex: calib",
        "product NEW_TABLE: not in esorex",
        "product TRACE_SAMPLES: not declared",
    ]
    assert not recipe_differences(flat, replace(flat, inputs=flat.inputs[:-1]))


def test_no_esorex(tmp_path):
    with pytest.raises(InputError, match="nosuch: not found; install the reference pipeline"):
        differences(executable="nosuch")
    empty = tmp_path / "esorex"
    empty.write_text("#!/bin/sh\necho 'List of Available Recipes :'\n")
    os.chmod(empty, 0o755)
    with pytest.raises(InputError, match=r"esorex: it has no recipes muse_\*; install them"):
        differences(executable=str(empty))
