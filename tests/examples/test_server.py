"""The example of a server: what it answers, several requests at a time, and a first one that compiles nothing."""

import io
import json
import re
import signal
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from support.batch_checks import HERE, NO_COMPILER, SERVER, begin, run
from support.small import DEMO, ONE_LEVEL, demo_pipe, tiny_pipe

from stepcache import accelerate

pytest.importorskip("fastapi")
import server
from fastapi.testclient import TestClient

SIZES = [(64, 64), (64, 32)]
SERVED = ["64x64", "64x32"]
SETTINGS = {"steps": 4, "guidance": 3.0}
REQUESTS = [
    {"prompt": "fox face", "seed": 7, **SETTINGS},
    {"prompt": "fox face", "seed": 7, "size": "64x32", **SETTINGS},
    {"prompt": "fox face", "seed": 2**40, **SETTINGS},
    {"prompt": "fox face", "seed": 7, "negative_prompt": "green", **SETTINGS},
    {"prompt": "red apple", "seed": 7, "size": "64x32", **SETTINGS, "steps": 7},
    {"prompt": "red apple", "seed": 7, "size": "64x64", **SETTINGS, "guidance": 5.0},
]


@pytest.fixture
def pipe():
    made = demo_pipe()
    server.get_ready(made, SIZES)
    return made


@pytest.fixture
def gate(pipe):
    """Counts calls of the text encoder, two of each image, in `inside`. They wait for `barrier`, if there is one."""

    class Gate:
        barrier, inside = None, threading.Semaphore(0)

        def wait(self, *args):
            self.inside.release()
            if self.barrier is not None:
                self.barrier.wait(timeout=60)

    made = Gate()
    handle = pipe.text_encoder.register_forward_pre_hook(made.wait)
    yield made
    handle.remove()


def serving(pipe, **options):
    return TestClient(server.app_of(pipe, SIZES, compiled=False, **options))


def image(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    found = Image.open(io.BytesIO(response.content))
    return found.size, found.tobytes()


def sequential(pipe, prompt, seed, steps, guidance, size="64x64", negative_prompt=None):
    """The image of a plain call of the pipe."""
    height, width = map(int, size.split("x"))
    generator = torch.Generator().manual_seed(seed)
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, "negative_prompt": negative_prompt}
    found = pipe(prompt, height=height, width=width, generator=generator, **settings).images[0]
    return found.size, found.tobytes()


def test_images_made_at_the_same_time_are_those_of_one_after_the_other(pipe, gate):
    wanted = [sequential(pipe, **request) for request in REQUESTS]
    assert len(set(wanted)) == len(REQUESTS) and {size for size, _ in wanted} == {(64, 64), (32, 64)}
    gate.barrier = threading.Barrier(2)  # each call waits for one of another image
    with serving(pipe, workers=2) as client, ThreadPoolExecutor(len(REQUESTS)) as threads:
        answers = list(threads.map(lambda request: client.post("/images", json=request), REQUESTS))
    assert [image(answer) for answer in answers] == wanted
    gate.barrier = None
    assert [sequential(pipe, **request) for request in REQUESTS] == wanted


def test_a_worker_shares_the_models_but_not_what_calls_change(pipe):
    own = server.own_copy(pipe)
    assert own.unet is pipe.unet and own.vae is pipe.vae and own.text_encoder is pipe.text_encoder
    assert own.scheduler is not pipe.scheduler and own.scheduler.config == pipe.scheduler.config
    assert own.tokenizer is not pipe.tokenizer
    assert own.tokenizer("fox face").input_ids == pipe.tokenizer("fox face").input_ids


def test_a_seed_is_chosen_and_told(pipe):
    request = {"prompt": "fox face", **SETTINGS}
    with serving(pipe) as client:
        first, second = (client.post("/images", json=request) for _ in range(2))
        again = client.post("/images", json={**request, "seed": int(first.headers["X-Seed"])})
    assert image(again) == image(first) != image(second)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": "96x96"}, {"size": "64"}, {"size": 64}, {"size": "32x64"}, {"steps": 0}, {"steps": 1000},
        {"guidance": 1}, {"guidance": "high"}, {"seed": -1}, {"seed": 2**63}, {"prompt": ""}, {"prompt": None},
        {"negative_prompt": 3}, {"step": 4},
    ],
    ids=str,
)  # fmt: skip
def test_requests_that_cannot_be_met_are_refused(pipe, wrong):
    with serving(pipe) as client:
        answer = client.post("/images", json={**REQUESTS[0], **wrong})
    (error,) = answer.json()["detail"]
    assert answer.status_code == 422 and error["loc"] == ["body", *wrong]
    if "size" in wrong:
        assert error["msg"] == "Input should be '64x64' or '64x32'"


