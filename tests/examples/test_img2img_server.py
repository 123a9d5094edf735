"""The short server: what it answers, one image at a time, from graphs that are there before the first request."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import AutoPipelineForImage2Image
from PIL import Image
from support.scripts import quiet_load, run_script
from support.small import captured, picture

from stepcache import accelerate, last_run

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

PHOTO = picture(64).rotate(30)
ORDER = {"prompt": "red apple", "strength": 0.2}  # 10 of 50 steps


def body(image, form="PNG"):
    image.save(file := io.BytesIO(), form)
    return file.getvalue()


@pytest.fixture(scope="module")
def script(attended):
    """Its globals. Graphs are captured by the stand-in; nothing listens."""
    served = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stepcache.accelerate", captured)
        patch.setattr("uvicorn.run", served.append)
        found = run_script("img2img_server", attended, 64)
    found["pipe"].set_progress_bar_config(disable=True)
    assert served == [found["app"]]
    return found


@pytest.fixture
def client(script):
    with TestClient(script["app"]) as made:
        yield made


def post(client, photo=PHOTO, **order):
    torch.manual_seed(0)  # the script draws without a generator
    return client.post("/", params={**ORDER, **order}, content=body(photo))


def image(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(response.content))


def test_the_first_request_captures_nothing(script):
    """Before the others, on graphs of the warm-up."""
    pipe = script["pipe"]
    assert last_run(pipe).kinds == "FP" and last_run(pipe).captures == 2
    with TestClient(script["app"]) as client:
        post(client)
    assert last_run(pipe).kinds == "FPPFPPFPPF" and last_run(pipe).captures == 0
    assert last_run(pipe).buckets == [(2, 4, 16, 16)]


def test_the_image_is_that_of_a_plain_call(client, attended):
    pipe = quiet_load(AutoPipelineForImage2Image, attended)
    torch.manual_seed(0)
    stock = pipe(**ORDER, image=PHOTO).images[0]
    torch.manual_seed(0)
    want = accelerate(pipe, preset="balanced")(**ORDER, image=PHOTO).images[0]
    found = image(post(client))
    assert found.size == (64, 64) and found.tobytes() == want.tobytes() != stock.tobytes()
    assert image(post(client, prompt="fox face")).tobytes() != want.tobytes()


@pytest.mark.parametrize("kind", ["image/jpeg", "application/x-www-form-urlencoded"], ids=["named", "by curl"])
def test_photos_of_other_sizes_and_kinds_are_cut_to_the_one_that_is_ready(script, client, kind):
    photo = Image.new("L", (90, 60))
    photo.paste(255, (15, 0, 75, 60))  # what is left of it
    torch.manual_seed(0)
    answer = client.post("/", params=ORDER, content=body(photo, "JPEG"), headers={"content-type": kind})
    assert last_run(script["pipe"]).captures == 0
    white = image(post(client, Image.new("RGB", (64, 64), "white")))
    # A JPEG's white is not all white.
    far = [abs(a - b) for a, b in zip(image(answer).tobytes(), white.tobytes(), strict=True)]
    assert sum(far) / len(far) < 8


@pytest.mark.parametrize("order", [{"strength": 0}, {"strength": 1.5}, {"strength": "high"}, {"prompt": []}], ids=str)
def test_orders_that_cannot_be_met_are_refused(client, order):
    assert post(client, **order).status_code == 422


@pytest.mark.parametrize("content", [b"", b"no image", body(PHOTO)[:200]], ids=["nothing", "text", "cut off"])
def test_what_is_no_image_is_refused(client, content):
    assert client.post("/", params=ORDER, content=content).status_code == 422


def test_a_bomb_is_refused(client, monkeypatch):
    """An image of so many pixels that Pillow will not open it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    answer = client.post("/", params=ORDER, content=body(PHOTO))
    assert answer.status_code == 422 and answer.json()["detail"] == "The body is not an image, or too large."


def test_requests_that_meet_are_served_one_after_the_other(script, client):
    """A request waits in the text encoder for another one to come there too, which must not come."""
    inside, most, met = [], [], threading.Event()

    def enter(module, inputs):
        if threading.get_ident() not in inside:
            inside.append(threading.get_ident())
            most.append(len(inside))
            if len(inside) > 1:
                met.set()
            met.wait(timeout=0.5)

    pipe = script["pipe"]
    hooks = [
        pipe.text_encoder.register_forward_pre_hook(enter),
        pipe.vae.decoder.register_forward_hook(lambda *call: inside.remove(threading.get_ident())),
    ]
    try:
        with ThreadPoolExecutor(3) as threads:
            answers = list(threads.map(lambda i: client.post("/", params=ORDER, content=body(PHOTO)), range(3)))
    finally:
        for hook in hooks:
            hook.remove()
    assert [answer.status_code for answer in answers] == [200] * 3 and most == [1] * 3
