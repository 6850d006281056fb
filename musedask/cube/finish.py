"""What a finished cube becomes: headers, field-of-view images, FITS files, and its name."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astropy.io import fits

from ..errors import InputError
from ..io.files import publish
from ..io.headers import cards_to_json, read_datamd5
from ..recipe import Recipe
from .grid import Grid
from .plan import Plan
from .products import add_qc, fov_header, image_headers, product_headers, qc_fwhm, qc_prefix, stat_unit

if TYPE_CHECKING:
    from ..io.tables import Filter
    from .resample import Job
    from .store import DiskStore, MemoryStore, StoredExposure
    from .work import Settings

log = logging.getLogger("musedask")

#: what ``save`` may contain; the reference's muse_exp_combine knows the first two
SAVE = ("cube", "combined", "positioned")


@dataclass
class Products:
    """The products of one job, from the names that the user gave to the files.

    Attributes
    ----------
    recipe : Recipe
    values : mapping
        Resolved parameters.
    output : pathlib.Path
        Zarr cube, or a FITS cube alone if it ends in ``.fits``.
    fits_output, filter_list, offset_list, output_wcs : path-like or None
    exposures : sequence of StoredExposure
        Set once they are known.
    """

    recipe: Recipe
    values: Mapping[str, Any]
    output: Path
    fits_output: str | os.PathLike[str] | None
    filter_list: str | os.PathLike[str] | None
    offset_list: str | os.PathLike[str] | None
    output_wcs: str | os.PathLike[str] | None
    exposures: Sequence[StoredExposure] = field(default_factory=list)
    inputs: Sequence[str] = ()

    def __post_init__(self) -> None:
        saves = [part.strip() for part in str(self.values.get("save", "cube")).split(",")]
        for part in saves:
            if part not in SAVE:
                raise InputError(f"parameter save: {part!r} found, expected {', '.join(SAVE)}")
        self.saves = saves
        self.format: str = self.values["format"]
        self.zarr = None if self.output.suffix == ".fits" else self.output
        self.fits = Path(self.fits_output) if self.fits_output is not None else None
        if self.zarr is None:
            if self.fits is not None:
                raise InputError(f"{self.output} and {self.fits}: two FITS cubes; the first may be a Zarr cube")
            self.fits = self.output
        if self.format != "Cube" and self.fits is None:
            raise InputError(f"format {self.format} is one of FITS files: name one (--fits)")
        self.folder = (self.fits or self.output).absolute().parent
        self.filters = self._read_filters()

    def _read_filters(self) -> list[Filter]:
        from ..io.tables import list_filters, read_filter

        # a file that cannot be read is an error, a filter that it lacks is none
        list_filters(self.filter_list)
        filters = []
        for name in str(self.values["filter"]).split(","):
            try:
                found = read_filter(self.filter_list, name.strip())
            except InputError as error:
                # the reference goes on without the image
                log.error("%s; its image is omitted", error)
                continue
            if found is not None:
                filters.append(found)
        return filters

    @property
    def keep_cosmics(self) -> bool:
        """Whether the rows flagged as cosmic rays are needed after the cube is made."""
        return self.makes_cube and ("combined" in self.saves or bool(self.values.get("stacked")))

    @property
    def makes_cube(self) -> bool:
        """Whether there is a cube among the products; without one, nothing is resampled."""
        return "cube" in self.saves

    @property
    def saves_tables(self) -> bool:
        """Whether there are pixel tables among the products."""
        return "combined" in self.saves or "positioned" in self.saves

    @property
    def needs_rows(self) -> bool:
        """Whether anything but the cube is made of the rows."""
        return self.saves_tables or bool(self.values.get("stacked"))

    @property
    def separate_images(self) -> bool:
        """Whether field-of-view images are FITS files of their own."""
        return self.fits is not None and not self.format.startswith("x")

    def files(self) -> list[Path]:
        """All files that will be written."""
        files = [path for path in (self.zarr, self.fits) if path is not None and self.makes_cube]
        if self.separate_images and self.makes_cube:
            files += [self.folder / f"IMAGE_FOV_{k:04d}.fits" for k in range(1, len(self.filters) + 1)]
        if "combined" in self.saves:
            files.append(self.folder / "PIXTABLE_COMBINED.fits")
        if "positioned" in self.saves:
            files += [
                self.folder / f"PIXTABLE_POSITIONED_{k:04d}.fits" for k in range(1, len(self.exposures) + 1)
            ]
        if self.values.get("stacked"):
            files.append(self.folder / "OBJECT_RESAMPLED.fits")
        return files

    def check_sources(self) -> None:
        """Make sure that the files that a store was made of are there, if they are needed once more."""
        if self.needs_rows:
            from .rows import check_sources

            check_sources(self.exposures)

    def row_bytes(self, n_rows: int) -> int:
        """Disk space that the pixel tables will take."""
        # eight columns of four bytes, wherever they go
        return 32 * n_rows * (("combined" in self.saves) + ("positioned" in self.saves))

    def start(self, header: fits.Header, grid: Grid) -> None:
        """Make the headers, once the grid is known."""
        self.grid = grid
        self.table_header = header
        unit = self.exposures[0].units["data"]
        self.units = (unit, stat_unit(unit))
        names = self.inputs or [str(p) for e in self.exposures for p in e.sources]
        calibs: list[tuple[str, str, str | None]] = []
        used = (
            (self.offset_list, "OFFSET_LIST"),
            (self.filter_list, "FILTER_LIST"),
            (self.output_wcs, "OUTPUT_WCS"),
        )
        for path, tag in used:
            # the reference names a FILTER_LIST only if it took a filter from it
            if path is not None and (tag != "FILTER_LIST" or any(f.name != "white" for f in self.filters)):
                calibs.append((Path(path).name, tag, read_datamd5(path)))
        self.calibs = calibs
        self.headers = product_headers(
            header,
            grid,
            recipe=self.recipe,
            values=self.values,
            raws=[(Path(name).name, self.recipe.raw_tag) for name in names],
            calibs=calibs,
            units=self.units,
            raw_header=fits.getheader(names[0]) if os.path.exists(names[0]) else None,
        )

    def create_cube(self, path: Path, plan: Plan, *, maps: bool) -> None:
        """Create the Zarr group that the tasks fill."""
        from ..io.cube import create_cube_store

        primary, data, stat = self.headers
        create_cube_store(
            path,
            self.grid.shape,
            chunks=plan.inner_chunk(),
            shards=plan.shard(),
            wavelength=self.grid.wavelengths(),
            ctype=self.grid.ctype3,
            primary=primary,
            data=data,
            stat=stat,
            units=self.units,
            extra={"weight": "f4", "n_pixels": "i4"} if maps else None,
            # noise hardly compresses: a cube that is only passed on to FITS is not worth the time
            codec="lz4" if self.zarr is not None else "none",
        )

    def finish_cube(self, cube: Path, settings: Settings) -> None:
        """Add what needs the whole cube: quality control, images, header of the science data product."""
        import zarr

        from ..io.cube import finish_cube_store, open_source, write_image
        from .images import filter_info, fov_images

        source = open_source(cube)
        primary, data, stat = (h.copy() for h in self.headers)
        prefix = qc_prefix(self.recipe)
        if prefix is not None and not self.format.endswith("Euro3D"):
            middle = self.grid.nz // 2
            plane = source.read("flux", (slice(middle, middle + 1), slice(None), slice(None)))[0]
            add_qc(primary, qc_fwhm(plane, self.grid, prefix))
        images = fov_images(
            source, self.filters, memory_limit=settings.memory_limit // 4, threads=settings.local_threads
        )
        cards = [filter_info(source, f).cards() for f in self.filters]
        files = [image_headers(primary, data, of_filter, k) for k, of_filter in enumerate(cards, 1)]
        if self.format == "sdpCube":
            from .products import sdp_headers, sdp_image_headers

            files = [sdp_image_headers(pair) for pair in files]
            primary, data, stat = sdp_headers(
                (primary, data, stat),
                self.grid,
                [e.header for e in self.exposures],
                source=source,
                images=dict(zip([f.name for f in self.filters], images, strict=True)),
            )
        group = zarr.open_group(str(cube), mode="r+", use_consolidated=False)
        group.attrs.update(
            {
                "primary_header": cards_to_json(primary),
                "data_header": cards_to_json(data),
                "stat_header": cards_to_json(stat),
            }
        )
        for f, image, of_filter in zip(self.filters, images, cards, strict=True):
            write_image(group, f.name, image, fov_header(primary, data, of_filter))
        self.image_files = list(zip(files, images, strict=True))
        finish_cube_store(cube)

    def write(self, cube: Path, job: Job, store: MemoryStore | DiskStore, settings: Settings) -> None:
        """Write the FITS files."""
        from ..compute import Progress
        from ..io.cube import cube_to_fits, image_to_fits

        overwrite = settings.overwrite
        limit = settings.memory_limit // 4
        if self.fits is not None and self.format.endswith("Euro3D"):
            from ..io.euro3d import write_euro3d

            write_euro3d(
                cube, self.fits, images=self.format.startswith("x"), overwrite=overwrite, memory_limit=limit
            )
        elif self.fits is not None:
            with Progress("writing FITS", 100) as bar:

                def advance(done: int, total: int) -> None:
                    bar.advance(100 * done // total - bar.done)

                cube_to_fits(
                    cube,
                    self.fits,
                    format="xCube" if self.format == "xCube" else "Cube",
                    overwrite=overwrite,
                    memory_limit=limit,
                    threads=settings.local_threads,
                    progress=advance,
                )
        if self.separate_images:
            for number, ((primary, data), image) in enumerate(self.image_files, 1):
                path = self.folder / f"IMAGE_FOV_{number:04d}.fits"
                image_to_fits(path, primary, data, image, overwrite=overwrite)
        self.write_rows(job, store, settings)

    def write_rows(self, job: Job, store: MemoryStore | DiskStore, settings: Settings) -> None:
        """Write what is made of rows: pixel tables, and the stacked image."""
        if self.needs_rows:
            from .rows import write_tables

            write_tables(self, job, store, settings)

    def publish(self, cube: Path) -> Path | None:
        """Give the Zarr cube its name; returns the cube that can be opened, if there is one."""
        if self.zarr is None:
            # Euro3D is a table of spectra, not a cube
            return None if self.format.endswith("Euro3D") else self.output
        publish(cube, self.zarr)
        return self.zarr


def describe_outputs(products: Products) -> str:
    """What was written, for the user."""
    return ", ".join(str(path) for path in products.files())

