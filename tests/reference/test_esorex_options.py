"""Options of recipes in a configuration mean what they mean to esorex."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from musedask.errors import InputError
from musedask.recipes import get_recipe
from musedask.workflow.esorex_options import OWN_OPTIONS, parse_options

from .support import require_esorex

pytestmark = pytest.mark.esorex


def esorex(folder, *arguments):
    require_esorex()
    return subprocess.run(
        ["esorex", "--log-file=esorex.log", *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ("muse_bias", "--nlow=7 --merge --nhigh=2 --nhigh=3"),
        ("muse_bias", "--nl=7 -hsigma=-1.5 --overscan='vpoly:40,0.01'"),
        ("muse_flat", "--samples=TRUE --norm=false --combine=median"),
        ("muse_scibasic", "--skylines=5577.339,6300.304 --skyreject=10.,10.,2 --crop=false --resamp"),
        ("muse_scipost", "--lambdamin=5000. --lambdamax=7e3 --skymethod=subtract-model --filter=white,Johnson_V"),
        ("muse_exp_align", "--rsearch=10,2 --thresh=5 --srcmin=3"),
    ],
)
def test_values_are_those_of_esorex(recipe, text, tmp_path):
    done = esorex(tmp_path, "--params", recipe, *shlex.split(text))
    said = dict(re.findall(r"^  ([\w-]+) +: (.*)$", done.stdout, flags=re.MULTILINE))
    declared = get_recipe(recipe)
    values, _ = parse_options(text, declared)
    # what the reduction sets itself is not among ours
    given = {option.lstrip("-").partition("=")[0] for option in shlex.split(text)}
    assert len(values) == len(given - {"merge"})
    for parameter in declared.parameters:
        if parameter.name in said and parameter.name not in ("merge", "nifu"):
            theirs = parameter.check(said[parameter.name].strip().lower() if parameter.type is bool
                                     else said[parameter.name].strip())  # fmt: skip
            assert values.get(parameter.name, parameter.default) == theirs, parameter.name
    assert set(values) <= set(said)


@pytest.mark.parametrize("text", ["--nlwo=2", "--n=2", "--nlow", "--combine=mode", "--samples=yes", "--no-such"])
def test_what_esorex_refuses_is_refused(text, tmp_path):
    done = esorex(tmp_path, "--params", "muse_flat", text)
    assert re.search("ERROR|ambiguous", done.stdout + done.stderr)
    with pytest.raises(InputError):
        parse_options(text, get_recipe("muse_flat"))


def test_all_options_of_esorex_itself_are_known(tmp_path):
    found = re.findall(r"^  --([\w-]+) +:", esorex(tmp_path, "--help").stdout, flags=re.MULTILINE)
    assert len(found) > 20
    assert set(found) == set(OWN_OPTIONS)
