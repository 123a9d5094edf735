"""The options of `stepcache compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add_call, add_json, add_loading, add_pipeline, add_predict, add_reuse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the subcommand."""
    add_pipeline(parser)
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help="text: a prompt a line; lines that begin with # are comments. Or, if the name ends in .jsonl, an object a "
        'line: {"prompt": ..., "negative_prompt": ..., "seed": ..., "height": ..., "width": ...}, all but the first '
        "optional (default: 24 bundled prompts; for the demo 12 of the emoji that it knows)",
    )
    add_reuse(parser, "; several with commas, or repeated (default 0)")
    add_predict(parser)
    add_call(parser, steps=30)
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first prompt; the next ones count up (default 0)"
    )
    add_loading(parser)
    parser.add_argument(
        "--drift",
        metavar="N",
        type=int,
        default=3,
        help="measure the feature's drift on the first N prompts; each takes one more run (default 3)",
    )
    parser.add_argument(
        "--no-fewer-steps",
        action="store_true",
        help="leave out the original with fewer steps at no higher cost, which takes one more run a prompt for each "
        "setting, about as long as the setting's own (settings that cost the same number of steps share one)",
    )
    parser.add_argument(
        "--clip", metavar="DIR", type=Path, help="directory of a transformers CLIPModel, for CLIP scores"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("stepcache-compare.html"), help="the page (default stepcache-compare.html)"
    )
    parser.add_argument("--sheet", type=Path, help="the contact sheet (default: the page's name, with .png)")
    add_json(
        parser,
        "settings has the table's rows: name, kind, interval, branch, predict, steps, kinds, seconds, cost_full_calls, "
        "speedup, psnr_db, identical, ssim, lpips, clip, and the range or worst of some; closer says for each setting "
        "whether reuse or fewer steps come closer to the original; then model, summary, notes, missing (scores), "
        "prompts (done), prompts_asked, steps, rig, facts, page, pictures and sheet",
    )
    parser.epilog = "Ctrl-C keeps the prompts done. Exit status 2 if no image could be compared with its original."
