"""Configurations: every key and spelling, formats, overrides, recipe parameters, messages, commands."""

from __future__ import annotations

import ast
import json
import logging
import pickle
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from musedask.cli import main
from musedask.errors import InputError
from musedask.recipes import RECIPES, get_recipe
from musedask.workflow.config import Config, load_config, read_config
from musedask.workflow.config_file import write_text
from musedask.workflow.config_pages import new_file
from musedask.workflow.config_reading import OPTION_KEYS, STEP_RECIPES
from musedask.workflow.config_sections import SECTIONS, keys_of
from musedask.workflow.esorex_options import parse_options
from musedask.workflow.steps import STEPS

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).resolve().parents[2]
LEAST = {"rootpath": "/data", "static_calib_path": "/statics"}

#: keys of MUSEreduce where they belong, with values other than the defaults
CANONICAL = {
    "global": {
        "pipeline_path": "/pipeline", "static_calib_path": "/statics", "rootpath": "/data", "n_CPU": 4,
        "mode": "NFM-AO", "withrvcorr": False, "auto_sort_data": False, "auto_create_OB_folders": False,
        "using_specific_exposure_time": 860, "using_ESO_calibration": False, "renew_statics": True,
        "dither_multiple_OBs": True, "OB_list": ["a", "b"], "exp_list": ["180431-242316_0005_180_00"],
    },
    "cleanup": {"execute": True, "include_std": True, "include_combined": True, "include_calibrations": True},
    "calibration": {
        "execute": False, "dark": True, "esorex_kwargs_bias": "--nlow=2", "esorex_kwargs_dark": "--nlow=3",
        "esorex_kwargs_flat": "--nlow=4", "esorex_kwargs_wavecal": "--yorder=5", "esorex_kwargs_lsf": "--lsf_range=6.5",
        "esorex_kwargs_twilight": "--nlow=7", "create_sof": False,
    },
    "sci_basic": {
        "execute": False, "execute_std": False, "execute_sci": False, "skyreject": "10.,10.,2", "skylines": "5577.339",
        "esorex_kwargs": "--crop=false", "create_sof": False,
    },
    "std_flux": {"execute": False, "esorex_kwargs": "--profile=moffat", "create_sof": False},
    "sky": {
        "execute": False, "modified": True, "sky_field": "object", "fraction": 0.2, "ignore": 0.1,
        "method": "subtract-model", "esorex_kwargs": "--sampling=1.25", "create_sof": False,
    },
    "sci_post": {
        "execute": False, "autocalib": "deepfield", "subtract_sky": False, "raman": True,
        "esorex_kwargs": "--lambdamin=5000 --lambdamax=7000", "create_sof": False,
    },
    "dither_collect": {"execute": False},
    "exp_align": {
        "execute": False, "srcmin": 3, "srcmax": 60, "esorex_kwargs": "--threshold=10", "create_sof": False,
    },
    "exp_combine": {"execute": False, "weight": "fwhm", "esorex_kwargs": "--crsigma=5", "create_sof": False},
}  # fmt: skip

#: and their defaults
DEFAULTS = {
    "global": {
        "pipeline_path": None, "static_calib_path": None, "rootpath": None, "n_CPU": -1, "mode": None,
        "withrvcorr": True, "auto_sort_data": True, "auto_create_OB_folders": True, "using_specific_exposure_time": (),
        "using_ESO_calibration": True, "renew_statics": False, "dither_multiple_OBs": False, "OB_list": (),
        "exp_list": (),
    },
    "cleanup": {"execute": False, "include_std": False, "include_combined": False, "include_calibrations": False},
    "calibration": {
        "execute": True, "dark": False, "esorex_kwargs_bias": None, "esorex_kwargs_dark": None,
        "esorex_kwargs_flat": None, "esorex_kwargs_wavecal": None, "esorex_kwargs_lsf": None,
        "esorex_kwargs_twilight": None, "create_sof": True,
    },
    "sci_basic": {
        "execute": True, "execute_std": True, "execute_sci": True, "skyreject": "15.,15.,1",
        "skylines": "5577.339,6300.304", "esorex_kwargs": None, "create_sof": True,
    },
    "std_flux": {"execute": True, "esorex_kwargs": None, "create_sof": True},
    "sky": {
        "execute": True, "modified": False, "sky_field": "auto", "fraction": 0.05, "ignore": 0.05, "method": "model",
        "esorex_kwargs": None, "create_sof": True,
    },
    "sci_post": {
        "execute": True, "autocalib": "none", "subtract_sky": True, "raman": False, "esorex_kwargs": None,
        "create_sof": True,
    },
    "dither_collect": {"execute": True},
    "exp_align": {"execute": True, "srcmin": 5, "srcmax": 80, "esorex_kwargs": None, "create_sof": True},
    "exp_combine": {"execute": True, "weight": "exptime", "esorex_kwargs": None, "create_sof": True},
}  # fmt: skip


