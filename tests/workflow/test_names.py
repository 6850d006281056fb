"""Names of exposures, blocks and pointings; which exposures are one pointing."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from musedask.errors import InputError
from musedask.workflow.classify import RawFile
from musedask.workflow.names import (
    angle_text,
    assign_targets,
    block_folders,
    block_of,
    cluster,
    exposure_ids,
    exptime_text,
    matches_block,
    pointing_name,
    pointings,
    radec,
    safe_name,
    select_blocks,
    separation,
)


def exposure(
    number, ra=271.1288, dec=-24.38774, *, exptime=860.0, posang=0.0, ob="tile", ob_id=7, tag="OBJECT", **more
):
    name = f"MUSE.{number:04d}"
    more = {"mjd": 58000.0 + number / 100, "mode": "WFM-AO-N", **more}
    return RawFile(
        Path(f"/raw/{name}.fits"), tag, name=name, ra=ra, dec=dec, exptime=exptime, posang=posang, ob_name=ob,
        ob_id=ob_id, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ra", "dec", "text"),
    [
        (271.1288, -24.38774, "180431-242316"),
        (0.0, 0.0, "000000+000000"),
        # 59.6 s of time and of arc are a minute
        (14.9984, 59.99989, "010000+600000"),
        (359.9990, -0.00001, "000000+000000"),
        (359.9970, -0.00020, "235959-000001"),
        (10.0, -89.99999, "004000-900000"),
        (-1.0, 5.5, "235600+053000"),
        (None, None, "000000+000000"),
    ],
)
def test_positions(ra, dec, text):
    assert radec(ra, dec) == text


def test_times_and_angles():
    assert [exptime_text(t) for t in (5.0, 860.99, 12345.0)] == ["0005", "0860", "12345"]
    assert [angle_text(a) for a in (0, 89.6, -90, 359.7, 180.00001, 179.9999, -0.2, 720)] == [
        "000", "090", "270", "000", "180", "180", "000", "000",
    ]  # fmt: skip


def test_identifiers_count_in_the_order_of_time():
    files = [
        exposure(3), exposure(1), exposure(2, tag="SKY"), exposure(4, posang=90.0), exposure(5, posang=90.0000001),
        exposure(6, ob="other", ob_id=8), exposure(7, exptime=861.0), exposure(8, posang=-270.0),
    ]  # fmt: skip
    ids = exposure_ids(files)
    assert {f.name[-1]: name for f, name in ids.items()} == {
        # the exposure of the sky shares the numbers
        "1": "180431-242316_0860_000_00", "2": "180431-242316_0860_000_01", "3": "180431-242316_0860_000_02",
        "4": "180431-242316_0860_090_00", "5": "180431-242316_0860_090_01", "8": "180431-242316_0860_090_02",
        # another block counts anew
        "6": "180431-242316_0860_000_00", "7": "180431-242316_0861_000_00",
    }  # fmt: skip
    assert exposure_ids(files[::-1]) == ids
    assert all(len(name) == 25 for name in ids.values())
    assert pointing_name(files[0]) == "180431-242316_0860"


def test_folders_of_blocks():
    assert safe_name(" NGC 6530/tile: 1 ") == "NGC_6530_tile__1"
    assert safe_name("../-x") == "__-x"
    folders = block_folders([("WFM-AO-NGC6530---tile-1", 1), ("a b", 2), ("a/b", 3), ("", 4), ("A", None), ("a", 5)])
    assert folders == {
        ("WFM-AO-NGC6530---tile-1", 1): "WFM-AO-NGC6530---tile-1",
        ("a b", 2): "a_b_2", ("a/b", 3): "a_b_3", ("", 4): "OB_4", ("A", None): "A", ("a", 5): "a_5",
    }  # fmt: skip
    # the same block on two nights is one
    assert block_folders([("x", 1), ("x", 1)]) == {("x", 1): "x"}
    assert block_folders([("x", None), ("X", None)]) == {("x", None): "x", ("X", None): "X_2"}
    assert block_folders([("report", 9)]) == {("report", 9): "report_9"}
    names = block_folders([("report", None), ("x_1", 4), ("x", 1), ("x", 2)])
    assert len({name.lower() for name in names.values()}) == 4 and "report" not in names.values()


def test_selected_blocks():
    blocks = [("tile 1", 11), ("tile 2", 12), ("blank", 13)]
    assert select_blocks(blocks, []) == blocks
    assert select_blocks(blocks, ["tile*"]) == blocks[:2]
    assert select_blocks(blocks, ["tile_2", "13"]) == blocks[1:]
    assert matches_block(("a", 3), ["3"]) and not matches_block(("a", 3), ["b", "4"])
    with pytest.raises(InputError, match=r"'tile 3' found in the list, but no exposure is of it; perhaps tile"):
        select_blocks(blocks, ["tile 3"])


def test_targets():
    blocks = [("tile 1", 11), ("tile 2", 12), ("blank", 13)]
    assert assign_targets(blocks, {"NGC 6530": ["tile*"]}) == {blocks[0]: "NGC_6530", blocks[1]: "NGC_6530"}
    assert assign_targets(blocks, {"a": ["13"]}, all_in="all") == {
        blocks[2]: "a", blocks[0]: "all", blocks[1]: "all",
    }  # fmt: skip
    with pytest.raises(InputError, match="tile 1: belongs to the targets a and b"):
        assign_targets(blocks, {"a": ["tile*"], "b": ["tile 1"]})
    with pytest.raises(InputError, match="observing block 'x' found in the list"):
        assign_targets(blocks, {"a": ["x"]})
    with pytest.raises(InputError, match="target a: no observing blocks found"):
        assign_targets(blocks, {"a": []})


# ----------------------------------------------------------------------------------------- pointings


def test_separation():
    assert separation(exposure(0, 10.0, 0.0), exposure(1, 10.0, 1.0)) == pytest.approx(3600)
    assert separation(exposure(0, 10.0, 60.0), exposure(1, 10.01, 60.0)) == pytest.approx(18.0, rel=1e-6)
    # across 0 h, and at the pole
    assert separation(exposure(0, 359.999, 0.0), exposure(1, 0.001, 0.0)) == pytest.approx(7.2)
    assert separation(exposure(0, 0.0, 89.999), exposure(1, 180.0, 89.999)) == pytest.approx(7.2)
    assert separation(exposure(0, None, None), exposure(1)) == math.inf


def test_dithers_that_rounding_would_split_are_one_pointing():
    """Half an arcsecond apart, on both sides of where the text changes: MUSEreduce makes two pointings of them."""
    dec = -24.38764
    files = [exposure(k, dec=dec + 0.3 * (-1) ** k / 3600, posang=90.0 * k) for k in range(4)]
    assert len({pointing_name(f) for f in files}) == 2
    (found,) = pointings(files, {("tile", 7): "tile"})
    assert found.files == tuple(files)
    # the name is that of the first one
    assert found.name == pointing_name(files[0])
    assert found.parent == "tile"
    assert found.collected == tuple(f"tile_0860_{90 * k:03d}_00" for k in range(4))


def test_tiles_are_pointings_of_their_own():
    """Steps of most of a field make a new pointing; the tolerance says which are near."""
    files = [exposure(k, dec=-20 + 50 * (k // 2) / 3600) for k in range(6)]
    folders = {("tile", 7): "tile"}
    assert [len(p.files) for p in pointings(files, folders)] == [2, 2, 2]
    assert [len(p.files) for p in pointings(files, folders, tolerance=60)] == [6]
    assert [len(p.files) for p in pointings(files, folders, tolerance=0.1)] == [2, 2, 2]


def test_clusters_do_not_depend_on_the_order():
    random_ = random.Random(4)
    files = [
        exposure(k, ra=100 + 30 * (k % 3) / 3600 * 5 + random_.uniform(-5, 5) / 3600, dec=random_.uniform(-5, 5) / 3600)
        for k in range(30)
    ]
    expected = cluster(files, 30.0)
    assert [len(c) for c in expected] == [10, 10, 10]
    for _ in range(5):
        random_.shuffle(files)
        assert cluster(files, 30.0) == expected
    # a chain: each is near the next, and all are one, whichever comes first
    chain = [exposure(k, ra=0.0, dec=25.0 * (k * 3 % 7) / 3600) for k in range(7)]
    assert [len(c) for c in cluster(chain, 26.0)] == [7]
    assert [len(c) for c in cluster(chain, 24.0)] == [1] * 7


def test_other_times_modes_and_blocks_are_other_pointings():
    files = [
        exposure(0), exposure(1, exptime=860.4), exposure(2, exptime=60.0), exposure(3, mode="NFM-AO-N"),
        exposure(4, ob="other", ob_id=8), exposure(5),
    ]  # fmt: skip
    folders = block_folders(block_of(f) for f in files)
    found = pointings(files, folders)
    assert [(p.parent, p.name, [f.name[-1] for f in p.files]) for p in found] == [
        ("tile", "180431-242316_0860", ["0", "1", "5"]),
        ("tile", "180431-242316_0060", ["2"]),
        # of the same name otherwise
        ("tile", "180431-242316_0860_NFM-AO-N", ["3"]),
        ("other", "180431-242316_0860", ["4"]),
    ]
    # blocks of one target are combined
    both = pointings(files, folders, targets=assign_targets(map(block_of, files), {"NGC 6530": ["tile", "other"]}))
    assert [(p.parent, [f.name[-1] for f in p.files]) for p in both] == [
        ("NGC_6530", ["0", "1", "4", "5"]), ("NGC_6530", ["2"]), ("NGC_6530", ["3"]),
    ]  # fmt: skip
    assert both[0].collected == (
        "tile_0860_000_00", "tile_0860_000_01", "other_0860_000_02", "tile_0860_000_03",
    )  # fmt: skip


def test_listed_exposures():
    files = [exposure(k, dec=-20 + 100 * k / 3600) for k in range(3)] + [exposure(4, ob="other", ob_id=8)]
    folders, ids = block_folders(block_of(f) for f in files), exposure_ids(files)
    found = pointings(files, folders, exp_list=[ids[files[2]], ids[files[0]]])
    # far from each other, but wanted; named after the first of the list
    assert [(p.name, p.files) for p in found] == [(pointing_name(files[2]), (files[2], files[0]))]
    found = pointings(files, folders, exp_list=[f"other/{ids[files[3]]}", ids[files[1]]])
    assert [(p.parent, p.files) for p in found] == [("other", (files[3],)), ("tile", (files[1],))]
    with pytest.raises(InputError, match=r"exp_list: '180431-200000_0860_000_09' found, .*, perhaps 180431-200000"):
        pointings(files, folders, exp_list=["180431-200000_0860_000_09"])
    with pytest.raises(InputError, match="there is no such exposure"):
        pointings(files, folders, exp_list=[f"other/{ids[files[0]]}"])
