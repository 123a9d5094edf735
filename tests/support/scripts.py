"""The short scripts of examples/, run in this process as a user runs them in one of their own."""

from __future__ import annotations

import runpy
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_script(name: str, *arguments: object) -> dict[str, Any]:
    """`python name.py arguments...` without a GPU; the script's globals at its end."""
    path = str(EXAMPLES / f"{name}.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return runpy.run_path(path, run_name="__main__")


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often modules are called, by the name of their class."""
    calls: Counter[str] = Counter()
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: calls.update([type(module).__name__])
    )
    try:
        yield calls
    finally:
        hook.remove()


def quiet_load(cls: type, path: object, **parts: Any) -> Any:
    """A pipeline as the scripts load it, on the CPU."""
    pipe = cls.from_pretrained(path, torch_dtype=torch.float32, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(path: object) -> tuple[tuple[int, int], bytes]:
    """Size and pixels of an image in a file."""
    with Image.open(path) as image:
        return image.size, image.convert("RGB").tobytes()


def same(path: object, image: Image.Image) -> bool:
    return pixels(path) == (image.size, image.tobytes())
