"""From configuration to steps: what is done, with which frames and parameters, in which folders; nothing is run."""

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from musedask.calib.registry import has_native
from musedask.errors import InputError
from musedask.workflow.classify import scan
from musedask.workflow.reduce import plan_reduction
from musedask.workflow.steps import STEP_RECIPES, STEPS, Node

from .fakes import sections, two_nights, write_masters

#: exposures of Field A, of blank sky in it, and of Field-B, whose second one is of the next night
A1, A2, SKY = "020000-330000_0300_000_00", "020000-325959_0300_090_00", "020008-325900_0120_000_00"
B1, B2 = "020400-330000_0300_000_00", "020400-325959_0300_090_00"
POINTING = "020000-330000_0300/withoutsky_withrvcorr"


@pytest.fixture(scope="module")
def headers(nights, tmp_path_factory):
    """What is remembered of the headers of the two nights, which saves time."""
    path = tmp_path_factory.mktemp("headers") / "headers.json"
    scan(nights / "raw", cache=path)
    return path


@pytest.fixture
def plan(nights, headers, tmp_path):
    """Plan a reduction of the two nights with some other keys."""
    (tmp_path / "reduced/.musedask").mkdir(parents=True)
    shutil.copy(headers, tmp_path / "reduced/.musedask")

    def make(folder=nights, *, first=None, last=None, **more):
        return plan_reduction(sections(folder, tmp_path, **more), first=first, last=last)

    return make


@pytest.fixture(scope="module")
def whole(nights, tmp_path_factory):
    """The plan with all defaults."""
    return plan_reduction(sections(nights, tmp_path_factory.mktemp("whole")))


def frames(plan, step):
    """Names of frames of a step with their tags, those of other steps with their folders below the reduction."""
    found = {}
    for node in plan.graph[step].nodes:
        for path, tag in plan.graph.frames(node):
            below = path.is_relative_to(plan.reduced)
            found[str(path.relative_to(plan.reduced)) if below else path.name, tag] = None
    return list(found)


def of_tag(plan, step, tag):
    """Names of its frames of a tag."""
    return [name for name, t in frames(plan, step) if t == tag]


def tags(plan, step):
    """How many frames it has of each tag."""
    return Counter(tag for _, tag in frames(plan, step))


def names(plan, *, active=None):
    """Names of steps that there are, or that are to be done."""
    return {s.name for s in plan.graph if active is None or s.active is active}


def exposures(plan):
    """Those that go through muse_scipost."""
    return {s.exposure for s in plan.graph if s.name == "sci_post"}


# --- all steps


def test_frames_of_each_step(plan):
    """Spec of the steps: which tags the recipes get."""
    p = plan(calibration={"dark": True}, musedask={"ifus": [1, 2]})
    science, dark = "Field_A/calibrations/SCIENCE", "Field_A/calibrations/DARK"
    own = {"MASTER_BIAS": 2, "MASTER_FLAT": 2, "TRACE_TABLE": 2, "WAVECAL_TABLE": 2, "MASTER_DARK": 2}
    assert tags(p, f"{science}/bias") == {"BIAS": 3}
    assert tags(p, f"{dark}/dark") == {"DARK": 3, "MASTER_BIAS": 2}
    assert tags(p, f"{science}/flat") == {"FLAT": 3, "MASTER_BIAS": 2, "MASTER_DARK": 2}
    arcs = {"ARC": 3, "LINE_CATALOG": 1, "MASTER_BIAS": 2, "TRACE_TABLE": 2, "MASTER_DARK": 2}
    assert tags(p, f"{science}/wavecal") == arcs
    assert tags(p, f"{science}/lsf") == {**arcs, "WAVECAL_TABLE": 2, "MASTER_FLAT": 2}
    assert tags(p, "Field_A/calibrations/TWILIGHT/twilight") == {"SKYFLAT": 3, "ILLUM": 1, "GEOMETRY_TABLE": 1, **own}
    basic = {"ILLUM": 1, "GEOMETRY_TABLE": 1, "BADPIX_TABLE": 1, "TWILIGHT_CUBE": 1, **own}
    assert tags(p, f"Field_A/{A1}/sci_basic_object") == {"OBJECT": 1, **basic}
    assert tags(p, f"Field_A/{SKY}/sci_basic_object") == {"SKY": 1, **basic}
    assert tags(p, "Field_A/std/sci_basic_std") == {"STD": 1, **basic}
    assert tags(p, "Field_A/std/std_flux") == {
        "PIXTABLE_STD": 2, "EXTINCT_TABLE": 1, "STD_FLUX_TABLE": 1, "FILTER_LIST": 1, "TELLURIC_REGIONS": 1
    }  # fmt: skip
    response = {"LSF_PROFILE": 2, "STD_RESPONSE": 1, "STD_TELLURIC": 1, "EXTINCT_TABLE": 1}
    assert tags(p, f"Field_A/{SKY}/sky") == {"PIXTABLE_SKY": 2, "SKY_LINES": 1, **response}
    assert tags(p, f"Field_A/{A1}/scipost") == {
        "PIXTABLE_OBJECT": 2, "ASTROMETRY_WCS": 1, "SKY_LINES": 1, "SKY_CONTINUUM": 1, "FILTER_LIST": 1, **response
    }  # fmt: skip
    assert tags(p, f"Field_A/{POINTING}/exp_align") == {"IMAGE_FOV": 2}
    assert tags(p, f"Field_A/{POINTING}/exp_combine") == {"PIXTABLE_REDUCED": 2, "OFFSET_LIST": 1, "FILTER_LIST": 1}
    assert names(p) == set(STEPS) - {"astrometry"}
    assert {s.name: s.recipe.name for s in p.graph if s.recipe} == {
        k: v for k, v in STEP_RECIPES.items() if k != "astrometry"
    }


