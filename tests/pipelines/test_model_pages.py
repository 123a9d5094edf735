"""The recipes of docs/models that the demo pipeline cannot run, on tiny models of the same classes.

Models come from the tests' table of pipelines instead of a disk, and sizes and steps are those of tiny models. All else
is the page's text.
"""

import re
from pathlib import Path

import diffusers.utils
import pytest
from diffusers import DiffusionPipeline, ModelMixin
from support.builders import PICTURE, PIXELS
from support.cases import CASES

from stepcache import last_run

DOCS = Path(__file__).parents[2] / "docs" / "models"
BLOCK = re.compile(r"<!-- needs a GPU -->\n```python\n(.*?)```", re.DOTALL)
RECIPES = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in sorted(DOCS.glob("*.md"))
    for number, block in enumerate(BLOCK.findall(page.read_text()))
]
SMALLER = {"height": PIXELS, "width": PIXELS, "num_frames": 3, "num_inference_steps": 5, "decode_chunk_size": 3}


def smaller(recipe):
    recipe = recipe.replace('.to("cuda")', "").replace("float16", "float32")
    recipe = re.sub(r"\bresize\(.*?\)\)", f"resize(({PIXELS}, {PIXELS}))", recipe)
    return re.sub(rf"\b({'|'.join(SMALLER)})=\d+", lambda found: f"{found[1]}={SMALLER[found[1]]}", recipe)


def tiny(cls, *path, **components):
    """What the table's first row of the class builds."""
    case = next(case for case in CASES if case.pipeline == cls.__name__)
    pipe = case.build()
    if getattr(pipe, "text_encoder", ...) is None:  # IF's T5: its prompts come embedded
        pipe.encode_prompt = lambda *given, **more: (case.call["prompt_embeds"], case.call["negative_prompt_embeds"])
    return pipe


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_and_reuses(recipe, monkeypatch):
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(tiny))
    monkeypatch.setattr(ModelMixin, "from_pretrained", classmethod(lambda cls, *path, **options: None))
    monkeypatch.setattr(diffusers.utils, "load_image", lambda path: PICTURE)
    for export in ("export_to_gif", "export_to_video"):
        monkeypatch.setattr(diffusers.utils, export, lambda frames, path, **options: path)
    names = {}
    exec(compile(smaller(recipe), "recipe", "exec"), names)
    runs = [last_run(value) for value in names.values() if isinstance(value, DiffusionPipeline)]
    assert runs and all("P" in run.kinds for run in runs)


def test_every_page_has_a_recipe():
    for page in DOCS.glob("*.md"):
        assert "accelerate(" in "".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)), page.name
