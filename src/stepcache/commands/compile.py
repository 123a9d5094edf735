"""`stepcache compile`: compile a pipeline's graphs ahead of time into a folder of packages."""

from __future__ import annotations

import argparse
from typing import Any

from .listing import described
from .loading import device_and_dtype
from .quiet import quiet
from .shapes import check_shapes, shapes_of, warm_up


def run(args: argparse.Namespace) -> int:
    """Run the pipeline eager for two steps at each size, compile what ran, print what is in the folder."""
    check_shapes(args)
    settings = _settings(args)
    device, dtype = device_and_dtype(args)
    with quiet("diffusers", "transformers"):
        from ..api import save_compiled
        from ..images.models import load
        from ..run.attach import attach
        from ..settings import Settings

        model = load(args.pipeline, device, dtype, args.variant)
        shapes = shapes_of(args, model)
        eager = {"compile": False, "cuda_graphs": False, "kernels": _kernels(device)}
        checked = Settings.check(max_buckets=len(shapes), vae=args.vae, **settings, **eager)
        attach(model.pipe, checked)
        warm_up(model, shapes, guidance=not args.no_guidance)
        save_compiled(model.pipe, args.out)
    print(described(args.out))
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `accelerate` that graphs depend on."""
    given = {name: getattr(args, name) for name in ("branch", "guidance", "predict", "preset", "plan")}
    return {name: value for name, value in given.items() if value is not None}


def _kernels(device: str) -> Any:
    """How joins are chosen: measured here as they will run, although this pipe runs eager."""
    import torch

    from ..graphs.settings import HAS_TRITON
    from ..graphs.tuning import judge_of

    return judge_of(torch.device(device)) if device.startswith("cuda") and HAS_TRITON else "auto"
