"""Text to image, with the whole U-Net in one step of three.

    python text_to_image.py path/to/model "a photo of an astronaut riding a horse" astronaut.png

The model is a directory of any text-to-image pipeline with a U-Net: Stable Diffusion 1.x and 2.x, SDXL, ...
"""

import argparse

import torch
from diffusers import DiffusionPipeline

from stepcache import accelerate, last_run


def main() -> None:
    """One image of one prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of a diffusers pipeline")
    parser.add_argument("prompt")
    parser.add_argument("out", help="the image to write")
    parser.add_argument("--preset", choices=("faithful", "balanced", "fast"), default="balanced")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = DiffusionPipeline.from_pretrained(args.model, torch_dtype=dtype).to(device)
    # In place. On a GPU the first call of each size compiles, and takes longer.
    accelerate(pipe, preset=args.preset)
    generator = torch.Generator().manual_seed(args.seed)
    pipe(args.prompt, num_inference_steps=args.steps, generator=generator).images[0].save(args.out)
    print(last_run(pipe))  # a letter for each U-Net call: F for the whole U-Net, P for its shallow part


if __name__ == "__main__":
    main()