def test_parameters_of_each_step(whole):
    """The options that MUSEreduce gives, but for products that nobody asked for."""
    p = whole
    values = {s.name: dict(s.values) for s in p.graph if s.recipe is not None}
    assert values == {
        "bias": {}, "flat": {"samples": True}, "wavecal": {"residuals": True}, "lsf": {}, "twilight": {},
        "sci_basic": {"skyreject": "15.,15.,1", "skylines": "5577.339,6300.304", "saveimage": False},
        "std_basic": {"saveimage": False}, "std_flux": {"filter": "white"}, "sky": {"fraction": 0.05, "ignore": 0.05},
        "sci_post": {"save": "cube,skymodel,individual,raman,autocal", "skymethod": "model", "autocalib": "none",
                     "filter": "white", "rvcorr": "bary"},
        "exp_align": {"srcmin": 5, "srcmax": 80},
        "exp_combine": {"filter": "white", "save": "cube", "crsigma": 5.0, "weight": "exptime"},
    }  # fmt: skip


def test_calibrations_are_made_once(whole):
    """Both blocks use those of the first night; the second exposure of the second one those of its own."""
    p = whole
    bias = [s for s in p.graph if s.name == "bias" and s.recipe is not None]
    assert [s.id for s in bias] == [
        "Field_A/calibrations/SCIENCE/bias", "Field-B/calibrations/SCIENCE_2018-11-09/bias"
    ]  # fmt: skip
    linked = p.graph["Field-B/calibrations/SCIENCE/bias"]
    assert linked.operation == "link" and linked.inputs[0].step == bias[0].id
    assert of_tag(p, f"Field-B/{B2}/sci_basic_object", "MASTER_BIAS") == [
        "Field-B/calibrations/SCIENCE_2018-11-09/MASTER_BIAS-01.fits"
    ]
    assert of_tag(p, f"Field-B/{B1}/sci_basic_object", "MASTER_BIAS") == of_tag(
        p, f"Field_A/{A1}/sci_basic_object", "MASTER_BIAS"
    )
    assert sum(s.name == "std_flux" and s.recipe is not None for s in p.graph) == 2


def test_each_step_depends_on_what_it_needs(plan):
    p = plan(musedask={"ifus": [1, 2]})
    needs = p.graph.needs(Node("Field_A/calibrations/SCIENCE/flat", 2))
    assert needs == [Node("Field_A/calibrations/SCIENCE/bias", 2)]
    later = {n.step for n in p.graph.dependants([Node("Field-B/calibrations/SCIENCE_2018-11-09/bias", 1)])}
    assert not any(step.startswith("Field_A/") for step in later)
    assert f"Field-B/{B1}/scipost" not in later and f"Field-B/{B2}/scipost" in later
    twilight = p.graph.needs(Node("Field_A/calibrations/TWILIGHT/twilight"))
    assert Node("Field_A/calibrations/SCIENCE/flat", 1) in twilight and len(twilight) == 6


def test_illumination_is_the_nearest(whole):
    p = whole
    assert of_tag(p, f"Field_A/{A1}/sci_basic_object", "ILLUM") == ["MUSE.2018-11-09T00:29:50.979.fits"]
    assert of_tag(p, "Field_A/std/sci_basic_std", "ILLUM") == ["MUSE.2018-11-09T00:00:13.443.fits"]


# --- sections


def test_darks(plan):
    p = plan()
    assert "dark" not in names(p) and not any(r.tag == "MASTER_DARK" for s in p.graph for r in s.inputs)
    p = plan(calibration={"dark": True})
    users = {s.name for s in p.graph if any(r.tag == "MASTER_DARK" for r in s.inputs) and s.operation != "link"}
    assert users == {"flat", "wavecal", "lsf", "twilight", "sci_basic", "std_basic"}
    # of one block only
    p = plan(obs={"Field-B": {"calibration": {"dark": True}}})
    users = {s.ob for s in p.graph if any(r.tag == "MASTER_DARK" for r in s.inputs) and s.recipe is not None}
    assert users == {"Field-B"}
    assert tags(p, "Field-B/calibrations/SCIENCE/flat")["MASTER_DARK"] == 1
    assert not tags(p, "Field_A/calibrations/SCIENCE/flat")["MASTER_DARK"]


EXECUTE = [
    ("calibration", "execute", {"bias", "flat", "wavecal", "lsf", "twilight"}),
    ("sci_basic", "execute", {"sci_basic", "std_basic"}),
    ("sci_basic", "execute_std", {"std_basic"}),
    ("sci_basic", "execute_sci", {"sci_basic"}),
    *((name, "execute", {name}) for name in ("std_flux", "sky", "sci_post", "dither_collect", "exp_align",
                                             "exp_combine")),
]  # fmt: skip


@pytest.mark.parametrize(("section", "key", "off"), EXECUTE)
def test_execute_switches(plan, whole, section, key, off):
    p = plan(**{section: {key: False}})
    assert names(p, active=False) == off
    assert not names(p, active=True) & off
    assert not any(p.graph[n.step].name in off for n in p.graph.nodes())
    # what comes later waits for nothing, and takes the same files
    for step in p.graph:
        assert frames(p, step.id) == frames(whole, step.id)


def test_from_and_to(plan):
    p = plan(first="sky", last="exp_align")
    assert names(p, active=True) == {"sky", "sci_post", "dither_collect", "exp_align"}
    assert names(p, active=False) == set(STEPS) - {"astrometry", "dark"} - names(p, active=True)
    with pytest.raises(InputError, match="steps from sky to flat found, but flat comes first"):
        plan(first="sky", last="flat")
    with pytest.raises(InputError, match="step 'skyy' found, expected one of bias"):
        plan(first="skyy")


