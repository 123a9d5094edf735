"""Text to image with a ControlNet, for Stable Diffusion or SDXL.

    python controlnet.py path/to/model path/to/controlnet edges.png "a glass teapot" teapot.png

Nothing special is needed. Only the U-Net gets faster: the pipeline runs the ControlNet in every step, since a partial
step adds its residuals too. So the call gains less than one without a ControlNet.
"""

import argparse

import torch
from diffusers import AutoPipelineForText2Image, ControlNetModel
from diffusers.utils import load_image

from stepcache import accelerate, last_run


def main() -> None:
    """One image of one prompt, of the control image's size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "controlnet", "control", "prompt", "out"):
        parser.add_argument(name)
    args = parser.parse_args()

    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    controlnet = ControlNetModel.from_pretrained(args.controlnet, torch_dtype=dtype)
    pipe = AutoPipelineForText2Image.from_pretrained(args.model, controlnet=controlnet, torch_dtype=dtype).to(device)
    accelerate(pipe, preset="balanced")
    generator = torch.Generator().manual_seed(0)
    pipe(args.prompt, image=load_image(args.control), generator=generator).images[0].save(args.out)
    print(last_run(pipe))


if __name__ == "__main__":
    main()
