"""`stepcache tune`: measure on this GPU which joins are faster with the Triton kernels, and keep the verdicts."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import InvalidSetting
from ..images.pipelines import dtype_named
from .loading import usable_device
from .quiet import quiet
from .shapes import check_shapes, shapes_of, warm_up

if TYPE_CHECKING:
    from ..forwards.join_shape import JoinShape
    from ..graphs.tuning import Judge
    from ..graphs.verdicts import Verdicts


def run(args: argparse.Namespace) -> int:
    """Measure, write, print. InvalidSetting without a GPU, and for sizes that the pipeline cannot make."""
    check_shapes(args)
    device = usable_device(args.device or "cuda")
    if not device.startswith("cuda"):
        raise InvalidSetting(f"--device {device}: the Triton kernels run on GPUs only, so there is nothing to measure.")
    with quiet("diffusers", "transformers"):
        import torch

        from ..graphs.tuning import judge_of

        judge = judge_of(torch.device(device))
        measure(args, device, judge)
    print(table(judge.seen, judge.verdicts))
    print(f"\nVerdicts: {judge.verdicts.path}")
    return 0


def measure(args: argparse.Namespace, device: str, judge: Judge) -> None:
    """Run warm-ups at all sizes and batches asked for, in which `judge` measures the joins."""
    from ..images.models import load
    from ..run.attach import attach
    from ..settings import Settings

    model = load(args.pipeline, device, dtype_named(args.dtype), args.variant)
    # Eager: only joins are compiled here, each by itself.
    eager = {"compile": False, "cuda_graphs": False, "kernels": judge}
    guidance = args.guidance or "both"
    attach(model.pipe, Settings.check(2, args.branch, predict=args.predict, guidance=guidance, **eager))
    warm_up(model, shapes_of(args, model), guidance=not args.no_guidance)


def table(shapes: Iterable[JoinShape], verdicts: Verdicts) -> str:
    """A line for each join: microseconds both ways, and which is faster."""
    lines = [f"{'join':58}{'Triton us':>10}{'Inductor us':>12}  runs on"]
    for shape in shapes:
        verdict = verdicts.get(shape)
        name = f"{shape} {shape.dtype} {shape.layout}"
        if verdict is None:
            lines.append(f"{name:58}{'-':>10}{'-':>12}  Inductor (could not be measured)")
        elif verdict.triton_us is None or verdict.inductor_us is None:
            lines.append(f"{name:58}{'-':>10}{'-':>12}  Inductor ({verdict.status})")
        else:
            winner = "Triton" if verdict.for_triton else "Inductor"
            lines.append(f"{name:58}{verdict.triton_us:10.1f}{verdict.inductor_us:12.1f}  {winner}")
    return "\n".join(lines)
