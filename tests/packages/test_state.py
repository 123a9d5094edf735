"""A model's state: equal in every process that could share a graph, different as soon as the graph is."""

import copy
import functools
import json

import numpy
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from support.changes import move_the_data, replace_weight
from support.small import ATTENDED, loop_pipe, make_unet

from stepcache import accelerate
from stepcache.packages.state import NotPackaged, difference, state_of, weights_of


def unet(**changes):
    return make_unet("least", **{**ATTENDED, **changes})


def lora(model, name="default"):
    from peft import LoraConfig

    torch.manual_seed(0)
    model.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q"]), name)
    model.requires_grad_(False)


def put_on_again(model, name):
    module = getattr(model, name)
    delattr(model, name)
    setattr(model, name, module)


def reordered(module):
    """As removing a parametrization leaves it."""
    weight = module.weight
    del module.weight
    module.weight = weight


def block_of(model):
    return model.up_blocks[0].attentions[0].transformer_blocks[0]


NEUTRAL = {
    "other weights": move_the_data,
    "a replaced weight": lambda model: replace_weight(model.conv_in),
    "gradient checkpointing": lambda model: model.enable_gradient_checkpointing(),
    "a norm taken off and put on": lambda model: put_on_again(model, "conv_norm_out"),
    "a weight that comes last": lambda model: reordered(model.conv_norm_out),
    "a float for an int": lambda model: model.register_to_config(freq_shift=0.0, mid_block_scale_factor=1),
    "a fine-tune's config": lambda model: model.register_to_config(decay=0.999, optimization_step=1000),
    "FreeU on and off": lambda model: (model.enable_freeu(1, 1, 1, 1), model.disable_freeu()),
    "where it came from": lambda model: model.register_to_config(_name_or_path="elsewhere", sample_size=8),
    "a LoRA fused": lambda model: (lora(model), model.fuse_lora(0.5)),
    "a LoRA disabled": lambda model: (lora(model), model.disable_adapters()),
    "a LoRA come and gone": lambda model: (lora(model), model.delete_adapters("default")),
}

OTHER_GRAPHS = {
    "FreeU by numpy": (lambda model: model.enable_freeu(*map(numpy.float32, (0.9, 0.2, 1.25, 1.4))), "s1"),
    "another class": (lambda model: setattr(model.conv_act, "__class__", torch.nn.ReLU), "ReLU"),
    "processors": (lambda model: model.set_attn_processor(AttnProcessor()), "AttnProcessor"),
    "FreeU": (lambda model: model.enable_freeu(1, 1, 1, 1), "s1"),
    "dtype": (lambda model: model.half(), "float16"),
    "layout": (lambda model: model.to(memory_format=torch.channels_last), "conv_in.weight"),
    "chunked": (lambda model: setattr(block_of(model), "_chunk_size", 2), "_chunk_size"),
    "sliced attention": (lambda model: model.set_attention_slice(1), "SlicedAttnProcessor"),
    "a LoRA": (lora, "to_q"),
    "a LoRA fused and disabled": (lambda model: (lora(model), model.fuse_lora(), model.disable_adapters()), "to_q"),
    "an attribute": (lambda model: setattr(model.up_blocks[0].resnets[0], "output_scale_factor", 2.0), "scale_factor"),
    "an activation": (lambda model: setattr(model, "conv_act", torch.nn.ReLU()), "ReLU"),
    "a longer time embedding": (lambda model: model.register_to_config(time_embedding_dim=8), "time_embedding_dim"),
}


@pytest.mark.parametrize("change", NEUTRAL.values(), ids=NEUTRAL)
def test_what_changes_no_graph(change):
    model = unet()
    before = state_of(model)
    change(model)
    after = state_of(model)
    assert difference(before.about, after.about) == ""
    assert before.digest == after.digest and before.weights == after.weights
    assert all(tensor.shape == want.shape for tensor, want in zip(
        weights_of(model, before.weights), weights_of(unet(), before.weights), strict=True
    ))  # fmt: skip


