"""`stepcache bench`: eager, torch.compile, DeepCache and stepcache side by side, as a CSV and a table.

stepcache.bench does the measuring.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..images.schedulers import SCHEDULERS
from .arguments import add_predict, check_guidance, check_seed, integers, sizes
from .quiet import quiet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `stepcache bench`."""
    from stepcache.bench.grid import DTYPES, GridSpec
    from stepcache.bench.variants import LADDER, MODES

    default = GridSpec()
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="demo (the small trained pipeline that comes with the package), a local pipeline's directory, or sd15, "
        "sd21, sdxl: the real architectures with random weights. Nothing is downloaded",
    )
    parser.add_argument(
        "--size",
        metavar="PIXELS",
        type=sizes,
        default=default.sizes,
        help="image sizes, each one number or HEIGHTxWIDTH, several with commas (default: the model's own)",
    )
    parser.add_argument(
        "--batch", metavar="N,N", type=integers, default=default.batches, help="images in one call (default 1)"
    )
    parser.add_argument(
        "--reuse",
        metavar="I:B,I:B",
        type=_pairs,
        default=default.reuse,
        help="interval:branch of variants that reuse features (default 3:0,5:0,5:1)",
    )
    parser.add_argument(
        "--variants",
        metavar="NAME,NAME",
        type=_names,
        default=default.variants,
        help=f"the most important first, from {', '.join(LADDER)} (default all)",
    )
    parser.add_argument(
        "--modes",
        metavar="MODE,MODE",
        type=_names,
        default=default.modes,
        help=f"modes of torch.compile for compile and stepcache-compiled; compile+deepcache takes the first (default "
        f"{','.join(MODES)})",
    )
    parser.add_argument("--steps", type=int, default=default.steps, help="denoising steps (default %(default)s)")
    parser.add_argument(
        "--guidance", type=float, default=default.guidance, help="guidance scale, 1 for none (default %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=default.repeats, help="timed calls of each variant (default %(default)s)"
    )
    parser.add_argument(
        "--scheduler", choices=SCHEDULERS, default=default.scheduler, help="sampler (default %(default)s)"
    )
    add_predict(parser)
    parser.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help="auto: float16 on CUDA, float32 on a CPU"
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: CUDA if there is one")
    parser.add_argument("--seed", type=int, default=default.seed, help="of a call's first image (default %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("stepcache-bench.csv"),
        help="CSV to which each cell adds its rows (default %(default)s)",
    )
    parser.epilog = (
        "Compile times depend on what is in torch's caches; with TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 all are those of "
        "a cold start. Ctrl-C keeps the rows done."
    )


def run(args: argparse.Namespace) -> int:
    """Measure, write, print. StepCacheError or OSError, before that, for invalid arguments.

    A KeyboardInterrupt is passed on once the rows done are in the file, with a text that says so.
    """
    check_guidance(args.guidance)
    check_seed(args.seed)
    with quiet("diffusers", "transformers"):
        from stepcache.bench.grid import GridSpec, run_grid
        from stepcache.bench.table import table

        spec = GridSpec(
            model=args.model,
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
            device=args.device,
            seed=args.seed,
        )
        before = _length(args.out)
        try:
            rows = run_grid(spec, args.out)
        except KeyboardInterrupt:
            kept = f"the rows done are in {args.out}" if _length(args.out) > before else "no row was done"
            raise KeyboardInterrupt(kept) from None
    print(table(rows))
    print(f"\nRows: {args.out}")
    return 0


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _pairs(text: str) -> list[tuple[int, int]]:
    """ "3:0,5:1" as (interval, branch) pairs."""
    pairs = []
    for part in text.split(","):
        interval, colon, branch = part.partition(":")
        if not (colon and interval.isdecimal() and branch.isdecimal()):
            raise argparse.ArgumentTypeError(f"must be interval:branch such as 3:0; got {part!r}")
        pairs.append((int(interval), int(branch)))
    return pairs