def make(**sections):
    """A configuration with the least that is needed."""
    sections["global"] = LEAST | sections.pop("global_", {})
    return read_config(sections)


def problem(**sections):
    with pytest.raises(InputError) as error:
        make(**sections)
    return str(error.value)


def value(config, section, key):
    return getattr(getattr(config, "global_" if section == "global" else section), key)


def all_keys():
    return [(section, key) for section, keys in CANONICAL.items() for key in keys]


# ------------------------------------------------------------------------------------------ keys


@pytest.mark.parametrize(("section", "key"), all_keys())
def test_every_key_has_its_default_and_takes_another_value(section, key):
    default = DEFAULTS[section][key]
    assert value(Config(), section, key) == default
    given = CANONICAL[section][key]
    needed = {"OB_list": ["a"]} if key == "dither_multiple_OBs" else {}
    config = read_config({section: {key: given, **needed}}, complete=False)
    assert [(s, k) for s, k, *_ in config.differences() if k not in needed] == [(section, key)]
    expected = {"using_specific_exposure_time": (860.0,)}.get(key, given)
    if key.endswith("path"):
        expected = Path(given)
    elif isinstance(given, list):
        expected = tuple(given)
    assert value(config, section, key) == expected
    assert type(value(config, section, key)) is type(expected)


def test_no_key_of_musereduce_is_missing_and_no_other_is_there():
    own = {"sky": {"kept_species", "keep_continuum", "protect"}, "sci_post": {"rvcorr"}}
    for section, keys in CANONICAL.items():
        assert set(SECTIONS[section].model_fields) - own.get(section, set()) == set(keys) == set(DEFAULTS[section])
    assert set(SECTIONS) - set(CANONICAL) == {"musedask"}


def test_all_keys_together():
    config = read_config(CANONICAL)
    changed = {(section, key) for section, key, *_ in config.differences()}
    assert changed == set(all_keys())


#: another spelling with a value, and where it goes
SPELLINGS = [
    ("exp_align", "scrmin", 3, "exp_align", "srcmin", 3),
    ("exp_align", "scrmax", 60, "exp_align", "srcmax", 60),
    ("sci_basic", "sky_reject", "10.,10.,2", "sci_basic", "skyreject", "10.,10.,2"),
    ("global", "using_ESO_Calibration", False, "global", "using_ESO_calibration", False),
    ("calibration", "using_ESO_calibration", False, "global", "using_ESO_calibration", False),
    ("calibration", "using_ESO_Calibration", False, "global", "using_ESO_calibration", False),
    ("calibration", "renew_statics", True, "global", "renew_statics", True),
    ("dither_collect", "user_list", ["x"], "global", "exp_list", ("x",)),
    ("dither_collect", "exp_list", ["x"], "global", "exp_list", ("x",)),
    ("global", "auto_create_OB_list", False, "global", "auto_create_OB_folders", False),
    ("global", "OB", "NGC6530", "global", "OB_list", ("NGC6530",)),
    ("sky", "skyfield", "object", "sky", "sky_field", "object"),
    ("sky", "skymethod", "simple", "sky", "method", "simple"),
    ("sky", "method", "subtract_model", "sky", "method", "subtract-model"),
    ("sci_post", "rvcorr", "none", "global", "withrvcorr", False),
]


@pytest.mark.parametrize(("section", "key", "given", "to_section", "to_key", "expected"), SPELLINGS)
def test_other_spellings_are_taken_with_a_warning(section, key, given, to_section, to_key, expected):
    config = read_config({section: {key: given}}, complete=False)
    assert value(config, to_section, to_key) == expected
    (warning,) = config.warnings
    assert f"{section}.{key}" in warning
    assert f"{to_section}.{to_key}" in warning or "subtract-model" in warning
    with pytest.raises(InputError, match="another spelling"):
        read_config({section: {key: given}}, complete=False, strict=True)


def test_every_declared_spelling_is_tested():
    declared = {
        (alias.rpartition(".")[0] or section, alias.rpartition(".")[2], section, key)
        for section, model in SECTIONS.items()
        for key, extra in keys_of(model).items()
        for alias in extra["aliases"]
    }
    tested = {(s, k, to_s, to_k) for s, k, _, to_s, to_k, _ in SPELLINGS}
    assert declared == {t for t in tested if t[:2] not in (("sky", "method"), ("sci_post", "rvcorr"))}


def test_two_spellings_must_agree():
    assert make(exp_align={"srcmin": 4, "scrmin": 4}).exp_align.srcmin == 4
    assert make(global_={"exp_list": []}, dither_collect={"user_list": ["x"]}).global_.exp_list == ("x",)
    message = problem(exp_align={"srcmin": 4, "scrmin": 5})
    assert "exp_align.scrmin: 5 found, but exp_align.srcmin is 4" in message
    message = problem(global_={"using_ESO_calibration": True}, calibration={"using_ESO_calibration": False})
    assert "calibration.using_ESO_calibration" in message and "leave one out" in message


