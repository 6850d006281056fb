"""The cube of all exposures of a pointing, by `musedask.combine`: in the memory that is allowed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calib.provenance import CallRecord, FileRecord, package_versions, write_record
from ..cube.mosaic import combine
from ..errors import MusedaskError
from ..io.sof import Frame
from .operations import Operation
from .run import BASE_MEMORY, Done, Job, Settings
from .state import is_current, now, record_at, remember_files
from .steps import Step

if TYPE_CHECKING:
    from distributed import Client


def do_mosaic(job: Job, step: Step, client: Client | None, settings: Settings) -> Done:
    """Combine the exposures of a pointing, unless that has been done.

    Parameters
    ----------
    job : Job
        Its frames: PIXTABLE_REDUCED, and OFFSET_LIST, FILTER_LIST, OUTPUT_WCS as far as there are.
    step : Step
    client : distributed.Client, optional
    settings : Settings

    Returns
    -------
    Done
    """
    assert isinstance(job.call, Operation)
    call = job.call
    remember_files(job.known, None)
    record = CallRecord("muse_exp_combine", None, "native", _parameters(step), started=now())
    before, reason = record_at(job.record), "never done before"
    try:
        record.inputs = [FileRecord.of(frame) for frame in call.frames]
        record.versions = package_versions()
        if before is not None:
            remember_files(before.inputs, None)
            reason = "it is to be repeated" if job.forced else is_current(before, record)
            if not reason:
                return Done(job.node, before, reused=True)
        started = time.monotonic()
        record.products = _combine(call, step, record, client, settings)
        record.wall_time = round(time.monotonic() - started, 3)
        record.status = "done"
    except MusedaskError as error:
        record.status = "failed"
        record.errors.append(str(error))
    except OSError as error:
        record.status = "failed"
        record.errors.append(f"{error.filename or step.folder}: {error.strerror or error}")
    record.ended = now()
    try:
        write_record(job.record, record)
    except (MusedaskError, OSError) as error:
        record.status = "failed"
        record.errors.append(f"its record could not be written: {error}")
    return Done(job.node, record, reason=reason)


def _parameters(step: Step) -> dict[str, Any]:
    return {k: v for k, v in step.values.items() if k != "products"}


def _combine(
    call: Operation, step: Step, record: CallRecord, client: Client | None, settings: Settings
) -> list[FileRecord]:
    def one(tag: str) -> Path | None:
        return next((f.path for f in call.frames if f.tag == tag), None)

    values = _parameters(step)
    form = str(values.pop("output", "fits"))
    fits, zarr = step.folder / "DATACUBE_FINAL.fits", step.folder / "DATACUBE_FINAL.zarr"
    begun = time.time_ns()
    combine(
        [f.path for f in call.frames if f.tag == "PIXTABLE_REDUCED"],
        fits if form == "fits" else zarr,
        fits_output=fits if form == "both" else None,
        offset_list=one("OFFSET_LIST"),
        output_wcs=one("OUTPUT_WCS"),
        filter_list=one("FILTER_LIST"),
        memory_limit=max(100_000_000, settings.memory_limit - BASE_MEMORY),
        client=client,
        n_workers=settings.n_workers,
        overwrite=True,
        open_result=False,
        **values,
    )
    made = [
        Frame(path, tag) for path, tag in _expected(step.folder, form) if path.exists() and _changed(path) >= begun
    ]
    return [FileRecord.of(frame) for frame in made if not frame.path.is_dir()] + [
        FileRecord(str(f.path), f.tag, checksum="folder") for f in made if f.path.is_dir()
    ]


def _expected(folder: Path, form: str) -> list[tuple[Path, str]]:
    found = []
    if form != "zarr":
        found.append((folder / "DATACUBE_FINAL.fits", "DATACUBE_FINAL"))
    if form != "fits":
        found.append((folder / "DATACUBE_FINAL.zarr", "DATACUBE_FINAL"))
    tables = ("PIXTABLE_COMBINED.fits", "PIXTABLE_POSITIONED_*.fits")
    for pattern in ("IMAGE_FOV_[0-9][0-9][0-9][0-9].fits", *tables):
        found += [(path, pattern.split("_[")[0].split("_*")[0].removesuffix(".fits")) for path in folder.glob(pattern)]
    return found


def _changed(path: Path) -> int:
    # clocks of file systems are a little coarse
    return path.stat().st_mtime_ns + 2_000_000_000