@pytest.mark.parametrize(
    ("section", "key", "value", "step", "parameter", "expected"),
    [
        ("sci_basic", "skyreject", "10.,9.,2", "sci_basic", "skyreject", "10.,9.,2"),
        ("sci_basic", "skylines", "5577.339", "sci_basic", "skylines", "5577.339"),
        ("sky", "fraction", 0.3, "sky", "fraction", 0.3),
        ("sky", "ignore", 0.1, "sky", "ignore", 0.1),
        ("sky", "method", "simple", "sci_post", "skymethod", "simple"),
        ("sci_post", "autocalib", "deepfield", "sci_post", "autocalib", "deepfield"),
        ("sci_post", "rvcorr", "helio", "sci_post", "rvcorr", "helio"),
        ("exp_align", "srcmin", 7, "exp_align", "srcmin", 7),
        ("exp_align", "srcmax", 60, "exp_align", "srcmax", 60),
        *(("exp_combine", "weight", w, "exp_combine", "weight", w) for w in ("exptime", "fwhm", "header", "none")),
        ("musedask", "save", ["cube", "stacked"], "sci_post", "save", "cube,stacked"),
    ],
)
def test_keys_that_are_parameters(plan, section, key, value, step, parameter, expected):
    p = plan(**{section: {key: value}})
    found = {s.id: s.values[parameter] for s in p.graph if s.name == step and s.recipe is not None}
    assert found and set(found.values()) == {expected}
    # standard stars have those of the recipe
    assert all(parameter not in s.values for s in p.graph if s.name == "std_basic")


OPTIONS = [
    *(("calibration", f"esorex_kwargs_{name}", name) for name in ("bias", "dark", "flat", "wavecal", "lsf")),
    ("calibration", "esorex_kwargs_twilight", "twilight"), ("sci_basic", "esorex_kwargs", "sci_basic"),
    ("std_flux", "esorex_kwargs", "std_flux"), ("sky", "esorex_kwargs", "sky"),
    ("sci_post", "esorex_kwargs", "sci_post"), ("exp_align", "esorex_kwargs", "exp_align"),
    ("exp_combine", "esorex_kwargs", "exp_combine"),
]  # fmt: skip
_SETS = {
    "bias": "--nlow=2", "dark": "--nlow=2", "flat": "--edgefrac=0.4", "wavecal": "--xorder=3",
    "lsf": "--lsf_range=6.5", "twilight": "--dlambda=200", "sci_basic": "--crop=false", "std_flux": "--select=distance",
    "sky": "--csampling=1.5", "sci_post": "--lambdamin=5000", "exp_align": "--threshold=9",
    "exp_combine": "--pixfrac=0.7,0.7",
}  # fmt: skip


@pytest.mark.parametrize(("section", "key", "step"), OPTIONS)
def test_options_of_esorex(plan, whole, section, key, step):
    name, _, text = _SETS[step].removeprefix("--").partition("=")
    p = plan(**{section: {key: _SETS[step], **({"dark": True} if step == "dark" else {})}})
    recipe = STEP_RECIPES[step]
    for s in p.graph:
        if s.recipe is not None and s.recipe.name == recipe:
            # also of standard stars
            assert str(s.values[name]).lower() == text or float(s.values[name]) == float(text), s.id
        elif s.recipe is not None:
            assert str(s.values.get(name, "")).lower() != text
    assert all(name not in s.values for s in whole.graph if s.recipe is not None and s.recipe.name == recipe)


def test_parameters_by_name(plan):
    p = plan(
        parameters={"muse_scibasic": {"crop": False, "skyreject": "9.,9.,1"}, "std_basic": {"skyreject": "8.,8.,1"},
                    "sky": {"fraction": 0.5}, "exp_combine": {"crsigma": 9.0}},
        sky={"fraction": 0.2, "esorex_kwargs": "--ignore=0.2"},
    )  # fmt: skip
    science, std = p.graph[f"Field_A/{A1}/sci_basic_object"].values, p.graph["Field_A/std/sci_basic_std"].values
    assert (science["crop"], science["skyreject"]) == (False, "9.,9.,1")
    assert (std["crop"], std["skyreject"]) == (False, "8.,8.,1")
    sky = p.graph[f"Field_A/{SKY}/sky"].values
    assert (sky["fraction"], sky["ignore"]) == (0.5, 0.2)
    assert p.graph[f"Field_A/{POINTING}/exp_combine"].values["crsigma"] == 9.0


# --- sky


def test_sky_of_an_exposure(plan):
    """``auto``: that of the night, for the block without one the exposure itself."""
    p = plan()
    assert of_tag(p, f"Field_A/{SKY}/sky", "PIXTABLE_SKY") == [f"Field_A/{SKY}/PIXTABLE_SKY_0001-01.fits"]
    linked = p.graph[f"Field_A/{A1}/sky"]
    assert linked.operation == "link"
    assert {f for f, _ in frames(p, linked.id)} == {
        f"Field_A/{SKY}/SKY_{n}.fits" for n in ("LINES", "CONTINUUM", "MASK", "SPECTRUM", "IMAGE")
    }
    assert of_tag(p, f"Field-B/{B2}/sky", "PIXTABLE_SKY") == [f"Field-B/{B2}/PIXTABLE_OBJECT_0001-01.fits"]
    p = plan(sky={"sky_field": "object"})
    for exposure in (A1, A2):
        assert of_tag(p, f"Field_A/{exposure}/sky", "PIXTABLE_SKY") == [
            f"Field_A/{exposure}/PIXTABLE_OBJECT_0001-01.fits"
        ]
        assert of_tag(p, f"Field_A/{exposure}/scipost", "SKY_LINES") == [f"Field_A/{exposure}/SKY_LINES.fits"]
    assert f"Field_A/{SKY}/sky" not in p.graph.steps
    # the other block uses it, too
    p = plan(obs={"Field A": {"sky": {"sky_field": "object"}}})
    assert of_tag(p, f"Field_A/{A1}/sky", "PIXTABLE_SKY") == [f"Field_A/{A1}/PIXTABLE_OBJECT_0001-01.fits"]
    assert of_tag(p, f"Field-B/{B1}/sky", "SKY_LINES") == [f"Field_A/{SKY}/SKY_LINES.fits"]
    p = plan(obs={"Field*": {"sky": {"sky_field": "object"}}})
    assert f"Field_A/{SKY}/sky" not in p.graph.steps


