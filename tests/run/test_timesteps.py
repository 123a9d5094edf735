"""Scheduler steps with timesteps on the host: the same results, and no waiting for the device."""

import copy
import functools
import inspect
import threading
from types import SimpleNamespace

import diffusers
import pytest
import torch
from support.small import BETAS, LoopPipe, generate, loop_pipe, make_inputs, make_unet, tiny_pipe
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stepcache import accelerate, denoising, last_run, restore
from stepcache.run import timesteps
from stepcache.run.timesteps import ON_HOST, without_waits

STEPS = 6


class Device(TorchDispatchMode):
    """Treats some tensors, and everything computed from them, as if they were on a device.

    They are ordinary tensors, so views, storages and offsets are real. Records where the host would wait, and each
    operation on samples with the devices of its operands. Nothing else could change a result: an operation rounds a
    scalar on the host differently from one on the device.
    """

    WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")

    def __init__(self, *tensors):
        super().__init__()
        # Hold the tensors, so that no other tensor can reuse an address.
        self.there = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
        self.waits, self.trace = [], []

    def has(self, tensor):
        return tensor.untyped_storage().data_ptr() in self.there

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if any(t.dim() == 4 for t in tensors):
            self.trace.append((name, [self.has(t) for t in tensors]))
        if any(map(self.has, tensors)):
            to_host = name == "aten::_to_copy" and (kwargs or {}).get("device") == torch.device("cpu")
            if name in self.WAITS or to_host:
                self.waits.append(name)
            if not to_host:
                self.there |= {
                    t.untyped_storage().data_ptr(): t for t in tree_leaves(result) if isinstance(t, torch.Tensor)
                }
        return result


@pytest.fixture
def as_on_a_device(monkeypatch):
    """Treat timesteps on the host as on a device."""
    monkeypatch.setattr(timesteps, "_waits", lambda tensor: True)


def loop(scheduler, step=None, dtype=torch.float32, **kwargs):
    """Step on random outputs; returns samples, waits, and operations on samples of each step."""
    if "generator" in inspect.signature(scheduler.step).parameters:
        kwargs["generator"] = torch.Generator().manual_seed(1)
    learned = str(scheduler.config.get("variance_type", "")).startswith("learned")
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(STEPS)
    sample = torch.randn(1, 4, 8, 8, generator=generator).to(dtype) * getattr(scheduler, "init_noise_sigma", 1)
    result = SimpleNamespace(samples=[], waits=[], traces=[])
    with torch.no_grad():
        for t in scheduler.timesteps:
            scheduler.scale_model_input(sample, t)
            output = torch.randn(1, 8 if learned else 4, 8, 8, generator=generator).to(dtype)
            with Device(scheduler.timesteps) as device:
                sample = (step or scheduler.step)(output, t, sample, **kwargs)[0]
            result.samples.append(sample)
            result.waits.append(len(device.waits))
            result.traces.append(device.trace)
    return result


