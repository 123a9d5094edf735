"""Redraws images over HTTP, one at a time, all at one size: that of the graphs that are made before the first request.
server/ has a server for production.

    python img2img_server.py path/to/model 512
    curl "localhost:8000?prompt=a%20watercolour&strength=0.6" --data-binary @photo.jpg --output painting.png
"""

import io
import sys
import threading

import torch
import uvicorn
from diffusers import AutoPipelineForImage2Image
from fastapi import Body, FastAPI, HTTPException, Query, Response
from PIL import Image, ImageOps

from stepcache import accelerate, warmup

model, side = sys.argv[1], int(sys.argv[2])
device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
pipe = AutoPipelineForImage2Image.from_pretrained(model, torch_dtype=dtype).to(device)
warmup(accelerate(pipe, preset="balanced", max_buckets=1), side, side)  # compiles and captures: requests only replay
app, lock = FastAPI(), threading.Lock()  # a diffusers pipeline is not thread-safe


@app.post("/")
def redraw(prompt: str, strength: float = Query(0.6, ge=0.1, le=1), photo: bytes = Body(media_type="image/*")):
    """The photo, cut to a square, as a PNG. FastAPI calls this in a thread."""
    try:
        image = ImageOps.fit(Image.open(io.BytesIO(photo)).convert("RGB"), (side, side))
    except (OSError, Image.DecompressionBombError) as error:
        raise HTTPException(422, "The body is not an image, or too large.") from error
    with lock:
        pipe(prompt, image, strength=strength).images[0].save(file := io.BytesIO(), "PNG")
    return Response(file.getvalue(), media_type="image/png")


uvicorn.run(app)
