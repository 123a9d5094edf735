"""AnimateDiff: text to a short animation, with the whole U-Net in one step of three.

    python animatediff.py path/to/sd15 path/to/motion-adapter "a rocket launch" rocket.gif

In partial steps, branch 0 runs the last ResNet of the up path and the attention and motion module behind it, on all
frames. A higher branch runs more layers, motion modules among them; `stepcache inspect` prints what each costs.
"""

import argparse

import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter
from diffusers.utils import export_to_gif

from stepcache import accelerate, last_run


def main() -> None:
    """One animation of one prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "adapter", "prompt", "out"):
        parser.add_argument(name)
    for name, default in {"interval": 3, "branch": 0, "frames": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    args = parser.parse_args()

    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    adapter = MotionAdapter.from_pretrained(args.adapter, torch_dtype=dtype)
    pipe = AnimateDiffPipeline.from_pretrained(args.model, motion_adapter=adapter, torch_dtype=dtype).to(device)
    trained = {"beta_schedule": "linear", "timestep_spacing": "linspace", "clip_sample": False}  # adapters of SD 1.5
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **trained)
    accelerate(pipe, args.interval, args.branch)
    call = {"num_frames": args.frames, "generator": torch.Generator().manual_seed(0)}
    export_to_gif(pipe(args.prompt, **call).frames[0], args.out)
    print(last_run(pipe))


if __name__ == "__main__":
    main()