def test_rvcorr():
    assert make().rvcorr == "bary"
    assert make(sci_post={"rvcorr": "helio"}).rvcorr == "helio"
    assert make(global_={"withrvcorr": False}).rvcorr == "none"
    assert make(sci_post={"rvcorr": "none"}).rvcorr == "none"
    assert "leave one out" in problem(sci_post={"rvcorr": "none"}, global_={"withrvcorr": True})
    assert "leave one out" in problem(sci_post={"rvcorr": "geo"}, global_={"withrvcorr": False})
    config = make(obs={"a": {"sci_post": {"rvcorr": "none"}}})
    assert (config.for_ob("a").rvcorr, config.for_ob("b").rvcorr) == ("none", "bary")


def test_ob_names_a_block_or_a_target():
    assert make(global_={"OB": "", "OB_list": ["a"]}).global_.OB_list == ("a",)
    assert make(global_={"OB": "a"}).musedask.targets == {}
    config = make(global_={"OB": "NGC6530", "OB_list": ["a", "b"], "dither_multiple_OBs": "true"})
    assert config.global_.OB_list == ("a", "b")
    assert config.musedask.targets == {"NGC6530": ("a", "b")}
    assert make(global_={"OB_list": ["a", "b"], "dither_multiple_OBs": True}).musedask.targets == {}
    own = make(global_={"OB": "T", "OB_list": "a", "dither_multiple_OBs": True}, musedask={"targets": {"U": ["c"]}})
    assert own.musedask.targets == {"T": ("a",), "U": ("c",)}
    assert "global.OB: ['a'] found, but global.OB_list is ['b']" in problem(global_={"OB": "a", "OB_list": ["b"]})
    assert "OB_list is empty" in problem(global_={"OB": "a", "dither_multiple_OBs": True})


@pytest.mark.parametrize("text", ["true", "false", "True", "FALSE"])
def test_texts_are_booleans_with_a_warning(text):
    config = make(sky={"modified": text, "method": "subtract-model"})
    assert config.sky.modified is (text.lower() == "true")
    assert len(config.warnings) == 1 and "sky.modified" in config.warnings[0]


@pytest.mark.parametrize("text", [None, "", "none", "None", "NONE", " none "])
def test_no_options(text):
    sections: dict[str, dict[str, object]] = {}
    for section, key in OPTION_KEYS.values():
        sections.setdefault(section, {})[key] = text
    config = make(**sections)
    assert not config.warnings
    assert all(config.recipe_parameters("", recipe) == {} for recipe in RECIPES)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(False, ()), (None, ()), (0, ()), (860, (860.0,)), (859.5, (859.5,)), ([5, 860], (5.0, 860.0)), ("860", (860.0,)),
     ("false", ())],
)  # fmt: skip
def test_exposure_times(given, expected):
    config = make(global_={"using_specific_exposure_time": given})
    assert config.global_.using_specific_exposure_time == expected


def test_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("STATICS", "/some/statics")
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "c.json").write_text(
        json.dumps({"global": {"rootpath": "night/", "static_calib_path": "$STATICS/"}, "musedask": {"raw": "~/raw"}})
    )
    config = load_config(tmp_path / "c.json")
    assert config.global_.rootpath == tmp_path / "night"
    assert config.static_folders == (Path("/some/statics"),)
    assert config.raw_folders == (Path("/home/me/raw"),)
    assert config.reduced_folder == tmp_path / "night" / "reduced"
    assert make().raw_folders == (Path("/data/raw"),)
    assert make(musedask={"raw": ["/a", "/b"]}).raw_folders == (Path("/a"), Path("/b"))
    for name in ("muse-2.8.7", "muse-2.8.9", "fors"):
        (tmp_path / "calib" / name).mkdir(parents=True)
    found = read_config({"global": {"rootpath": "/data", "pipeline_path": str(tmp_path) + "/"}}).static_folders
    assert [folder.name for folder in found] == ["muse-2.8.7", "muse-2.8.9"]


def test_what_a_reduction_needs():
    assert "rootpath: not there" in _error({"global": {"static_calib_path": "/s"}})
    assert "pipeline_path: not there" in _error({"global": {"rootpath": "/s"}})
    read_config({"global": {"rootpath": "/s", "pipeline_path": "/p"}})
    read_config({"global": {"static_calib_path": "/p"}, "musedask": {"raw": "/raw", "reduced": "/reduced"}})


def _error(data):
    with pytest.raises(InputError) as error:
        read_config(data)
    return str(error.value)


# ------------------------------------------------------------------------------------------ what is refused