def test_modified_sky(plan):
    p = plan(
        sky={"modified": True, "method": "subtract-model", "sky_field": "object", "kept_species": ["OH"],
             "protect": [[6500, 6600]]},
    )  # fmt: skip
    here = f"Field_A/{A1}"
    one, zero, two, last = (p.graph[f"{here}/{n}"] for n in ("sky_pass1/sky", "sky_pass2/sky_zero", "sky_pass2/sky",
                                                             "sky"))  # fmt: skip
    assert one.values == two.values == {"fraction": 0.05, "ignore": 0.05}
    assert "SKY_CONTINUUM" not in tags(p, one.id)
    assert frames(p, zero.id) == [(f"{here}/sky_pass1/SKY_CONTINUUM.fits", "SKY_CONTINUUM")]
    assert of_tag(p, two.id, "SKY_CONTINUUM") == [f"{here}/sky_pass2/SKY_CONTINUUM_zero.fits"]
    assert [f for f in frames(p, two.id) if f[1] != "SKY_CONTINUUM"] == frames(p, one.id)
    assert of_tag(p, last.id, "SKY_LINES") == [f"{here}/sky_pass2/SKY_LINES.fits"]
    assert of_tag(p, last.id, "SKY_CONTINUUM") == [f"{here}/sky_pass2/SKY_CONTINUUM_zero.fits"]
    assert last.values["species"] == ["OH"] and last.values["protect"] == [[6500, 6600]]
    post = p.graph[f"{here}/scipost"]
    assert post.values["skymethod"] == "subtract-model"
    assert of_tag(p, post.id, "SKY_LINES") == [f"{here}/SKY_LINES.fits"]
    p = plan(sky={"modified": True, "method": "subtract-model", "sky_field": "object", "keep_continuum": True})
    assert of_tag(p, f"{here}/sky", "SKY_CONTINUUM") == [f"{here}/sky_pass1/SKY_CONTINUUM.fits"]


def test_modified_sky_with_a_method_that_fits_anew(plan, caplog):
    plan(sky={"modified": True})
    assert "sky.method: model found, which fits the lines anew" in caplog.text


# --- muse_scipost


def test_without_sky_subtraction(plan):
    p = plan(sci_post={"subtract_sky": False})
    post = p.graph[f"Field_A/{A1}/scipost"]
    assert post.values["skymethod"] == "none" and post.values["rvcorr"] == "bary"
    assert not {"SKY_LINES", "SKY_CONTINUUM", "SKY_MASK", "LSF_PROFILE"} & set(tags(p, post.id))
    assert [path.name for path in post.product_paths("DATACUBE_FINAL")] == ["DATACUBE_FINAL_wsky.fits"]
    assert "Field_A/020000-330000_0300/withsky_withrvcorr/exp_combine" in p.graph.steps


def test_without_correction_of_velocity(plan):
    for keys in ({"global_": {"withrvcorr": False}}, {"sci_post": {"rvcorr": "none"}}):
        p = plan(**keys)
        post = p.graph[f"Field_A/{A1}/scipost"]
        assert (post.values["skymethod"], post.values["rvcorr"]) == ("none", "none")
        assert not {"SKY_LINES", "SKY_CONTINUUM"} & set(tags(p, post.id))
        assert [p.name for p in post.product_paths("PIXTABLE_REDUCED")] == ["PIXTABLE_REDUCED_0001_wskynorvcorr.fits"]
        assert "Field_A/020000-330000_0300/withsky_withoutrvcorr/exp_combine" in p.graph.steps


@pytest.mark.parametrize("value", ["deepfield", "user", "none"])
def test_autocalibration(plan, value):
    found = tags(plan(sci_post={"autocalib": value}), f"Field_A/{A1}/scipost")
    assert found["SKY_MASK"] == (value != "none") and found["AUTOCAL_FACTORS"] == (value == "user")
    # also without subtraction
    p = plan(sci_post={"autocalib": value, "subtract_sky": False})
    assert tags(p, f"Field_A/{A1}/scipost")["SKY_MASK"] == (value != "none")


def test_raman(plan, adaptive):
    wide = {"parameters": {"std_flux": {}}}
    p = plan(adaptive, sci_post={"raman": True}, **wide)
    posts = [s.id for s in p.graph if s.name == "sci_post"]
    assert len(posts) == 4 and all(tags(p, name)["RAMAN_LINES"] == 1 for name in posts)
    p = plan(adaptive)
    assert not any(tags(p, name)["RAMAN_LINES"] for name in posts)
    assert not tags(plan(sci_post={"raman": True}), f"Field_A/{A1}/scipost")["RAMAN_LINES"]


# --- choice of exposures and blocks


