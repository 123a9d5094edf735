"""The notebook: run from top to bottom in a kernel of its own, and what it says is what the same calls give here."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from support.scripts import EXAMPLES, seeded
from support.small import demo_pipe

from stepcache import accelerate

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytestmark = pytest.mark.slow  # most of a minute on a core

SETTINGS = {
    "interval 2": {"interval": 2},
    "interval 3": {"interval": 3},
    "interval 5": {"interval": 5},
    '3, predict="auto"': {"interval": 3, "predict": "auto"},
}
SHOWN = {"accelerate": ["interval 3"], "intervals": list(SETTINGS)[:3], "predict": ["interval 3", '3, predict="auto"']}


def stored():
    return nbformat.read(EXAMPLES / "demo.ipynb", as_version=4)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The outputs of each code cell, by its id."""
    folder, notebook = tmp_path_factory.mktemp("kernel"), stored()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(name, str(folder / name))
        patch.setenv("OMP_NUM_THREADS", "1")
        (folder / "work").mkdir()
        resources = {"metadata": {"path": str(folder / "work")}}
        nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert not list((folder / "work").iterdir())
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


@pytest.fixture(scope="module")
def images():
    """The notebook's images, by the names in it."""

    def make():
        return pipe("fox face", guidance_scale=3.0, generator=seeded()).images[0]

    pipe = demo_pipe()
    return {"original": make(), **{name: accelerate(pipe, **each) and make() for name, each in SETTINGS.items()}}


def text_of(outputs):
    return "".join(each.text for each in outputs if each.output_type == "stream" and each.name == "stdout")


def runs_of(outputs):
    """Seconds and PSNR (None for the original) by name, from the lines "NAME: SECONDS s, PSNR dB"."""
    found = {}
    for line in text_of(outputs).splitlines():
        name, seconds, psnr = re.fullmatch(r"(.+): (\d+\.\d\d) s(?:, (\d+\.\d) dB)?", line).groups()
        found[name] = float(seconds), psnr and float(psnr)
    return found


def psnr(image, reference):
    a, b = (np.asarray(each, dtype=np.float64) / 255 for each in (image, reference))
    return -10 * np.log10(((a - b) ** 2).mean())


def test_it_is_stored_without_outputs():
    nbformat.validate(stored())
    code = [cell for cell in stored().cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count or cell.metadata for cell in code)


@pytest.mark.parametrize("cell", SHOWN)
def test_its_figures_are_those_of_the_images(cell, cells, images):
    runs = runs_of(cells[cell])
    assert list(runs) == ["original", *SHOWN[cell]] and all(seconds > 0 for seconds, _ in runs.values())
    assert runs["original"][1] is None
    for name in SHOWN[cell]:
        assert runs[name][1] == pytest.approx(psnr(images[name], images["original"]), abs=0.2), name


@pytest.mark.parametrize("cell", SHOWN)
def test_its_pictures_are_the_images_side_by_side(cell, cells, images):
    (data,) = (each.data for each in cells[cell] if each.output_type == "display_data")
    sheet = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    names = ["original", *SHOWN[cell]]
    assert sheet.size == (200 * len(names), 232)
    for column, name in enumerate(names):
        part = sheet.crop((200 * column, 0, 200 * column + 192, 192)).resize((64, 64), Image.Resampling.NEAREST)
        # The kernel does not flush denormals.
        assert np.abs(np.asarray(part, dtype=int) - np.asarray(images[name])).max() <= 2, name


def test_what_it_says_of_the_settings_is_true(cells):
    levels = [runs_of(cells["intervals"])[name][1] for name in SHOWN["intervals"]]
    assert levels == sorted(levels, reverse=True)
    hold, auto = (runs_of(cells["predict"])[name][1] for name in SHOWN["predict"])
    assert auto > hold


def test_it_shows_the_record(cells):
    assert text_of(cells["record"]).startswith(f"{'FPP' * 16}FP: 50 steps, sizes 2x4x16x16, ")


def test_restored_is_the_original(cells):
    (result,) = cells["restore"]
    assert result.data["text/plain"] == "True"