REFUSED = [
    ("global", "n_CPU", 0, "0 found, expected -1, 1 or more"),
    ("global", "n_CPU", 1.5, "1.5 found, expected a valid integer"),
    ("global", "n_CPU", True, "true found, expected -1, 1 or more"),
    ("global", "mode", "WFM", "'WFM' found, expected 'WFM-NOAO', 'WFM-AO' or 'NFM-AO'"),
    ("global", "auto_sort_data", "yes", "'yes' found, expected true or false"),
    ("global", "auto_sort_data", 1, "1 found, expected true or false"),
    ("global", "auto_sort_data", None, "None found, expected true or false"),
    ("global", "using_specific_exposure_time", True, "true found, expected a time or false"),
    ("global", "using_specific_exposure_time", -5, "-5 found, expected greater than 0"),
    ("global", "rootpath", ["a"], "expected a path"),
    ("sky", "fraction", 1.0, "1.0 found, expected less than 1"),
    ("sky", "fraction", float("nan"), "nan found, expected a finite number"),
    ("sky", "ignore", -0.1, "expected greater than or equal to 0"),
    ("sky", "method", "modle", "'modle' found, expected 'model'"),
    ("sky", "protect", [[6000, 5000]], "expected a smaller and a larger wavelength"),
    ("sky", "sky_field", "sky", "'sky' found, expected 'auto' or 'object'"),
    ("exp_align", "srcmin", 100, "100 found, expected at most srcmax, 80"),
    ("exp_combine", "weight", "seeing", "'seeing' found, expected 'exptime'"),
    ("musedask", "ifus", "0-3", "expected IFUs from 1 to 24"),
    ("musedask", "ifus", "a", "expected something like 1-24"),
    ("musedask", "memory_limit", "much", "expected something like 2GB"),
    ("musedask", "n_workers", 0, "expected greater than or equal to 1"),
    ("musedask", "pointing_tolerance", 0, "expected greater than 0"),
    ("musedask", "save", "cube,cubes", "'cubes' found, expected 'cube'"),
    ("musedask", "engine", "idl", "'idl' found, expected 'auto', 'esorex' or 'native'"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "key", "given", "expected"), REFUSED)
def test_values_that_do_not_fit(section, key, given, expected):
    message = problem(**{"global_" if section == "global" else section: {key: given}})
    assert f"{section}.{key}" in message
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"skies": {}}, "skies: unknown section; did you mean sky?"),
        ({"rootpath": "/data"}, "rootpath: unknown key; did you mean global.rootpath?"),
        ({"sky": {"fractoin": 0.1}}, "sky.fractoin: unknown key; did you mean fraction?"),
        ({"sky": {"weight": "none"}}, "sky.weight: unknown key; did you mean exp_combine.weight?"),
        ({"global": {"using_eso_calibration": True}}, "did you mean using_ESO_calibration?"),
        ({"exp_align": {"scrmn": 3}}, "did you mean srcmin or srcmax?"),
        ({"sky": {"zzz": 1}}, "sky.zzz: unknown key; there are execute, modified"),
        ({"sky": 3}, "sky: 3 found, expected a section with keys"),
        ({"parameters": {"flatt": {}}}, "no step and no recipe 'flatt'; did you mean flat"),
        ({"parameters": {"flat": {"sample": True}}}, "muse_flat has no parameter 'sample'; did you mean samples"),
        ({"parameters": {"flat": {"nlow": 1.5}}}, "parameters.flat.nlow: parameter nlow: 1.5 found"),
        ({"parameters": {"flat": {"samples": 3}}}, "flat.samples: parameter samples: 3 found, expected true"),
        ({"parameters": {"flat": {"nlow": True}}}, "parameters.flat.nlow: parameter nlow: True found"),
        ({"parameters": {"flat": {"nifu": 3}}}, "set by the reduction itself; see musedask.ifus"),
        ({"parameters": {"flat": 3}}, "3 found, expected parameters of muse_flat"),
        ({"parameters": {"dither_collect": {"x": 3}}}, "step dither_collect has no recipe"),
        ({"obs": {"a": 3}}, "obs.a: 3 found, expected sections"),
        ({"obs": 3}, "obs: 3 found"),
        ({"obs": {"a b": {"sky": {"fraction": 2}}}}, 'obs."a b".sky.fraction: 2 found, expected less than 1'),
        ({"obs": {"a": {"global": {"rootpath": "/x"}}}}, "obs.a.global.rootpath: is the same for all"),
        ({"obs": {"a": {"obs": {}}}}, "obs.a.obs: unknown section"),
    ],
)  # fmt: skip
def test_unknown_names_and_wrong_forms(sections, expected):
    with pytest.raises(InputError) as error:
        read_config({**sections, "global": {**LEAST, **sections.get("global", {})}} if "global" not in sections
                    else {"global": {**LEAST, **sections["global"]}})  # fmt: skip
    assert expected in str(error.value)