def before_and_after(make_scheduler, **kwargs):
    """The loop with the scheduler's own step, and with the one that does not wait; both schedulers end up equal."""
    schedulers = make_scheduler(), make_scheduler()
    hosted = without_waits(schedulers[1], schedulers[1].step)
    before, after = loop(schedulers[0], **kwargs), loop(schedulers[1], hosted, **kwargs)
    states = [vars(scheduler) for scheduler in schedulers]
    assert list(states[0]) == list(states[1])
    for a, b in zip(tree_leaves(states[0]), tree_leaves(states[1]), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else bool((a == b) if not hasattr(a, "all") else True)
    return before, after


# Options that make `step` take other paths through its code.
PREDICTIONS = [{"prediction_type": "v_prediction"}, {"prediction_type": "sample"}]
DDIM = [
    *PREDICTIONS,
    {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    {"thresholding": True, "clip_sample": False},
]
DDPM = [
    *PREDICTIONS,
    {"timestep_spacing": "linspace"},
    *({"variance_type": kind} for kind in ("fixed_small_log", "fixed_large", "learned_range")),
]
VARIED = {
    "DDIMInverseScheduler": [*PREDICTIONS, {"timestep_spacing": "trailing"}],
    "DDIMParallelScheduler": DDIM,
    "DDIMScheduler": DDIM,
    "DDPMParallelScheduler": DDPM,
    "DDPMScheduler": DDPM,
    "LCMScheduler": [*PREDICTIONS, {"timestep_scaling": 3.0, "set_alpha_to_one": False}],
    "PNDMScheduler": [{"skip_prk_steps": True}, {"skip_prk_steps": True, "prediction_type": "v_prediction"}],
    "TCDScheduler": PREDICTIONS,
}


@pytest.mark.parametrize("name, options", [(name, o) for name in ON_HOST for o in ({}, *VARIED[name])], ids=str)
def test_the_same_results_and_one_wait_a_run(name, options, as_on_a_device):
    def make_scheduler():
        return getattr(diffusers, name)(**BETAS, **options)

    takes_eta = "eta" in inspect.signature(make_scheduler().step).parameters
    for kwargs in ({}, {"dtype": torch.float16}, *([{"eta": 0.5}] if takes_eta else ())):
        before, after = before_and_after(make_scheduler, **kwargs)
        assert min(before.waits) > 0
        assert after.waits == [1] + [0] * (len(before.waits) - 1)
        assert after.traces == before.traces
        for a, b in zip(before.samples, after.samples, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)


def test_what_lcm_computes_with_the_timestep_stays_on_the_device(as_on_a_device, monkeypatch):
    """On the host it would multiply a half-precision sample by a number not rounded to half precision."""
    monkeypatch.setitem(ON_HOST, "LCMScheduler", ())
    timesteps._view_class.cache_clear()
    try:
        before, after = before_and_after(diffusers.LCMScheduler)
        assert after.traces != before.traces
    finally:
        timesteps._view_class.cache_clear()


def test_schedulers_that_wait_in_each_step_are_known():
    """All diffusers schedulers that wait after the first step are in the table, or here with a reason."""
    left_alone = {
        "CogVideoXDDIMScheduler": "for a transformer",
        "FlowMapEulerDiscreteScheduler": "for transformers",
        "SASolverScheduler": "hands timesteps to a function of the user's, and keeps them",
        "UnCLIPScheduler": "for pipelines whose U-Nets are not in .unet",
    }
    looked_at, waiting = set(), set()
    for name in dir(diffusers):
        if not name.endswith("Scheduler") or name.startswith("Flax"):
            continue
        cls = getattr(diffusers, name)
        if hasattr(cls, "_backends"):
            continue
        try:
            waits = loop(cls()).waits
        except Exception:  # other arguments or samples, or no timesteps or step
            continue
        looked_at.add(name)
        if any(waits[1:]):
            waiting.add(name)
            continue
        scheduler = cls()
        assert without_waits(scheduler, scheduler.step) == scheduler.step
    assert waiting == set(ON_HOST) | set(left_alone)
    assert len(looked_at) > 25 and {"EulerDiscreteScheduler", "DPMSolverMultistepScheduler"} < looked_at


def hosted_ddim(**options):
    scheduler = diffusers.DDIMScheduler(**BETAS, **options)
    scheduler.set_timesteps(STEPS)
    return scheduler, without_waits(scheduler, scheduler.step)


def test_a_view_into_the_timesteps_is_known_by_its_place(as_on_a_device):
    table = torch.arange(20)
    position = timesteps._position
    for part in (table, table[5:], table[3:15:4], table.view(4, 5)[:, 2]):
        assert [position(t, part) for t in part] == list(range(len(part)))
        assert position(part[-1:].squeeze(), part) == len(part) - 1
    part = table[3:15:4]
    for unknown in (
        table[2],
        table[4],
        table[15],
        part[1].clone(),
        part[1:2],
        part[1].view(torch.float64),
        7,
        7.0,
        None,
    ):
        assert position(unknown, part) is None
    assert position(table[0], table[0].expand(3)) is None
    assert position(table[0], None) is None and position(table[0], table.view(4, 5)) is None


def test_timesteps_on_the_host_are_left_alone():
    scheduler, step = hosted_ddim()
    sample = torch.ones(1, 4, 8, 8)
    t = scheduler.timesteps[1]
    seen = []
    scheduler._get_variance = lambda timestep, before: seen.append(timestep) or torch.zeros(())
    assert torch.equal(step(sample, t, sample)[0], scheduler.step(sample, t, sample)[0])
    assert seen[0] is t


def test_what_is_no_view_goes_to_the_scheduler_as_it_is(as_on_a_device):
    scheduler, step = hosted_ddim()
    sample = torch.ones(1, 4, 8, 8)
    seen = []
    scheduler._get_variance = lambda timestep, before: seen.append(timestep) or torch.zeros(())
    t = scheduler.timesteps[2]
    for given in (int(t), t.clone(), scheduler.timesteps.clone()[2]):
        step(sample, given, sample)
        step(model_output=sample, timestep=given, sample=sample)
        assert seen.pop() is given and seen.pop() is given
    step(sample, t, sample), step(sample, timestep=t, sample=sample)
    assert all(other is not t and torch.equal(other, t) for other in seen)


def test_other_timesteps_and_timesteps_changed_in_place_are_copied_anew(as_on_a_device):
    scheduler, step = hosted_ddim()
    plain = copy.deepcopy(scheduler)
    sample = torch.ones(1, 4, 8, 8)

    def check():
        for t, own in zip(scheduler.timesteps, plain.timesteps, strict=True):
            assert torch.equal(step(sample, t, sample)[0], plain.step(sample, own, sample)[0])

    check()
    for each in (scheduler, plain):
        each.set_timesteps(4)
    check()
    for each in (scheduler, plain):
        each.timesteps.add_(3)
    check()


def test_a_step_of_somebodys_own_is_left_alone(as_on_a_device):
    class Mine(diffusers.DDIMScheduler):
        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)

    mine = Mine(**BETAS)
    assert without_waits(mine, mine.step) == mine.step
    scheduler = diffusers.DDIMScheduler(**BETAS)
    scheduler.step = own = lambda *args: args
    assert without_waits(scheduler, own) is own


def test_nobody_else_sees_the_host_copy(as_on_a_device):
    """While one thread is in a step, the scheduler's own timesteps do not change."""
    scheduler = diffusers.DDPMScheduler(**BETAS)
    scheduler.set_timesteps(STEPS)
    step, own = without_waits(scheduler, scheduler.step), scheduler.timesteps
    inside, checked = threading.Event(), threading.Event()
    seen = []

    def previous(self, timestep, stock=diffusers.DDPMScheduler.previous_timestep):
        seen.append(self.timesteps)
        inside.set()
        assert checked.wait(60)
        return stock(self, timestep)

    diffusers.DDPMScheduler.previous_timestep, stock = previous, diffusers.DDPMScheduler.previous_timestep
    try:
        sample = torch.ones(1, 4, 8, 8)
        thread = threading.Thread(target=lambda: step(sample, own[1], sample))
        thread.start()
        assert inside.wait(60)
        assert scheduler.timesteps is own
        checked.set()
        thread.join()
    finally:
        diffusers.DDPMScheduler.previous_timestep = stock
    assert seen[0] is not own and torch.equal(seen[0], own)


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "DDPMScheduler", "LCMScheduler"])
def test_pipelines_are_the_same_and_wait_once_a_run(name, as_on_a_device, monkeypatch):
    def images():
        pipe = tiny_pipe(scheduler=getattr(diffusers, name).from_config(tiny_pipe().scheduler.config))
        accelerate(pipe, 2)
        try:
            return [generate(pipe) for _ in range(2)], last_run(pipe).kinds, dict(vars(pipe.scheduler))
        finally:
            restore(pipe)

    copies = []
    make_copy = timesteps._HostStep._on_host
    monkeypatch.setattr(
        timesteps._HostStep, "_on_host", lambda self, own: copies.append((self, own)) or make_copy(self, own)
    )
    got, kinds, state = images()
    assert len({id(hosted) for hosted, _ in copies}) == 2  # one per run, and none is left behind
    assert len(copies) == 2 * len(kinds)
    monkeypatch.setattr(timesteps, "_waits", lambda tensor: False)
    want, kinds_before, state_before = images()
    assert kinds == kinds_before and list(state) == list(state_before) and "step" not in state
    for a, b in zip(want, got, strict=True):
        assert torch.equal(a, b)


