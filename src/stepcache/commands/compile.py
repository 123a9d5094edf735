"""`stepcache compile`: compile a pipeline's graphs ahead of time into a folder of packages."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..plans.presets import PRESETS
from ..values import positive_int
from .arguments import add_predict, add_shapes
from .listing import described
from .loading import add_loading, device_and_dtype
from .quiet import quiet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `stepcache compile`."""
    add_shapes(parser, "which packages do not hold")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the packages")
    parser.add_argument("--branch", type=int, help="how much of the U-Net a partial step runs (default 0)")
    parser.add_argument("--guidance", choices=("both", "reuse"), help="accelerate's guidance (default both)")
    add_predict(parser, default=None)
    parser.add_argument("--preset", choices=PRESETS, help="for accelerate(preset=...)")
    parser.add_argument("--plan", metavar="FILE", type=Path, help="for accelerate(plan=...)")
    parser.add_argument("--vae", action="store_true", help="the VAE's decoder too, for accelerate(vae=True)")
    add_loading(parser)
    parser.epilog = (
        "Use them with accelerate(pipe, compiled=DIR). A run that was stopped goes on where it was; other sizes and "
        "settings are added to the folder. Graphs do not depend on the interval, on the scheduler or on the weights. "
        "On a GPU, joins without a verdict are measured first, as by `stepcache tune`."
    )


def run(args: argparse.Namespace) -> int:
    """Run the pipeline eager for two steps at each size, compile what ran, print what is in the folder."""
    batches = [positive_int("--batch", batch) for batch in args.batch]
    settings = _settings(args)
    device, dtype = device_and_dtype(args)
    with quiet("diffusers", "transformers"):
        import torch

        from stepcache.bench.models import load

        from ..api import save_compiled, warmup
        from ..run.attach import attach
        from ..settings import Settings

        model = load(args.pipeline, device, dtype, args.variant)
        wanted = [(height, width, batch) for height, width in args.size or [model.size()] for batch in batches]
        eager = {"compile": False, "cuda_graphs": False, "kernels": _kernels(device)}
        checked = Settings.check(3, settings.pop("branch"), max_buckets=len(wanted), vae=args.vae, **settings, **eager)
        attach(model.pipe, checked)
        with torch.inference_mode():
            for height, width, batch in wanted:
                print(f"Running {height}x{width}, batch {batch}, for its shapes ...", flush=True)
                warmup(model.pipe, height, width, batch, guidance=not args.no_guidance, progress=False)
        save_compiled(model.pipe, args.out)
    print(described(args.out))
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `accelerate` that graphs depend on."""
    given = {name: getattr(args, name) for name in ("branch", "guidance", "predict", "preset", "plan")}
    settings = {name: value for name, value in given.items() if value is not None}
    return {"branch": 0, **settings}


def _kernels(device: str) -> Any:
    """How joins are chosen: measured here as they will run, although this pipe runs eager."""
    import torch

    from ..graphs.settings import HAS_TRITON
    from ..graphs.tuning import judge_of

    return judge_of(torch.device(device)) if device.startswith("cuda") and HAS_TRITON else "auto"