def test_all_problems_are_told_at_once():
    message = problem(sky={"fraction": 2, "fractoin": 1}, sci_post={"esorex_kwargs": "--foo"}, exp_align={"srcmin": -1})
    lines = message.splitlines()
    assert len(lines) == 3
    assert "sky.fractoin" in lines[0] and "sky.fraction: 2" in lines[1] and "exp_align.srcmin" in lines[2]
    assert "sci_post.esorex_kwargs" in problem(sci_post={"esorex_kwargs": "--foo"})


def test_what_keys_say_together():
    assert "subtract-model is right" in make(sky={"modified": True}).warnings[0]
    assert not make(sky={"modified": True, "method": "subtract-model"}).warnings
    assert "no effect" in make(global_={"mode": "WFM-NOAO"}, sci_post={"raman": True}).warnings[0]
    assert "archive" in make(calibration={"esorex_kwargs_bias": "--nlow=2"}).warnings[0]
    config = make(sky={"fraction": 0.1}, parameters={"sky": {"fraction": 0.3}})
    assert "sky.fraction: 0.1 found, but fraction of muse_create_sky is given as 0.3" in config.warnings[0]


# ------------------------------------------------------------------------------------------ files


def written(tmp_path, kind, data):
    path = tmp_path / f"c.{kind}"
    path.write_text(write_text(data, kind))
    return path


@pytest.mark.parametrize("kind", ["json", "yaml", "toml"])
def test_formats_say_the_same(tmp_path, kind):
    data = CANONICAL | {
        "parameters": {"flat": {"nlow": 2}},
        "musedask": {"targets": {"NGC 6530": ["a", "b"]}, "save": ["cube"]},
        "obs": {"NGC*": {"sky": {"fraction": 0.5}, "parameters": {"sci_post": {"lambdamin": 5000.5}}}},
    }
    config = load_config(written(tmp_path, kind, data))
    assert dict(config) == dict(read_config(data))
    assert config.for_ob("NGC1").recipe_parameters("sci_post", "muse_scipost")["lambdamin"] == 5000.5


#: text, where it is wrong, what is said
BROKEN = [
    ("json", '{"global": {\n  "n_CPU": 3,,\n}}', "line 2, column 14", "Expecting property name"),
    ("json", '{"sky": {\n\t"fraction": 3}}', "line 2, column 2", "3 found"),
    ("json", '{"sky": {"fraction": 0.1,\n "fraction": 0.2}}', "line 2, column 2", "there twice"),
    ("yaml", "sky:\n  fraction: [1\n", "line 3, column 1", "expected ',' or ']'"),
    ("yaml", "sky:\n  fraction: 1\n", "line 2, column 3", "1 found"),
    ("yaml", "sky:\n  ignore: 0\n  ignore: 0.1\n", "line 3, column 3", "there twice"),
    ("yaml", "sky:\n  protect:\n  - [5000, 6000]\n  - [5, a]\n", "line 4, column 9", "'a' found"),
    ("toml", "[sky]\nfraction = = 2\n", "line 2, column 12", "Invalid value"),
    ("toml", "[sky]\n\nfraction = 2\n", "line 3, column 1", "2 found"),
    ("toml", '[obs."NGC 1".sky]\n  fraction = 2\n', "line 2, column 3", "2 found"),
]


