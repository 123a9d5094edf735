"""Modular pipelines (diffusers' ModularPipeline): their inputs are their blocks', not their call's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def is_modular(pipe: object) -> bool:
    """Whether `pipe` is one of diffusers' modular pipelines."""
    return any(
        cls.__name__ == "ModularPipeline" and cls.__module__.startswith("diffusers.") for cls in type(pipe).__mro__
    )


def inputs_of(pipe: Any) -> dict[str, bool]:
    """The inputs of a modular pipe by name, and whether its blocks need them."""
    named = {spec.name: bool(spec.required) for spec in pipe.blocks.inputs if spec.name is not None}
    # Blocks that choose their blocks by what is given need latents only in those after the loop, which makes them.
    return {**named, "latents": False} if "latents" in named else named


def blocks_of(pipe: Any) -> Iterator[Any]:
    """All blocks of a modular pipe, the pipe's own (`pipe.blocks` is a copy)."""
    blocks = [pipe._blocks]
    while blocks:
        yield (block := blocks.pop())
        blocks += getattr(block, "sub_blocks", {}).values()