def test_views_of_a_panorama_are_still_told_apart(as_on_a_device):
    """The session gets the loop's own tensor, so a separately stepped view is still in the same iteration."""

    def run(pipe):
        inputs = make_inputs(pipe.unet, batch=1)
        pipe.scheduler.set_timesteps(4)
        views = [inputs["sample"], -inputs["sample"]]
        with torch.no_grad(), denoising(pipe):
            for t in pipe.scheduler.timesteps:
                for i, view in enumerate(views):
                    noise = pipe.unet(view, t, encoder_hidden_states=inputs["encoder_hidden_states"]).sample
                    views[i] = pipe.scheduler.step(noise, t, view).prev_sample
        return torch.cat(views)

    pipe = accelerate(loop_pipe("least"), 2)
    run(pipe)
    assert last_run(pipe).kinds == "FFPPFFPP"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_HOST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_on_a_gpu_nothing_waits_and_results_are_the_same(name, dtype):
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    results = []
    for host in (False, True):
        scheduler = getattr(diffusers, name)(**BETAS, **options)
        kwargs = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            kwargs["generator"] = torch.Generator("cuda").manual_seed(1)
        g = torch.Generator("cuda").manual_seed(0)
        randn = functools.partial(torch.randn, 1, 4, 64, 64, generator=g, device="cuda", dtype=dtype)
        scheduler.set_timesteps(STEPS, device="cuda")
        step = without_waits(scheduler, scheduler.step) if host else scheduler.step
        sample = randn()
        mode = torch.cuda.get_sync_debug_mode()
        try:
            for i, t in enumerate(scheduler.timesteps):
                if host and i:
                    torch.cuda.set_sync_debug_mode("error")
                sample = step(randn(), t, sample, **kwargs)[0]
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        results.append(sample)
    assert torch.equal(*results)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler", "PNDMScheduler", "TCDScheduler"])
def test_on_a_gpu_a_whole_run_waits_for_nothing(name):
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    pipe = accelerate(LoopPipe(make_unet().cuda(), getattr(diffusers, name)(**BETAS, **options)), 3, compile=False)
    inputs = {key: value.cuda() for key, value in make_inputs(pipe.unet).items() if key != "timestep"}
    text, kwargs = inputs["encoder_hidden_states"], {}
    if "generator" in inspect.signature(pipe.scheduler.step).parameters:
        kwargs["generator"] = torch.Generator("cuda").manual_seed(1)
    mode = torch.cuda.get_sync_debug_mode()
    for _ in range(2):
        latents = inputs["sample"]
        pipe.scheduler.set_timesteps(8, device="cuda")
        with torch.no_grad(), denoising(pipe):
            try:
                for i, t in enumerate(pipe.scheduler.timesteps):
                    if i == 2:  # both graphs are captured, the timesteps are copied
                        torch.cuda.set_sync_debug_mode("error")
                    noise = pipe.unet(latents, t, encoder_hidden_states=text).sample
                    latents = pipe.scheduler.step(noise, t, latents, **kwargs).prev_sample
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        assert last_run(pipe).steps == len(pipe.scheduler.timesteps) >= 8 and latents.isfinite().all()
