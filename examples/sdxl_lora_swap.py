"""SDXL: the same prompt with one LoRA after another, on one accelerated pipe.

    python sdxl_lora_swap.py path/to/sdxl "a lighthouse" lighthouse pixel_art.safetensors paper_cut.safetensors

A LoRA changes the U-Net's layers: stepcache notices, and makes its graphs again. With --hotswap diffusers writes each
LoRA over the last one, and the graphs stay; all must have the same layers and rank, and none for the text encoders.
"""

import argparse

import torch
from diffusers import DiffusionPipeline

from stepcache import accelerate, last_run


def main() -> None:
    """An image for each LoRA."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "prompt", "out"):
        parser.add_argument(name)
    parser.add_argument("loras", nargs="+")
    parser.add_argument("--hotswap", action="store_true")
    parser.add_argument("--interval", type=int, default=3, help="1 reuses nothing (default 3)")
    args = parser.parse_args()
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = DiffusionPipeline.from_pretrained(args.model, torch_dtype=dtype).to(device)
    accelerate(pipe, args.interval, predict="auto")
    for number, lora in enumerate(args.loras):
        pipe.load_lora_weights(lora, adapter_name="style", hotswap=args.hotswap and number > 0)
        image = pipe(args.prompt, generator=torch.Generator().manual_seed(0)).images[0]
        image.save(f"{args.out}-{number}.png")
        print(f"{lora}: {last_run(pipe).captures} graphs captured, {last_run(pipe)}")
        if not args.hotswap:
            pipe.unload_lora_weights()


if __name__ == "__main__":
    main()
