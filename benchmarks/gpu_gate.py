"""The GPU gate: tests, kernels, profiles and the most important cells of the benchmark grid, in nine minutes.

    python3 benchmarks/gpu_gate.py --out DIR        # on a machine with a CUDA GPU, from a checkout; nothing to install
    python3 benchmarks/gpu_gate.py --list           # the jobs, most important first, and the seconds they may take
    python3 benchmarks/gpu_gate.py --dry-run        # the whole script on a CPU, in small sizes

It needs torch with CUDA, triton, diffusers and transformers, in versions that pyproject.toml allows. The tests need
pytest, hypothesis, accelerate and peft too, and run in parallel with pytest-xdist; DeepCache is the rival. Nothing is
downloaded. Pure Python packages that the machine lacks can be fetched elsewhere, into wheels/ (or `--wheels`):

    python3 -m pip download --no-deps -d wheels diffusers==0.42.1 DeepCache==0.1.1 importlib_metadata
    echo /wheels/ >> .git/info/exclude              # or the rows say that the checkout was changed

For a copy of the checkout without .git, pass `--commit COMMIT` (`git rev-parse --short=12 HEAD`). To run jobs for which
there was no time, call it again at the same commit with the first results:

    python3 benchmarks/gpu_gate.py --out DIR2 --continue DIR

Each job is a process. If one fails, crashes or hangs, it is reported and the next one starts. Each checks its own
results: a cell has figures only if its images match those of the same schedule run eager, a kernel only if its results
are as close to float64 as the stock operations'. Failed tests stop no other job, but `make tables` leaves out the GPU
figures of their commit. It reads that from gate.csv, so copy this file to benchmarks/results with the other CSVs.

Results are written to DIR as they come: gate.csv (how each job ended), gate.log (all output), bench_gpu.csv,
profile_steps.csv, profile_compiled.csv, bench_<kernel>.csv, joins.csv. The output ends with a summary. Exit status: 0
all done; 1 something failed (tests, a kernel, a cell's images); 2 some jobs did not finish, which the summary names.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from runpy import run_path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this is a script: `benchmarks` is not on the path

from benchmarks import RESULTS, ROOT
from benchmarks.gate.cells import run_cell
from benchmarks.gate.checkout import environment
from benchmarks.gate.jobs import NOTE, RED, Job, Outcome, Runner, read_outcomes
from benchmarks.gate.plan import DRY_TESTS, PIXELS, TESTS, dry_jobs, gpu_jobs, red_lines
from benchmarks.gate.summary import summary

# Only this file: importing the package needs torch, and the gate must be able to report that torch is missing.
commit_of = run_path(str(ROOT / "src" / "stepcache" / "bench" / "commit.py"))["commit_of"]

NEEDED = ("torch", "triton", "diffusers", "transformers")
"""Packages without which nothing can be measured."""
WANTED = {
    "DeepCache": "the rival",
    "pytest": "all tests",
    **dict.fromkeys(("hypothesis", "accelerate", "peft"), "tests"),
}
"""Optional packages, and what is missing without them."""


def run(args: argparse.Namespace) -> int:
    """Run the jobs and print the summary; returns the exit status."""
    start = time.monotonic()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    commit = commit_of(ROOT, args.commit or None)
    earlier = take_over(args.earlier, args.out, commit) if args.earlier else []
    with tempfile.TemporaryDirectory(prefix="stepcache-gate-") as folder:
        wheels = args.wheels or (ROOT / "wheels" if (ROOT / "wheels").is_dir() else None)
        variables = environment(Path(folder), wheels)
        variables["STEPCACHE_COMMIT"] = commit
        # The joins' verdicts are a result, and later jobs use them.
        variables["STEPCACHE_CACHE"] = str(args.out)
        jobs = jobs_of(args, Path(folder))
        runner = Runner(args.out, variables, start + 60 * args.minutes, earlier=earlier, commit=commit)
        runner.say(f"Commit {commit or 'unknown, see --commit'}, wheels {wheels or 'none'}, results to {args.out}.")
        runner.run(jobs)
    return report(args.out, runner, [job.name for job in jobs], args.dry_run)


def jobs_of(args: argparse.Namespace, scratch: Path) -> list[Job]:
    """The requested jobs. SystemExit for an unknown one."""
    jobs = dry_jobs(args.out, scratch, args.tests) if args.dry_run else gpu_jobs(args.out, scratch)
    if unknown := sorted(set(args.only) - {job.name for job in jobs}):
        raise SystemExit(f"--only: there is no job {', '.join(unknown)}; --list prints the names.")
    return [job for job in jobs if not args.only or job.name in args.only]


def report(out: Path, runner: Runner, jobs: Sequence[str], dry: bool) -> int:
    """Print failures first, then the summary and what is missing; returns the exit status."""
    outcomes = runner.outcomes
    failed = [name for name in jobs if name in outcomes and outcomes[name].status == "failed"]
    red = [name for name in failed if name in TESTS]
    for name in failed:
        print(f"\n{RED} {name}: {outcomes[name].detail}")
        output = runner.output(name)
        print(*(red_lines(output)[:20] if name in red else []), *output.splitlines()[-30:], sep="\n  ")
    print("\n" + summary(out, [*outcomes.values()]) + "\n")
    if dry:
        print("A dry run: no GPU, no GPU tests; the kernel benchmarks only compared results.")
    missing = [name for name in jobs if name not in outcomes or outcomes[name].status in ("cut short", "not begun")]
    if missing:
        print(f"Missing: {', '.join(missing)}. The other results are in {out}.")
    if red:
        print(f"{RED} TESTS: {', '.join(red)}. `make tables` leaves out this commit's GPU figures.")
    if failed:
        print(f"{RED}: {', '.join(failed)}. See above the summary.")
    if not failed and not missing:
        print(f"All {len(jobs)} jobs done; results in {out}.")
    return 1 if failed else 2 if missing else 0


def take_over(folder: Path, out: Path, commit: str) -> list[Outcome]:
    """Copy the CSVs of an earlier run of the same commit to `out`; returns the outcomes of its jobs.

    Without that of the job "environment", since this may be another machine. SystemExit if nothing is of this commit.
    """
    files = sorted(folder.glob("*.csv"))
    if not any(path.name == "gate.csv" for path in files):
        raise SystemExit(f"--continue {folder}: it has no gate.csv, so there is nothing to continue.")
    outcomes = read_outcomes(folder / "gate.csv")
    bare = commit.removesuffix("-dirty")  # the first run may have written files into the checkout
    mine = [outcome for outcome in outcomes if outcome.commit.removesuffix("-dirty") == bare]
    if outcomes and not mine:
        there = ", ".join(sorted({outcome.commit or "unknown" for outcome in outcomes}))
        raise SystemExit(f"--continue {folder}: it is of commit {there}, and this is {commit or 'unknown'}.")
    for path in files:
        if path.resolve() != (out / path.name).resolve():
            shutil.copyfile(path, out / path.name)
    return [outcome for outcome in mine if outcome.job != "environment"]


def report_environment(dry: bool) -> None:
    """Print what this process runs on. SystemExit if something necessary is missing."""
    wrong = [text for name in NEEDED if (text := import_error(name))]
    if wrong:
        raise SystemExit(f"{'; '.join(wrong)}. Install it, or put it into wheels/ (see the top of gpu_gate.py).")
    import stepcache.kernels
    import torch

    from stepcache.bench.rows import Rig

    for name, value in vars(Rig.now()).items():
        print(f"{name}: {value}")
    print(f"CUDA of torch: {torch.version.cuda}, stepcache from {Path(stepcache.__file__).resolve().parent}")
    if torch.cuda.is_available():
        from benchmarks.gpu import driver_version

        free, total = torch.cuda.mem_get_info()
        print(f"driver: {driver_version()}, memory: {free >> 20} of {total >> 20} MiB free")
    elif not dry:
        raise SystemExit("torch sees no CUDA GPU here. --dry-run checks the script without one.")
    for name, what in WANTED.items():
        if text := import_error(name):
            print(f"{NOTE}without {what}, since {text}.")


def import_error(name: str) -> str:
    """Why the package cannot be imported, or "". Importing it shows more than its version: diffusers checks others."""
    try:
        import_module(name)
    except Exception as error:
        return f"{name}: {' '.join(str(error).split())[:300] or type(error).__name__}"
    return ""


def tune(model: str) -> int:
    """`stepcache tune` for this architecture. STEPCACHE_CACHE is set to --out."""
    from stepcache.cli import main as stepcache

    return stepcache(["tune", model, "--size", str(PIXELS[model])])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of CSVs and log (default benchmarks/results)")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit for everything (default 9)")
    parser.add_argument("--wheels", type=Path, help="folder of wheels (default: wheels/ of the checkout, if it exists)")
    parser.add_argument("--commit", default="", help="of this checkout, if it has no .git")
    parser.add_argument(
        "--continue", dest="earlier", type=Path, metavar="DIR", help="results of an earlier run: do the rest"
    )
    parser.add_argument("--only", nargs="+", default=(), metavar="JOB", help="only these jobs, by name")
    parser.add_argument("--list", action="store_true", help="print the jobs and end")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, small sizes")
    for name, options in (
        ("--tests", {"nargs": "+", "default": DRY_TESTS}),  # of a dry run
        ("--environment", {"action": "store_true"}),  # this and the following are the gate's own jobs
        ("--tune", {"choices": PIXELS}),
        ("--cell", {}),
        ("--seconds", {"type": float}),
    ):
        parser.add_argument(name, help=argparse.SUPPRESS, **options)
    args = parser.parse_args(argv)
    if args.environment:
        report_environment(args.dry_run)
    elif args.tune:
        return tune(args.tune)
    elif args.cell:
        run_cell(args.cell, args.out, args.seconds)
    elif args.list:
        for job in jobs_of(args, args.out):
            print(f"{job.name:24} starts with {job.least:3.0f} s left, takes at most {job.most:3.0f} s")
    else:
        return run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
