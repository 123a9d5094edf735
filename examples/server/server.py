"""An image server that answers its first request without compiling.

    stepcache compile path/to/model --size 512,768x512 --out graphs
    python server.py path/to/model --size 512,768x512 --compiled graphs

POST /images takes a request as JSON and answers with a PNG, GET /health says what is served, GET /docs describes both.
"""

# Without `from __future__ import annotations`: FastAPI and pydantic read annotations, and some of these are local.
import argparse
import copy
import io
import queue
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import torch
import uvicorn
from diffusers import DiffusionPipeline
from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel, ConfigDict, Field

from stepcache import accelerate, warmup
from stepcache.errors import StepCacheError

Size = tuple[int, int]  # height and width, in pixels


def get_ready(pipe: Any, sizes: Sequence[Size], compiled: Path | None = None, **settings: Any) -> None:
    """Accelerate the pipe and run two steps of each size: what the first requests would wait for.

    compiled: the folder of packages; NotCompiled if one is lacking. None: a GPU's graphs are compiled now. settings:
    other arguments of `accelerate`.
    """
    accelerate(pipe, compiled=compiled, compiled_only=compiled is not None, max_buckets=len(sizes), **settings)
    pipe.set_progress_bar_config(disable=True)
    for height, width in sizes:
        warmup(pipe, height, width, progress=False)


def own_copy(pipe: Any) -> Any:
    """A pipe for one thread: it shares models, graphs and buffers, but not what a call changes.

    Those are the scheduler, which counts steps, and the tokenizers, which set padding and truncation before each use.
    """
    own = copy.copy(pipe)
    own.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    for name, part in pipe.components.items():
        if name.startswith("tokenizer"):
            setattr(own, name, copy.deepcopy(part))
    return own


def app_of(pipe: Any, sizes: Sequence[Size], *, compiled: bool, workers: int = 1, waiting: int = 16) -> FastAPI:
    """The server of a pipe that is ready.

    compiled: whether its graphs are from packages. workers: images made at a time. waiting: requests that may wait for
    a worker; further ones are turned away.
    """
    app, threads, pipes = FastAPI(title="stepcache"), anyio.CapacityLimiter(workers), queue.SimpleQueue()
    for _ in range(workers):
        pipes.put(own_copy(pipe))
    by_name = {f"{height}x{width}": (height, width) for height, width in sizes}
    app.state.accepted = 0

    class ImageRequest(BaseModel):
        model_config = ConfigDict(extra="forbid")
        prompt: str = Field(min_length=1, max_length=2000)
        negative_prompt: str | None = Field(None, max_length=2000)
        size: Literal[tuple(by_name)] = Field(next(iter(by_name)), description="height x width, in pixels")
        steps: int = Field(30, ge=1, le=100)
        guidance: float = Field(7.5, gt=1, le=30)  # at 1 the batch of the U-Net is half as large: other graphs
        seed: int = Field(default_factory=lambda: secrets.randbelow(2**32), ge=0, lt=2**63)

    def make(request: ImageRequest) -> bytes:
        """A PNG, made in a worker's thread."""
        own, (height, width), file = pipes.get(), by_name[request.size], io.BytesIO()
        try:
            image = own(
                request.prompt,
                negative_prompt=request.negative_prompt,
                height=height,
                width=width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=torch.Generator().manual_seed(request.seed),  # on the CPU: the same with any GPU
            ).images[0]
        finally:
            pipes.put(own)
        image.save(file, "PNG")
        return file.getvalue()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"sizes": list(by_name), "compiled": compiled, "accepted": app.state.accepted}

    @app.post("/images", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    async def images(request: ImageRequest) -> Response:
        if app.state.accepted >= workers + waiting:
            raise HTTPException(503, "Too many requests are waiting.", {"Retry-After": "5"})
        app.state.accepted += 1
        try:
            png = await anyio.to_thread.run_sync(make, request, limiter=threads)
        finally:
            app.state.accepted -= 1
        return Response(png, media_type="image/png", headers={"X-Seed": str(request.seed)})

    return app


def sizes_of(text: str) -> list[Size]:
    """ "512,768x512" as heights and widths."""
    pairs = [part.split("x") for part in text.split(",")]
    return [(int(pair[0]), int(pair[-1])) for pair in pairs]


def main() -> None:
    """Load and warm up, then serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="directory of a diffusers pipeline")
    parser.add_argument("--size", type=sizes_of, required=True, help="height x width of all sizes: 512,768x512")
    parser.add_argument("--compiled", type=Path, metavar="DIR", help="folder of their packages (default: compile now)")
    parser.add_argument("--vae", action="store_true", help="the VAE's decoder is in the packages too")
    for name, default in {"branch": 0, "interval": 3, "workers": 1, "waiting": 16, "port": 8000}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    args = parser.parse_args()

    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = DiffusionPipeline.from_pretrained(args.pipeline, torch_dtype=dtype, local_files_only=True).to(device)
    try:
        get_ready(pipe, args.size, args.compiled, interval=args.interval, branch=args.branch, vae=args.vae)
    except StepCacheError as error:
        sys.exit(f"server.py: {error}")
    compiled = args.compiled is not None
    app = app_of(pipe, args.size, compiled=compiled, workers=args.workers, waiting=args.waiting)
    uvicorn.run(app, host=args.host, port=args.port)


if __name__ == "__main__":
    main()