def test_health_is_told_and_requests_are_turned_away_while_workers_are_busy(pipe, gate):
    gate.barrier = threading.Barrier(2)
    with serving(pipe, workers=1, waiting=1) as client, ThreadPoolExecutor(2) as threads:
        posts = [threads.submit(client.post, "/images", json=request) for request in REQUESTS[:2]]
        assert gate.inside.acquire(timeout=60)
        while (health := client.get("/health").json())["accepted"] < 2:  # the second one is on its way
            pass
        assert health == {"sizes": SERVED, "compiled": False, "accepted": 2}
        refused = client.post("/images", json=REQUESTS[0])
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0
        for _ in range(4):  # two calls of each image
            gate.barrier.wait(timeout=60)
        assert [post.result().status_code for post in posts] == [200, 200]
        assert client.get("/health").json()["accepted"] == 0


def test_an_error_is_told_and_the_worker_goes_on(pipe, monkeypatch):
    decode = type(pipe.vae).decode
    monkeypatch.setattr(type(pipe.vae), "decode", lambda *args, **options: 1 / 0)
    with TestClient(server.app_of(pipe, SIZES, compiled=False), raise_server_exceptions=False) as client:
        assert client.post("/images", json=REQUESTS[0]).status_code == 500
        monkeypatch.setattr(type(pipe.vae), "decode", decode)
        assert image(client.post("/images", json=REQUESTS[0])) == sequential(pipe, **REQUESTS[0])
        assert client.get("/health").json()["accepted"] == 0


def test_every_size_is_ready_before_the_first_request(pipe, monkeypatch):
    warm = []
    monkeypatch.setattr(server, "accelerate", lambda pipe, **settings: warm.append(settings))
    monkeypatch.setattr(server, "warmup", lambda pipe, *size, progress: warm.append(size))
    server.get_ready(pipe, SIZES, "a folder", branch=1)
    assert warm == [{"compiled": "a folder", "compiled_only": True, "max_buckets": 2, "branch": 1}, *SIZES]


def test_packages_that_do_not_fit_are_an_error_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(server.uvicorn, "run", lambda *args, **options: pytest.fail("served"))
    monkeypatch.setattr(sys, "argv", ["server.py", DEMO, "--size", "64", "--compiled", str(tmp_path / "graphs")])
    with pytest.raises(SystemExit, match=r"server\.py: compiled_only=True, and the packages cannot be used: .*missing"):
        server.main()


def test_command_line(monkeypatch):
    served = []
    monkeypatch.setattr(server, "get_ready", lambda pipe, *args, **settings: served.append((args, settings)))
    monkeypatch.setattr(server.uvicorn, "run", lambda app, host, port: served.append((host, port)))
    monkeypatch.setattr(sys, "argv", ["server.py", DEMO, "--size", "64,64x32", "--branch", "1", "--port", "80"])
    server.main()
    assert served == [((SIZES, None), {"interval": 3, "branch": 1, "vae": False}), ("127.0.0.1", 80)]


@pytest.mark.slow
def test_the_first_request_compiles_nothing(tiny, tiny_packages, tmp_path):
    """In a new process, where there is no compiler."""
    command = [HERE / "server_noted.py", tiny, "--size", "64", "--compiled", tiny_packages, "--port", "0"]
    process = begin(command, **NO_COMPILER, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    try:
        told = ""
        while not (found := re.search(r"running on (http://\S+)", told)):
            line = process.stdout.readline()
            assert line, told
            told += line
        body = json.dumps(REQUESTS[0]).encode()
        request = urllib.request.Request(f"{found[1]}/images", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            made = Image.open(io.BytesIO(answer.read())).tobytes()
        with urllib.request.urlopen(f"{found[1]}/health", timeout=60) as answer:
            assert json.load(answer) == {"sizes": ["64x64"], "compiled": True, "accepted": 0}
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "2 packages loaded, 0 graphs compiled\nFPPF in 0.0 s of compiling\n" in told
    pipe = accelerate(tiny_pipe(unet=ONE_LEVEL), compiled=tiny_packages, compiled_only=True)
    assert ((64, 64), made) == sequential(pipe, **REQUESTS[0])


@pytest.mark.slow
def test_a_size_without_packages_is_an_error_at_the_start(tiny, tiny_packages):
    output = run([SERVER / "server.py", tiny, "--size", "64,64x32", "--compiled", tiny_packages], status=1)
    assert "\nserver.py: compiled_only=True, and the full graph 2x4x16x8 cannot run from a package" in output
    assert "Traceback" not in output