def test_mode(plan, adaptive):
    p = plan(adaptive, global_={"mode": "NFM-AO"})
    assert {e.group.mode for e in p.sorted.exposures} == {"NFM-AO-N"}
    # without it each exposure is reduced in its own mode, with calibrations of that
    p = plan(adaptive)
    assert Counter(e.group.mode for e in p.sorted.exposures) == {"WFM-AO-N": 2, "NFM-AO-N": 2}
    for e in p.sorted.exposures:
        choices = p.sorted.associations.choices[e.group.id]
        assert choices["MASTER_FLAT"].group.mode == choices["STD_RESPONSE"].group.mode == e.group.mode
    with pytest.raises(InputError, match=r"global\.mode: WFM-AO found, but the exposures are of WFM-NOAO-N"):
        plan(global_={"mode": "WFM-AO"})


def test_modes_of_one_night(plan, adaptive, tmp_path):
    """Blocks of the same name and of two modes do not get in each other's way."""
    p = plan(adaptive)
    assert set(p.sorted.folders.values()) == {"AO_WFM", "AO_NFM"}
    flats = [s for s in p.graph if s.name == "flat" and s.recipe is not None]
    assert len({s.folder for s in flats}) == 2


def test_list_of_blocks(plan):
    assert exposures(plan()) == {A1, A2, B1, B2}
    for text in ("Field-B", "200002", "Field-*"):
        assert exposures(plan(global_={"OB_list": [text]})) == {B1, B2}
    with pytest.raises(InputError, match=r"observing block 'Field-C' found .* perhaps Field-B"):
        plan(global_={"OB_list": ["Field-C"]})


def test_blocks_that_have_folders(plan, tmp_path):
    with pytest.raises(InputError, match=r"auto_create_OB_folders is false.*Field_A, Field-B"):
        plan(global_={"auto_create_OB_folders": False})
    assert exposures(plan(global_={"auto_create_OB_folders": False, "OB_list": ["Field-B"]})) == {B1, B2}
    (tmp_path / "reduced/Field_A").mkdir(parents=True)
    assert exposures(plan(global_={"auto_create_OB_folders": False})) == {A1, A2}
    assert exposures(plan(global_={"auto_create_OB_folders": True})) == {A1, A2, B1, B2}


def test_exposure_time(plan):
    assert exposures(plan(global_={"using_specific_exposure_time": 300.0})) == {A1, A2, B1, B2}
    assert exposures(plan(global_={"using_specific_exposure_time": [300, 600]})) == {A1, A2, B1, B2}
    with pytest.raises(InputError, match=r"using_specific_exposure_time: 600 s found, but the exposures are of 300 s"):
        plan(global_={"using_specific_exposure_time": 600})


def test_list_of_exposures(plan):
    p = plan(global_={"exp_list": [A2]})
    assert exposures(p) == {A2}
    # of several blocks: those of each are combined, in the order and under the name of the list
    p = plan(global_={"exp_list": [A2, A1, f"Field-B/{B1}"]})
    assert exposures(p) == {A1, A2, B1}
    combined = {s.id: of_tag(p, s.id, "PIXTABLE_REDUCED") for s in p.graph if s.name == "dither_collect"}
    assert combined == {
        "Field_A/020000-325959_0300/withoutsky_withrvcorr/dither_collect": [
            f"Field_A/{A2}/PIXTABLE_REDUCED_0001_wosky.fits", f"Field_A/{A1}/PIXTABLE_REDUCED_0001_wosky.fits"
        ],
        "Field-B/020400-330000_0300/withoutsky_withrvcorr/dither_collect": [
            f"Field-B/{B1}/PIXTABLE_REDUCED_0001_wosky.fits"
        ],
    }  # fmt: skip
    # of several blocks into one cube
    p = plan(global_={"exp_list": [A2, B1], "dither_multiple_OBs": True, "OB_list": ["Field A", "Field-B"]})
    step = p.graph["Field_A_Field-B/020000-325959_0300/withoutsky_withrvcorr/exp_combine"]
    assert len(of_tag(p, step.id, "PIXTABLE_REDUCED")) == 2
    # the block before the name counts
    with pytest.raises(InputError, match=r"exp_list: .* there is no such exposure"):
        plan(global_={"exp_list": [f"Field-B/{A1}"]})


def test_several_blocks_into_one_cube(plan):
    keys = {"dither_multiple_OBs": True, "OB_list": ["Field A", "Field-B"]}
    # blocks that are a degree apart are different pointings of one target
    p = plan(global_=keys)
    combined = [s.id for s in p.graph if s.name == "exp_combine"]
    places = ("020000-330000_0300", "020400-330000_0300")
    assert combined == [f"Field_A_Field-B/{place}/withoutsky_withrvcorr/exp_combine" for place in places]
    p = plan(global_=keys, musedask={"pointing_tolerance": 8000.0})
    (step,) = [s for s in p.graph if s.name == "exp_combine"]
    assert [Path(name).name for name in of_tag(p, step.id, "PIXTABLE_REDUCED")] == [
        f"PIXTABLE_REDUCED_{name}.fits"
        for name in ("Field_A_0300_000_00", "Field_A_0300_090_00", "Field-B_0300_000_01", "Field-B_0300_090_01")
    ]
    # the name of older versions
    p = plan(global_={**keys, "OB": "both"}, musedask={"pointing_tolerance": 8000.0})
    assert [s.id for s in p.graph if s.name == "exp_combine"] == [f"both/{POINTING}/exp_combine"]


def test_targets(plan):
    p = plan(musedask={"targets": {"M 1": ["Field*"]}, "pointing_tolerance": 8000.0})
    (step,) = [s for s in p.graph if s.name == "exp_combine"]
    assert step.id == f"M_1/{POINTING}/exp_combine" and tags(p, step.id)["PIXTABLE_REDUCED"] == 4


