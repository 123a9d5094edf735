"""Stable Video Diffusion: an image to a short video, with the whole U-Net in every second step.

    python svd.py path/to/svd photo.jpg video.gif

The pipeline takes 25 steps by default. At so few, start with interval 2. In partial steps, branch 0 runs the last
spatio-temporal ResNet of the up path and the attention behind it, on all frames. guidance="reuse", and with it
preset="fast", is refused: whether a call of this pipeline has guidance is known on the device only.
"""

import argparse

import torch
from diffusers import StableVideoDiffusionPipeline
from diffusers.utils import export_to_gif, load_image

from stepcache import accelerate, last_run


def main() -> None:
    """One video of one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "image", "out"):
        parser.add_argument(name)
    for name, default in {"interval": 2, "branch": 0, "height": 576, "width": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    args = parser.parse_args()

    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = StableVideoDiffusionPipeline.from_pretrained(args.model, torch_dtype=dtype).to(device)
    accelerate(pipe, args.interval, args.branch)
    image = load_image(args.image).resize((args.width, args.height))
    size = {"height": args.height, "width": args.width, "decode_chunk_size": 4}  # frames to decode at a time
    export_to_gif(pipe(image, **size, generator=torch.Generator().manual_seed(0)).frames[0], args.out)
    print(last_run(pipe))


if __name__ == "__main__":
    main()