@pytest.mark.parametrize(("change", "word"), OTHER_GRAPHS.values(), ids=OTHER_GRAPHS)
def test_what_changes_the_graph_is_named(change, word):
    model = unet()
    before = state_of(model)
    change(model)
    after = state_of(model)
    assert before.digest != after.digest
    assert word in difference(before.about, after.about)


def test_it_survives_json_and_another_process_order():
    state = state_of(unet())
    read = json.loads(json.dumps(state.about))
    assert difference(read, state.about) == "" and read == state.about
    assert difference({"class": "A"}, {"class": "B"}) == "class was A, here it is B"
    assert difference({"config": {"a": 1}}, {"config": {}}) == "a is missing here"


def test_a_partial_steps_state_leaves_out_what_it_does_not_run():
    model = unet()
    part = state_of(model, [model.mid_block, model.time_embedding] if model.mid_block else [model.time_embedding])
    assert not any(name.startswith("time_embedding") for name in part.weights)
    replaced = copy.deepcopy(model)
    replaced.time_embedding.act = torch.nn.ReLU()
    assert state_of(replaced, [replaced.time_embedding]).digest == part.digest


def with_hook(model):
    def foreign(module, args):
        return None

    model.conv_in.register_forward_pre_hook(foreign)


class Foreign:
    """An object of a user's."""


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda model: setattr(model.conv_in, "forward", functools.partial(print)), None),
        (with_hook, "with_hook"),
        (lambda model: setattr(model.conv_in, "mask", torch.ones(3)), "conv_in.mask is a tensor"),
        (lambda model: setattr(model.conv_in, "helper", Foreign()), "Foreign"),
        (lambda model: setattr(model.conv_in, "scale", range(3)), "range"),
        (lambda model: setattr(model.conv_in, "act", lambda x: x), "function that cannot be told"),
        (lambda model: setattr(model.conv_in, "act", model.conv_in.double), "method that cannot be told"),
        (lambda model: setattr(model.conv_out, "weight", model.conv_in.weight), "one tensor"),
        (lambda model: model.train(), "training"),
        (lambda model: setattr(model.conv_in, "weight", Quantised(model.conv_in.weight)), "Quantised"),
    ],
    ids=["partial", "hook", "tensor", "object", "range", "lambda", "method", "tied", "training", "quantised"],
)
def test_what_cannot_be_told_is_refused(change, word):
    model = unet()
    change(model)
    if word is None:  # Python's own: it cannot keep a state of its own
        state_of(model)
        return
    with pytest.raises(NotPackaged, match=word):
        state_of(model)


def patched(monkeypatch, owner, name):
    original = getattr(owner, name)

    def patch(*args, **kwargs):
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, patch)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (BasicTransformerBlock, "forward"),
        (AttnProcessor2_0, "__call__"),
        (torch.nn.functional, "scaled_dot_product_attention"),
    ],
)
def test_code_put_in_the_place_of_diffusers_or_torchs(monkeypatch, owner, name):
    model = unet()
    state_of(model)
    patched(monkeypatch, owner, name)
    with pytest.raises(NotPackaged, match="patch is code of "):
        state_of(model)


def test_channels_last_by_stepcache_and_by_torch_are_one_layout():
    ours, theirs = loop_pipe("least", **ATTENDED), unet()
    accelerate(ours, channels_last=True)
    theirs.to(memory_format=torch.channels_last)
    assert difference(state_of(ours.unet).about, state_of(theirs).about) == ""


def test_saved_and_loaded(tmp_path):
    model = unet()
    model.save_pretrained(tmp_path)
    assert state_of(type(model).from_pretrained(tmp_path)).digest == state_of(model).digest


class Quantised(torch.nn.Parameter):
    """Stands for torchao's and bitsandbytes' weights."""
