"""The one JSON document that `--json` prints."""

from __future__ import annotations

import json
import math
from typing import Any


def print_document(document: dict[str, Any]) -> None:
    """Print it on stdout. Figures that are infinite or NaN, which JSON does not have, become null."""
    print(json.dumps(_finite(document), indent=2, allow_nan=False))


def decibels(psnr: float | None) -> dict[str, Any]:
    """`psnr_db`, and `identical`: null where nothing was compared, true where PSNR would be infinite."""
    return {"psnr_db": psnr, "identical": None if psnr is None else math.isinf(psnr)}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
