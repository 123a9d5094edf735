"""Scores that need a trained network, LPIPS and the CLIP score. The weights must be on this machine already.

Images are [H, W, 3] in 0..1 (a pipeline's output_type="np").
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import InvalidSetting, StepCacheError
from .pictures import eight_bit


class Lpips:
    """LPIPS with AlexNet: a perceptual distance, 0 for identical images, lower is closer.

    Source: Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric, CVPR 2018; the
    `lpips` package. InvalidSetting, naming what is missing, without the weights.
    """

    def __init__(self, device: str) -> None:
        if missing := missing_for_lpips():
            raise InvalidSetting(missing)
        import lpips  # type: ignore[import-not-found,unused-ignore]

        self._device = device
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses a deprecated argument of torchvision's
            self._net = lpips.LPIPS(net="alex", verbose=False).eval().requires_grad_(False).to(device)

    def __call__(self, image: np.ndarray, original: np.ndarray) -> float:
        """The distance of two images of the same size."""
        with torch.no_grad():
            return float(self._net(self._tensor(image), self._tensor(original)))

    def _tensor(self, image: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(image, np.float32)).permute(2, 0, 1)[None]
        return (2 * pixels - 1).to(self._device)


def missing_for_lpips() -> str:
    """What LPIPS lacks on this machine, and what to do about it; "" if nothing."""
    packages = [name for name in ("lpips", "torchvision") if importlib.util.find_spec(name) is None]
    if packages:
        return (
            f"LPIPS needs the package{'s' if len(packages) > 1 else ''} {' and '.join(packages)} (pip install "
            f"{' '.join(packages)}), and AlexNet's weights in torch's hub cache ({torch.hub.get_dir()})."
        )
    try:
        from torchvision.models import AlexNet_Weights  # type: ignore[import-not-found,unused-ignore]
    except (ImportError, RuntimeError) as error:  # built for another torch
        return f"LPIPS needs a torchvision for torch {torch.__version__}; the one here fails: {error}."

    # `lpips` comes with the weights on top of AlexNet's features. AlexNet's own are torchvision's.
    url = AlexNet_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return ""
    return f"LPIPS needs AlexNet's weights in {path}, and nothing is downloaded here; they are at {url}."


class ClipScore:
    """The CLIP score: 100 times the cosine between the embeddings of image and prompt; higher is a better fit.

    path: the directory of a transformers CLIPModel, with its tokenizer and image processor. StepCacheError if it cannot
    be loaded. Source: Hessel et al., CLIPScore, EMNLP 2021; negative values are kept.
    """

    def __init__(self, path: Path, device: str) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        if not (path / "config.json").is_file():
            raise InvalidSetting(
                f"--clip {str(path)!r} is not the directory of a CLIP model: there is no {path / 'config.json'}. Give "
                "one that CLIPModel.save_pretrained wrote; nothing is downloaded."
            )
        try:
            self._model = CLIPModel.from_pretrained(path, local_files_only=True, dtype=torch.float32)
            self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            self._processor = CLIPImageProcessor.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, TypeError, AttributeError, ImportError, RuntimeError) as error:
            raise StepCacheError(f"--clip {path} cannot be loaded: {error}") from error
        self._model.eval().requires_grad_(False).to(device)
        self._device = device
        self._limit = self._model.config.text_config.max_position_embeddings

    def __call__(self, image: np.ndarray, prompt: str) -> float:
        """The score of one image. The prompt is cut off at the model's limit."""
        text = self._tokenizer(prompt, truncation=True, max_length=self._limit, return_tensors="pt")
        pixels = self._processor(images=Image.fromarray(eight_bit(image)), return_tensors="pt")
        inputs = {
            "input_ids": text.input_ids,
            "attention_mask": text.attention_mask,
            "pixel_values": pixels.pixel_values,
        }
        with torch.no_grad():
            output = self._model(**{name: value.to(self._device) for name, value in inputs.items()})
        return 100 * float(torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds))
