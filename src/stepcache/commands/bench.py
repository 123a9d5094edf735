"""`stepcache bench`: eager, torch.compile, DeepCache and stepcache side by side, as a CSV and a table.

stepcache.bench does the measuring.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StepCacheError
from .arguments import check_guidance, check_seed
from .document import decibels, print_document
from .quiet import quiet

if TYPE_CHECKING:
    from ..bench.schema import BenchRow


def run(args: argparse.Namespace) -> int:
    """Measure, write, print. StepCacheError or OSError, before that, for invalid arguments.

    StepCacheError too, after all is written and printed, if no variant was measured: a job that runs this fails then.

    A KeyboardInterrupt is passed on once the rows done are written and printed, with a text that says where they are.
    """
    check_guidance(args.guidance)
    check_seed(args.seed)
    with quiet("diffusers", "transformers"):
        from ..bench.grid import run_grid
        from ..bench.spec import GridSpec
        from ..bench.table import table
        from .loading import usable_device

        spec = GridSpec(
            model=args.pipeline,
            sizes=args.size,
            batches=args.batch,
            reuse=args.reuse,
            variants=args.variants,
            modes=args.modes,
            steps=args.steps,
            guidance=args.guidance,
            repeats=args.repeats,
            scheduler=args.scheduler,
            predict=args.predict,
            dtype=args.dtype,
            device=usable_device(args.device),
            seed=args.seed,
            variant=args.variant,
        )
        rows: list[BenchRow] = []
        kept = None
        try:
            run_grid(spec, args.out, rows=rows)
        except KeyboardInterrupt:
            kept = f"the rows done are in {args.out}" if rows else "no row was done"
    if args.json:
        print_document(document(rows, args.out))
    elif rows:
        print(f"{table(rows)}\n\nRows: {args.out}")
    if kept is not None:
        raise KeyboardInterrupt(kept)
    if all(row.pipeline_s is None for row in rows):
        raise StepCacheError("No variant was measured. The status of each says why.")
    return 0


def document(rows: Sequence[BenchRow], out: Path) -> dict[str, Any]:
    """The rows under the names of the CSV's columns, and the rig that they share.

    Names that lack their unit get it: psnr_db, height_px, width_px. `identical` stands for an infinite PSNR.
    """
    from ..bench.rows import Rig

    units = {"height": "height_px", "width": "width_px"}
    return {
        "rows": [
            {units.get(name, name): value for name, value in asdict(row).items() if name != "psnr"} | decibels(row.psnr)
            for row in rows
        ],
        "csv": str(out),
        "rig": asdict(Rig.now()),
    }