def test_pointing_tolerance(plan):
    assert len(plan().sorted.pointings) == 2
    assert len(plan(musedask={"pointing_tolerance": 0.1}).sorted.pointings) == 4


def test_a_single_exposure(plan):
    """Its cube is that of the pointing: there is nothing to align."""
    p = plan(musedask={"pointing_tolerance": 0.1}, global_={"OB_list": ["Field A"]})
    step = p.graph[f"Field_A/{POINTING}/exp_combine"]
    assert step.operation == "link" and "exp_align" not in names(p)
    assert [str(path.relative_to(p.reduced)) for path in step.product_paths("DATACUBE_FINAL")] == [
        f"Field_A/{POINTING}/DATACUBE_FINAL.fits"
    ]


# --- calibrations that are there


@pytest.fixture
def archive(nights, tmp_path):
    """As `nights`, with masters of the archive."""
    folder = tmp_path / "archive"
    shutil.copytree(nights / "raw", folder / "raw", copy_function=lambda a, b: Path(b).hardlink_to(a))
    (folder / "static").symlink_to(nights / "static")
    write_masters(folder / "raw", two_nights())
    return folder


def test_masters_of_the_archive(plan, archive):
    p = plan(archive, global_={"using_ESO_calibration": True})
    made = {s.name for s in p.graph}
    # the standard star is reduced from its exposure all the same
    assert not made & {"bias", "dark", "flat", "wavecal", "lsf", "twilight"} and "std_flux" in made
    found = dict(map(reversed, frames(p, f"Field_A/{A1}/sci_basic_object")))
    for tag in ("MASTER_BIAS", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE", "TWILIGHT_CUBE"):
        assert found[tag] == f"M.{tag}.fits"
    assert "MASTER_DARK" not in found
    assert of_tag(p, f"Field_A/{A1}/scipost", "LSF_PROFILE") == ["M.LSF_PROFILE.fits"]
    assert of_tag(p, f"Field_A/{A1}/scipost", "STD_RESPONSE") == ["Field_A/std/STD_RESPONSE_0001.fits"]
    # with darks
    p = plan(archive, global_={"using_ESO_calibration": True}, calibration={"dark": True})
    assert of_tag(p, f"Field_A/{A1}/sci_basic_object", "MASTER_DARK") == ["M.MASTER_DARK.fits"]
    # without: from raw frames
    p = plan(archive)
    assert {"bias", "flat", "wavecal", "lsf", "twilight"} <= {s.name for s in p.graph}
    assert not any(name.startswith("M.") for s in p.graph for name, _ in frames(p, s.id))


def test_response_of_the_archive(plan, archive):
    from astropy.io import fits

    for path in (archive / "raw").glob("MUSE*"):
        if fits.getheader(path)["ESO DPR TYPE"] == "STD":
            path.unlink()
    p = plan(archive, global_={"using_ESO_calibration": True})
    assert of_tag(p, f"Field_A/{A1}/scipost", "STD_RESPONSE") == ["M.STD_RESPONSE.fits"]
    assert "std_flux" not in names(p)
    (archive / "raw/M.STD_RESPONSE.fits").unlink()
    with pytest.raises(InputError, match=r"no STD_RESPONSE found, which muse_\w+ needs"):
        plan(archive, global_={"using_ESO_calibration": True})
    # unless nothing is done that needs one
    assert names(plan(archive, last="sci_basic", global_={"using_ESO_calibration": True}), active=True)


def test_astrometry(plan, nights, tmp_path):
    from .fakes import write_statics

    for place in ("raw", "static"):
        shutil.copytree(nights / place, tmp_path / "n" / place)
    write_statics(tmp_path / "other")
    (tmp_path / "other/astrometry_wcs.fits").rename(tmp_path / "n/raw/own_astrometry.fits")
    (tmp_path / "other/geometry_table.fits").rename(tmp_path / "n/raw/own_geometry.fits")
    found = {}
    for kind in ("static", "archive", "auto"):
        p = plan(tmp_path / "n", musedask={"astrometry": kind})
        found[kind] = of_tag(p, f"Field_A/{A1}/scipost", "ASTROMETRY_WCS")
        assert "astrometry" not in names(p)
    assert found["static"] == ["astrometry_wcs.fits"]
    assert found["archive"] == found["auto"] == ["own_astrometry.fits"]


def test_own_astrometry(plan, adaptive):
    """Of exposures of an astrometric field: two steps in a folder of their own."""
    p = plan(adaptive, global_={"mode": "WFM-AO"}, musedask={"astrometry": "own"})
    folder = "AO_WFM/astrometry"
    assert tags(p, f"{folder}/sci_basic_astrometry")["ASTROMETRY"] == 1
    found = tags(p, f"{folder}/astrometry")
    assert (found["PIXTABLE_ASTROMETRY"], found["ASTROMETRY_REFERENCE"], found["EXTINCT_TABLE"]) == (1, 1, 1)
    for step in (s for s in p.graph if s.name == "sci_post"):
        assert of_tag(p, step.id, "ASTROMETRY_WCS") == [f"{folder}/ASTROMETRY_WCS_0001.fits"]


def test_rules_of_the_association(plan):
    first = [p.path for p in (plan().sorted.files) if p.tag == "ILLUM"][2]
    p = plan(musedask={"association": {"exclude": [first.name]}})
    assert of_tag(p, f"Field_A/{A1}/sci_basic_object", "ILLUM") != [first.name]


def test_renewed_statics(plan, nights, tmp_path):
    """Those of the last run are kept until they are to be renewed."""
    from .fakes import write_statics

    pipeline = tmp_path / "pipeline"
    write_statics(pipeline / "calib/muse-2.8.7")
    keys = {"static_calib_path": None, "pipeline_path": str(pipeline)}

    def kit(**more):
        p = plan(global_={**keys, **more})
        (p.reduced / ".musedask").mkdir(parents=True, exist_ok=True)
        p.sorted.write_statics()
        return {r.path.parent.name for s in p.graph for r in s.inputs if r.tag == "GEOMETRY_TABLE"}

    assert kit() == {"muse-2.8.7"}
    write_statics(pipeline / "calib/muse-2.8.9")
    assert kit() == {"muse-2.8.7"}
    assert kit(renew_statics=True) == {"muse-2.8.9"}
    assert kit() == {"muse-2.8.9"}
    # what is gone is renewed in any case, and so is another folder of them
    shutil.rmtree(pipeline / "calib/muse-2.8.9")
    assert kit() == {"muse-2.8.7"}
    assert kit(static_calib_path=str(nights / "static")) == {"static"}


# --- blocks with other settings


def test_settings_of_blocks(plan):
    p = plan(obs={"Field A": {"sky": {"fraction": 0.4}}, "200002": {"sci_post": {"subtract_sky": False}}})
    assert p.graph[f"Field_A/{SKY}/sky"].values["fraction"] == 0.4
    assert p.graph[f"Field_A/{A1}/scipost"].values["skymethod"] == "model"
    assert p.graph[f"Field-B/{B1}/scipost"].values["skymethod"] == "none"
    assert "Field-B/020400-330000_0300/withsky_withrvcorr/exp_combine" in p.graph.steps
    assert plan(obs={"Field-C": {"sky": {"fraction": 0.4}}}).sorted.warnings() == [
        "obs: 'Field-C' found, but there is no exposure of such a block"
    ]


def test_calibrations_with_other_parameters_are_made_again(plan):
    p = plan(obs={"Field-B": {"parameters": {"flat": {"edgefrac": 0.4}}}})
    flat = p.graph["Field-B/calibrations/SCIENCE/flat"]
    assert flat.recipe is not None and flat.values["edgefrac"] == 0.4
    assert of_tag(p, f"Field-B/{B1}/sci_basic_object", "MASTER_FLAT") == [
        "Field-B/calibrations/SCIENCE/MASTER_FLAT-01.fits"
    ]
    assert p.graph["Field-B/calibrations/SCIENCE/bias"].operation == "link"
    # and so is all that is made with them
    made = {s.name for s in p.graph if s.recipe is not None and "Field-B/calibrations/SCIENCE/" in s.id}
    assert made == {"flat", "wavecal", "lsf"}
    assert p.graph["Field-B/calibrations/TWILIGHT/twilight"].recipe is not None
    assert p.graph["Field-B/std/std_flux"].recipe is not None
    p = plan(obs={"Field-B": {"std_flux": {"esorex_kwargs": "--select=distance"}}})
    made = {s.name for s in p.graph if s.recipe is not None and s.id.startswith(("Field-B/cal", "Field-B/std/"))}
    assert made == {"bias", "flat", "wavecal", "lsf", "twilight", "std_basic", "std_flux"}
    assert all("_2018" in s.id for s in p.graph if s.ob == "Field-B" and s.recipe is not None and s.name == "bias")


def test_one_cube_of_blocks_with_other_settings(plan, caplog):
    whole = {"targets": {"M1": ["Field*"]}, "pointing_tolerance": 8000.0}
    # with and without sky are never mixed
    p = plan(musedask=whole, obs={"Field-B": {"sci_post": {"subtract_sky": False}}})
    combined = {s.id: tags(p, s.id)["PIXTABLE_REDUCED"] for s in p.graph if s.name == "exp_combine"}
    assert combined == {f"M1/020000-330000_0300/{n}_withrvcorr/exp_combine": 2 for n in ("withoutsky", "withsky")}
    # settings of the target come first, then those that its blocks agree on
    step = f"M1/{POINTING}/exp_combine"
    both = {"Field*": {"exp_combine": {"weight": "none"}}}
    assert plan(musedask=whole, obs=both).graph[step].values["weight"] == "none"
    target = {**both, "M1": {"exp_combine": {"weight": "fwhm"}}}
    assert plan(musedask=whole, obs=target).graph[step].values["weight"] == "fwhm"
    blank = plan(musedask={**whole, "targets": {"M 1": ["Field*"]}}, obs={"M 1": {"exp_combine": {"weight": "fwhm"}}})
    assert blank.graph[f"M_1/{POINTING}/exp_combine"].values["weight"] == "fwhm" and not blank.sorted.warnings()
    assert not caplog.text
    p = plan(musedask=whole, obs={"Field-B": {"exp_combine": {"weight": "none"}}})
    assert p.graph[step].values["weight"] == "exptime"
    assert "M1: the settings of Field_A, Field-B differ in how exposures are combined" in caplog.text


# --- this package's own


def test_ifus(plan):
    p = plan(musedask={"ifus": "2"})
    assert {n.ifu for n in p.graph.nodes()} == {2, None}
    p = plan(musedask={"ifus": None})
    assert {n.ifu for n in p.graph.nodes()} == {1, 2, None}


def test_engine(plan):
    p = plan(musedask={"engine": "auto"})
    assert {s.engine for s in p.graph if s.recipe} == {"auto"}
    assert p.graph[f"Field_A/{POINTING}/exp_combine"].operation == "mosaic"
    p = plan(musedask={"engine": "native"})
    found = {s.recipe.name: s.engine for s in p.graph if s.recipe}
    assert found["muse_bias"] == "native" and found["muse_scipost"] == "esorex"
    p = plan()
    assert {s.engine for s in p.graph if s.recipe} == {"esorex"}
    assert p.graph[f"Field_A/{POINTING}/exp_combine"].recipe.name == "muse_exp_combine"


def test_engine_of_a_step(plan):
    p = plan(musedask={"engine": "native", "engines": {"flat": "esorex", "muse_bias": "auto", "exp_combine": "esorex"}})
    found = {s.name: s.engine for s in p.graph if s.recipe}
    assert (found["bias"], found["flat"], found["wavecal"], found["sci_post"]) == ("auto", "esorex", "native", "esorex")
    assert p.graph[f"Field_A/{POINTING}/exp_combine"].recipe.name == "muse_exp_combine"
    p = plan(musedask={"engines": {"muse_scibasic": "native", "std_basic": "esorex", "exp_combine": "native"}})
    found = {s.name: s.engine for s in p.graph if s.recipe}
    native = "native" if has_native("muse_scibasic") else "esorex"
    assert (found["sci_basic"], found["std_basic"]) == (native, "esorex")
    assert p.graph[f"Field_A/{POINTING}/exp_combine"].operation == "mosaic"
    wrong = {"flatt": "did you mean flat?", "dither_collect": "a step that has a recipe"}
    for name, told in wrong.items():
        with pytest.raises(InputError, match=re.escape(told)) as error:
            plan(musedask={"engines": {name: "native"}})
        assert "musedask.engines" in str(error.value)
    with pytest.raises(InputError, match=r"engines.*'mine' found, expected 'auto', 'esorex' or 'native'"):
        plan(musedask={"engines": {"flat": "mine"}})


@pytest.mark.parametrize("output", ["fits", "zarr", "both"])
def test_form_of_cubes(plan, output):
    p = plan(musedask={"engine": "auto", "output": output})
    assert p.graph[f"Field_A/{POINTING}/exp_combine"].values["output"] == output


def test_merged_products(plan):
    p = plan(musedask={"merge": True, "ifus": None})
    merged = {s.id.rpartition("/")[2]: set(s.values["products"]) for s in p.graph if s.operation == "merge"}
    assert merged == {
        "bias_merged": {"MASTER_BIAS.fits"}, "lsf_merged": {"LSF_PROFILE.fits"},
        "flat_merged": {"MASTER_FLAT.fits", "TRACE_TABLE.fits", "TRACE_SAMPLES.fits"},
        "wavecal_merged": {"WAVECAL_TABLE.fits", "WAVECAL_RESIDUALS.fits"},
    }  # fmt: skip
    assert not any(s.operation == "merge" for s in plan(musedask={"ifus": None}).graph)


def test_collected_as_copies(plan):
    for kind in ("link", "copy"):
        p = plan(musedask={"collect": kind})
        assert {s.values["copy"] for s in p.graph if s.operation == "link"} == {kind == "copy"}


def test_settings_of_a_run(plan, tmp_path):
    keys = {"n_workers": 3, "threads": 2, "memory_limit": "5GB", "timeout": 60.0, "scratch": str(tmp_path / "s"),
            "on_failed_ifu": "drop", "esorex": "my-esorex"}  # fmt: skip
    s = plan(musedask=keys).settings
    assert (s.n_workers, s.threads, s.memory_limit, s.timeout) == (3, 2, 5_000_000_000, 60.0)
    assert (s.scratch, s.on_failed_ifu, s.esorex) == (tmp_path / "s", "drop", "my-esorex")
    assert plan(global_={"n_CPU": 5}).settings.n_workers == 5


def test_folders(plan, nights, tmp_path):
    p = plan(musedask={"reduced": str(tmp_path / "elsewhere")})
    assert all(s.folder.is_relative_to(tmp_path / "elsewhere") for s in p.graph)
    (tmp_path / "night/raw").parent.mkdir()
    (tmp_path / "night/raw").symlink_to(nights / "raw")
    p = plan(global_={"rootpath": str(tmp_path / "night")}, musedask={"raw": None})
    assert p.sorted.raw == [tmp_path / "night/raw"] and p.reduced == tmp_path / "night/reduced"
    with pytest.raises(InputError, match="no such folder, expected raw data there"):
        plan(musedask={"raw": None})


def test_blocks_in_folders_of_old(plan, nights, tmp_path):
    """Older versions of MUSEreduce wanted a folder of raw data for each block, which OB names."""
    shutil.copytree(nights / "raw", tmp_path / "n/raw/mine", copy_function=lambda a, b: Path(b).hardlink_to(a))
    (tmp_path / "n/static").symlink_to(nights / "static")
    assert exposures(plan(tmp_path / "n", global_={"OB": "mine"})) == {A1, A2, B1, B2}


def test_an_exposure_without_a_calibration(plan):
    """The others go on; what is combined of it does not."""
    rules = {"overrides": [{"category": "FLAT", "files": [], "obs": ["Field-B"]}]}
    p = plan(musedask={"association": rules})
    assert {s.ob for s in p.graph} == {"Field_A"}
    assert set(p.graph.refused) == {f"Field-B/{B1}", f"Field-B/{B2}", "Field-B/020400-330000_0300"}
    assert "no MASTER_FLAT found, which muse_scibasic needs" in p.graph.refused[f"Field-B/{B1}"]
    assert "for want of Field-B/" in p.graph.refused["Field-B/020400-330000_0300"]
    assert f"not possible: Field-B/{B1}: " in p.describe()
    with pytest.raises(InputError, match="no MASTER_FLAT found"):
        plan(musedask={"association": rules}, global_={"OB_list": ["Field-B"]})