@pytest.mark.parametrize(("kind", "text", "place", "said"), BROKEN)
def test_messages_tell_the_place(tmp_path, kind, text, place, said):
    path = tmp_path / f"broken.{kind}"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_config(path, complete=False)
    assert str(error.value).startswith(f"{path}, {place}: ")
    assert said in str(error.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_config(tmp_path / "no.json")
    with pytest.raises(InputError, match="folder found"):
        read_config(tmp_path)
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(InputError, match="list found, expected sections"):
        read_config(tmp_path / "b.yaml")
    (tmp_path / "c.conf").write_text("global: {}")
    with pytest.raises(InputError, match=r"'.conf' found, expected .json"):
        read_config(tmp_path / "c.conf")
    (tmp_path / "config.bak").write_text(json.dumps({"global": LEAST}))
    assert read_config(tmp_path / "config.bak").global_.rootpath == Path("/data")
    (tmp_path / "empty.yaml").write_text("")
    assert not read_config(tmp_path / "empty.yaml", complete=False).differences()


def test_yaml_is_of_version_1_2(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "global: {rootpath: /a, static_calib_path: /b, OB_list: [no, 12:30, 2018-11-08, 200123]}\n"
        "sky: {fraction: 1e-2}\n"
    )
    config = read_config(path)
    assert config.global_.OB_list == ("no", "12:30", "2018-11-08", "200123")
    assert config.sky.fraction == 0.01


# ------------------------------------------------------------------------------------------ files of MUSEreduce


@pytest.mark.parametrize("name", ["documented", "code"])
def test_templates_of_musereduce(name, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("musedask"), "propagate", True)
    path = DATA / f"musereduce_{name}.json"
    with caplog.at_level("WARNING", "musedask"):
        config = load_config(path)
    changed = {f"{section}.{key}" for section, key, *_ in config.differences()}
    assert changed == {"global.pipeline_path", "global.rootpath", "global.mode"}
    assert config.global_.rootpath == Path("/data/ngc6530")
    told = {record.getMessage().split(": ", 2)[1] for record in caplog.records}
    assert told == {
        "documented": {
            "global.using_ESO_Calibration", "sci_basic.sky_reject", "exp_align.scrmin", "exp_align.scrmax",
        },
        "code": {
            "global.auto_create_OB_list", "calibration.using_ESO_calibration", "calibration.renew_statics",
            "dither_collect.user_list",
        },
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", ["documented", "code"])
@pytest.mark.parametrize("kind", ["json", "yaml", "toml"])
def test_migrated_templates_say_the_same(name, kind, tmp_path):
    old = DATA / f"musereduce_{name}.json"
    new = tmp_path / f"new.{kind}"
    done = CliRunner().invoke(main, ["-q", "config", "migrate", str(old), str(new)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    config = load_config(new, strict=True)
    assert dict(config) == dict(read_config(old))


def test_migration_keeps_everything(tmp_path):
    data = CANONICAL | {
        "global": {k: v for k, v in CANONICAL["global"].items() if k not in ("OB_list", "exp_list", "rootpath")}
        | {"OB": "T", "OB_list": ["a", "b"], "rootpath": "night/"},
        "dither_collect": {"execute": False, "user_list": ["x"]},
        "parameters": {"muse_scipost": {"lambdamin": 4900, "lambdaref": 7100}, "sci_post": {"lambdamax": 7100}},
        "obs": {
            "a": {"sky": {"esorex_kwargs": "--lambdamin=5000"}, "exp_align": {"scrmin": 2}},
            "b": {"parameters": {"muse_bias": {"nlow": 5, "nhigh": 5}}},
        },
    }
    old = written(tmp_path, "json", data)
    before = read_config(old)
    (tmp_path / "other").mkdir()
    for new in (tmp_path / "new.yaml", tmp_path / "other" / "new.toml"):
        done = CliRunner().invoke(main, ["config", "migrate", str(old), str(new)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        after = load_config(new, strict=True)
        for name in ("a", "b"):
            one, two = before.for_ob(name), after.for_ob(name)
            assert one.global_ == two.global_ and one.musedask == two.musedask and one.sky.fraction == two.sky.fraction
            assert one.exp_align.srcmin == two.exp_align.srcmin
            for step, recipe in STEP_RECIPES.items():
                assert one.recipe_parameters(step, recipe) == two.recipe_parameters(step, recipe), (name, step)
    again = CliRunner().invoke(main, ["config", "migrate", str(old), str(new)])
    assert again.exit_code == 1 and "exists already" in again.output


# ------------------------------------------------------------------------------------------ recipe parameters


def test_each_step_has_a_recipe():
    assert set(STEP_RECIPES) == set(STEPS) - {"dither_collect"}
    assert set(STEP_RECIPES.values()) >= set(OPTION_KEYS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--nlow=2", {"nlow": 2}),
        ("--nlow 2 --nhigh=3", {"nlow": 2, "nhigh": 3}),
        ("--muse_bias.nlow=2 --muse.muse_bias.nhigh=4", {"nlow": 2, "nhigh": 4}),
        ("--combine='median'", {"combine": "median"}),
        ('--overscan="vpoly:40,0.01"', {"overscan": "vpoly:40,0.01"}),
        ("--nl=2", {"nlow": 2}),
        ("-nlow=2", {"nlow": 2}),
        ("--lsigma -1.5", {"lsigma": -1.5}),
        ("--nlow=2 --nlow=3", {"nlow": 3}),
        ("", {}),
    ],
)
def test_options(text, expected):
    assert parse_options(text, get_recipe("bias")) == (expected, [])


def test_options_that_are_true_or_false():
    flat = get_recipe("flat")
    for text, expected in (("--samples", True), ("--samples=TRUE", True), ("--samples=false", False)):
        assert parse_options(text, flat)[0] == {"samples": expected}
    assert parse_options("--samples false --nlow=2", flat)[0] == {"samples": False, "nlow": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--nlwo=2", "muse_bias has no parameter 'nlwo'; did you mean nlow"),
        ("--nlow=two", "'two' found"),
        ("--nlow", "--nlow: no value found, expected whole number"),
        ("--nlow --nhigh=2", "--nlow: no value found"),
        ("nlow=2", "'nlow=2' found, expected an option"),
        ("--n=2", "--n found, expected one of --nifu, --nlow, --nhigh, --nkeep"),
        ("--combine=mode", "'mode' found, expected one of average"),
        ("--combine='median", "No closing quotation"),
        ("--muse_flat.nlow=2", "a parameter of muse_flat found, expected one of muse_bias"),
        ("--output-dir=/tmp", "--output-dir is an option of esorex itself"),
        ("--recipe-config=x", "--recipe-config is an option of esorex itself"),
    ],
)
def test_options_that_are_refused(text, expected):
    with pytest.raises(InputError, match=re.escape(expected)):
        parse_options(text, get_recipe("bias"))


def test_options_that_are_ignored():
    values, warnings = parse_options("--log-level=debug --no-checksum --nifu=-1 --merge --nlow=2", get_recipe("bias"))
    assert values == {"nlow": 2}
    assert [re.match(r"--([\w-]+)", w)[1] for w in warnings] == ["log-level", "no-checksum", "nifu", "merge"]
    config = make(sci_basic={"esorex_kwargs": "--merge"})
    assert "sci_basic.esorex_kwargs: --merge is set by the reduction itself" in config.warnings[0]


def test_what_goes_before():
    config = make(
        sci_basic={"esorex_kwargs": "--crop=false --cr=dcr", "skyreject": [10, 10, 2]},
        parameters={"scibasic": {"crop": True, "saveimage": False}, "std_basic": {"cr": "none"}},
    )
    assert config.recipe_parameters("sci_basic", "muse_scibasic") == {"crop": False, "cr": "dcr", "saveimage": False}
    assert config.recipe_parameters("std_basic", "scibasic") == {"crop": False, "cr": "none", "saveimage": False}
    assert config.recipe_parameters("std_flux", get_recipe("standard")) == {}
    assert config.sci_basic.skyreject == "10,10,2"


def test_keys_that_set_parameters_fit_them():
    for section, model in SECTIONS.items():
        for key, declared in keys_of(model).items():
            if declared["sets"] is not None:
                step, recipe, name = declared["sets"]
                assert step in STEPS
                parameter = get_recipe(recipe).parameter(name)
                parameter.check(model.model_fields[key].default)
                assert f"{step}: {recipe} {name}" in declared["acts"], (section, key)


# ------------------------------------------------------------------------------------------ rules


def test_rules_of_the_association():
    rules = {"preference": "master", "windows": {"STD": [1, 2, 3, 4]}, "minimum": {"FLAT": 5}, "exclude": ["a*"]}
    assert make(musedask={"association": rules}).musedask.association == rules


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("preferense", "raw", "no such key, perhaps preference"),
        ("preference", "best", "'best' found, expected one of raw, master"),
        ("windows", {"STD": [3, 2, 1]}, "expected four growing numbers"),
        ("exclude", [{"night": "2018-11-08"}], "no such key, perhaps nights"),
        ("use_darks", True, "is the key calibration.dark, expected there"),
    ],
)
def test_rules_that_are_refused(key, given, expected):
    message = problem(musedask={"association": {key: given}})
    assert message.startswith(f"musedask.association.{key}: ") and expected in message


# ------------------------------------------------------------------------------------------ observing blocks


def test_overrides():
    config = make(
        sky={"fraction": 0.1},
        parameters={"sci_post": {"lambdamin": 5000, "lambdamax": 6000}},
        obs={
            "NGC1": {"sky": {"fraction": 0.4}, "parameters": {"sci_post": {"lambdamax": 7000}}},
            "NGC*": {"sky": {"fraction": 0.2, "ignore": 0.2}, "musedask": {"save": "cube"}},
            "*1": {"sky": {"fraction": 0.3}},
            "200123": {"exp_combine": {"weight": "none"}},
        },
    )
    one = config.for_ob("NGC1")
    assert (one.sky.fraction, one.sky.ignore, one.musedask.save) == (0.4, 0.2, ("cube",))
    assert one.recipe_parameters("sci_post", "scipost") == {"lambdamin": 5000.0, "lambdamax": 7000.0}
    assert config.for_ob("M1").sky.fraction == 0.3
    assert config.for_ob("NGC2", 200123).exp_combine.weight == "none"
    assert config.for_ob("M2") is config
    assert config.sky.fraction == 0.1
    assert pickle.loads(pickle.dumps(config)).for_ob("NGC1") == one


def test_a_configuration_is_taken_as_it_is():
    config = make()
    assert load_config(config) is config
    with pytest.raises(Exception, match="frozen"):
        config.sky.fraction = 0.5


# ------------------------------------------------------------------------------------------ commands


def run(*arguments):
    return CliRunner().invoke(main, ["config", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize("kind", ["json", "yaml", "toml"])
def test_init(tmp_path, kind):
    path = tmp_path / f"new.{kind}"
    done = run("init", path, "--rootpath", ".", "--static-calib-path", tmp_path)
    assert done.exit_code == 0, done.output
    config = load_config(path, strict=True)
    assert {key for _, key, *_ in config.differences()} == {"rootpath", "static_calib_path"}
    text = path.read_text()
    for section, model in SECTIONS.items():
        assert section in text
        for key in model.model_fields:
            assert re.search(rf"\b{key}\b", text), key
    if kind != "json":
        assert "# Fraction of the image that is taken as sky. [number >= 0 and < 1]" in text
        lines = [line for line in text.splitlines() if len(line) > 100]
        assert all("autocal" in line or str(tmp_path) in line for line in lines), lines
    assert run("init", path).exit_code == 1
    assert run("init", path, "--overwrite").exit_code == 0


def test_init_without_values_loads_as_the_defaults(tmp_path):
    for kind in ("json", "yaml", "toml"):
        path = tmp_path / f"a.{kind}"
        path.write_text(new_file(kind))
        config = read_config(path, complete=False, strict=True)
        assert not config.differences() and not config.parameters and not config.obs
    assert run("init", "-").output == (tmp_path / "a.yaml").read_text()
    assert run("init", "-", "--format", "toml").output == (tmp_path / "a.toml").read_text()


def test_check(tmp_path):
    (tmp_path / "night" / "raw").mkdir(parents=True)
    (tmp_path / "statics").mkdir()
    data = {
        "global": {"rootpath": "night", "static_calib_path": "statics", "using_ESO_Calibration": False},
        "sky": {"fraction": 0.2},
        "sci_post": {"esorex_kwargs": "--lambdamin=5000"},
        "musedask": {"engine": "native"},
        "obs": {"a*": {"sky": {"fraction": 0.3}, "parameters": {"flat": {"nlow": 3}}}},
    }
    path = written(tmp_path, "yaml", data)
    done = run("check", path)
    assert done.exit_code == 0, done.output
    lines = [re.sub(" {2,}", "  ", line) for line in done.output.splitlines()]
    assert lines[0] == f"{path}: valid"
    for line in ("  sky.fraction  0.2", "  global.using_ESO_calibration  false", "  muse_scipost  lambdamin=5000.0",
                 "  a*  sky: fraction=0.3", "  a*  flat: nlow=3"):  # fmt: skip
        assert line in lines, (line, lines)
    assert any("another spelling of global.using_ESO_calibration" in line for line in lines)
    assert run("check", path, "--strict").exit_code == 1
    (tmp_path / "statics").rmdir()
    data["musedask"]["esorex"] = "/no/esorex"
    data["musedask"]["engine"] = "auto"
    done = run("check", written(tmp_path, "yaml", data))
    assert done.exit_code == 1
    assert f"global.static_calib_path  {tmp_path / 'statics'}" in done.output
    assert "musedask.esorex           /no/esorex" in done.output
    path.write_text("sky: {fractoin: 2}\n")
    done = run("check", path)
    assert done.exit_code == 1 and "Traceback" not in done.output
    assert f"Error: {path}, line 1, column 7: sky.fractoin: unknown key; did you mean fraction?" in done.output


# ------------------------------------------------------------------------------------------ documentation


def test_declarations_are_complete():
    for section, model in SECTIONS.items():
        assert model.__doc__
        for key, declared in keys_of(model).items():
            description = model.model_fields[key].description
            assert description and description.endswith("."), (section, key)
            assert declared["acts"], (section, key)


def test_examples_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name)
    page = (ROOT / "docs" / "config.md").read_text()
    examples = re.findall(r"```yaml\n# (\S+)\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) >= 4
    for name, text in examples:
        (tmp_path / name).write_text(f"# {name}\n{text}")
        assert not load_config(tmp_path / name, strict=True).warnings
    shown = re.search(r"\$ musedask config check small.yaml\n(.*?)```", page, flags=re.DOTALL)[1]
    assert run("check", tmp_path / "small.yaml").output.replace(f"{tmp_path}/", "") == shown
    wrong = (tmp_path / "small.yaml").read_text().replace("static_calib_path", "static_calib")
    (tmp_path / "small.yaml").write_text(wrong)
    shown = re.search(r"```text\n(Error: .*?)```", page, flags=re.DOTALL)[1]
    assert shown.strip() in run("check", tmp_path / "small.yaml").output.replace(f"{tmp_path}/", "").splitlines()


def test_named_tests_exist():
    """Each test that shows the effect of a key is there."""
    keys = ((name, key, extra) for name, model in SECTIONS.items() for key, extra in keys_of(model).items())
    named = {(section, key): extra["test"] for section, key, extra in keys}
    assert not [key for key, test in named.items() if not test]
    for test in set(named.values()):
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name.partition("[")[0] in functions, test
