"""An image for each line of a file of prompts, on one GPU. batch/ has recipes for many.

    python batch_job.py path/to/model prompts.txt out

Line 42 becomes out/00041.png, with 41 as its seed. Start it again after an interruption: it makes what is missing. It
does not see that a line has changed; batch/ does.
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from stepcache import accelerate


def main() -> None:
    """Make all images that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of a diffusers pipeline")
    for name in ("prompts", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()

    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    # Once for all prompts: the first call compiles and captures, all others replay.
    pipe = accelerate(DiffusionPipeline.from_pretrained(args.model, torch_dtype=dtype).to(device), preset="balanced")
    args.out.mkdir(parents=True, exist_ok=True)
    for seed, prompt in enumerate(args.prompts.read_text("utf-8").split("\n")):
        path = args.out / f"{seed:05d}.png"
        if prompt.strip() and not path.exists():
            part = path.with_suffix(".part")  # a kill leaves no half image under the final name
            pipe(prompt, generator=torch.Generator().manual_seed(seed)).images[0].save(part, "PNG")
            part.rename(path)


if __name__ == "__main__":
    main()
