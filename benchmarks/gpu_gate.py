"""The gate: tests, kernels, profile and the grid's most telling cells on a machine with a GPU, in nine minutes.

    python3 benchmarks/gpu_gate.py --out DIR        # from a bare checkout: no network, no install, no pip
    python3 benchmarks/gpu_gate.py --list           # the jobs, in order of worth, with the seconds they may take
    python3 benchmarks/gpu_gate.py --dry-run        # all of the script on a CPU, in small sizes

The machine needs torch with CUDA, triton, transformers and diffusers; for the tests pytest, hypothesis, accelerate and
peft, and pytest-xdist to run them side by side. The oldest versions that it must run on: Python 3.12, torch 2.11,
triton 3.6, transformers 5.17, huggingface_hub 1.33. What the machine lacks comes beside the checkout as wheels of pure
Python. To get them where there is a network:

    mkdir -p wheels && echo /wheels/ >> .git/info/exclude
    python3 -m pip download --no-deps -d wheels diffusers==0.42.1 DeepCache==0.1.1 importlib_metadata

Where the checkout has no .git, `--commit COMMIT` says what it is (`git rev-parse --short=12 HEAD`). For the jobs that
did not fit into the nine minutes, call again at the same commit, with what the first call gave:

    python3 benchmarks/gpu_gate.py --out DIR2 --continue DIR

Jobs run in order of worth, each in a process of its own; one that fails, crashes or hangs is named and the next has its
turn. Figures stand on their own results: a cell's are written where its images are those of the same schedule run
eager, a kernel's where its results are as near to float64 as the stock operations'. Red tests are named first and hold
up nothing here, but `make tables` leaves out what a GPU measured at their commit (gate.csv says so: it belongs into
benchmarks/results with the other CSVs). What was cut short holds up nothing either.

What comes back in DIR, written as it goes: gate.csv (what became of each job), gate.log (all output), bench_gpu.csv,
profile_steps.csv and profile_compiled.csv, bench_<kernel>.csv, joins.csv. The last lines of the output are the
summary. Exit status: 0 all done; 1 something failed: tests, a kernel, a cell's images; 2 something is missing, and the
summary says what.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from a checkout that is not installed

from benchmarks.gate.cells import run_cell
from benchmarks.gate.checkout import environment
from benchmarks.gate.jobs import NOTE, RED, ROOT, Job, Outcome, Runner, read_outcomes
from benchmarks.gate.plan import DRY_TESTS, PIXELS, TESTS, dry_jobs, gpu_jobs, red_lines
from benchmarks.gate.summary import summary

# The file alone: importing the package would need torch, whose absence the gate reports.
commit_of = run_path(str(ROOT / "src" / "stepcache" / "bench" / "commit.py"))["commit_of"]

RESULTS = ROOT / "benchmarks" / "results"
NEEDED = ("torch", "triton", "diffusers", "transformers")
"""Without these nothing can be measured."""
WANTED = {
    "DeepCache": "the rival",
    "pytest": "all tests",
    **dict.fromkeys(("hypothesis", "accelerate", "peft"), "tests"),
}
"""Without these something is missing, and the rest goes on: package -> what."""


def run(args: argparse.Namespace) -> int:
    """Run the jobs, print the summary; returns the exit status."""
    start = time.monotonic()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    commit = commit_of(ROOT, args.commit or None)
    earlier = take_over(args.earlier, args.out, commit) if args.earlier else []
    with tempfile.TemporaryDirectory(prefix="stepcache-gate-") as folder:
        wheels = args.wheels or (ROOT / "wheels" if (ROOT / "wheels").is_dir() else None)
        variables = environment(Path(folder), wheels)
        variables["STEPCACHE_COMMIT"] = commit
        # The joins' verdicts are a result, and what is measured after them runs by them.
        variables["STEPCACHE_CACHE"] = str(args.out)
        jobs = jobs_of(args, Path(folder))
        runner = Runner(args.out, variables, start + 60 * args.minutes, earlier=earlier, commit=commit)
        runner.say(f"Commit {commit or 'unknown, see --commit'}, wheels {wheels or 'none'}, results to {args.out}.")
        runner.run(jobs)
    return report(args.out, runner, [job.name for job in jobs], args.dry_run)


def jobs_of(args: argparse.Namespace, scratch: Path) -> list[Job]:
    """The jobs that were asked for. SystemExit where one of them is not known."""
    jobs = dry_jobs(args.out, scratch, args.tests) if args.dry_run else gpu_jobs(args.out, scratch)
    if unknown := sorted(set(args.only) - {job.name for job in jobs}):
        raise SystemExit(f"--only: there is no job {', '.join(unknown)}; --list names them.")
    return [job for job in jobs if not args.only or job.name in args.only]


def report(out: Path, runner: Runner, jobs: Sequence[str], dry: bool) -> int:
    """Print what was found, what is red before all else, and what is missing; returns the exit status."""
    outcomes = runner.outcomes
    failed = [name for name in jobs if name in outcomes and outcomes[name].status == "failed"]
    red = [name for name in failed if name in TESTS]
    for name in failed:
        print(f"\n{RED} {name}: {outcomes[name].detail}")
        output = runner.output(name)
        print(*(red_lines(output)[:20] if name in red else []), *output.splitlines()[-30:], sep="\n  ")
    print("\n" + summary(out, [*outcomes.values()]) + "\n")
    if dry:
        print("A dry run: no GPU, no GPU tests; the kernels' benchmarks compared results and timed nothing.")
    missing = [name for name in jobs if name not in outcomes or outcomes[name].status in ("cut short", "not begun")]
    if missing:
        print(f"Missing: {', '.join(missing)}. What there is lies in {out}.")
    if red:
        print(f"{RED} TESTS: {', '.join(red)}. `make tables` leaves out this commit's figures of a GPU.")
    if failed:
        print(f"{RED}: {', '.join(failed)}. What is wrong stands above the summary.")
    if not failed and not missing:
        print(f"All {len(jobs)} jobs done; results in {out}.")
    return 1 if failed else 2 if missing else 0


def take_over(folder: Path, out: Path, commit: str) -> list[Outcome]:
    """Copy the CSVs of an earlier run of the same commit to `out`; returns what became of its jobs.

    The environment is left out: it may be another machine's now. SystemExit where there is nothing of this commit.
    """
    files = sorted(folder.glob("*.csv"))
    if not any(path.name == "gate.csv" for path in files):
        raise SystemExit(f"--continue {folder}: there is no gate.csv, so nothing to continue.")
    outcomes = read_outcomes(folder / "gate.csv")
    bare = commit.removesuffix("-dirty")  # what the first run wrote into the checkout makes it so
    mine = [outcome for outcome in outcomes if outcome.commit.removesuffix("-dirty") == bare]
    if outcomes and not mine:
        there = ", ".join(sorted({outcome.commit or "unknown" for outcome in outcomes}))
        raise SystemExit(f"--continue {folder}: it is of commit {there}, and this is {commit or 'unknown'}.")
    for path in files:
        if path.resolve() != (out / path.name).resolve():
            shutil.copyfile(path, out / path.name)
    return [outcome for outcome in mine if outcome.job != "environment"]


def report_environment(dry: bool) -> None:
    """Print what this process runs on. SystemExit where something is missing that cannot be done without."""
    wrong = [text for name in NEEDED if (text := import_error(name))]
    if wrong:
        raise SystemExit(f"{'; '.join(wrong)}. Put what is missing beside it as wheels (see the top of gpu_gate.py).")
    import stepcache.kernels
    import torch

    from stepcache.bench.rows import Rig

    for name, value in vars(Rig.now()).items():
        print(f"{name}: {value}")
    print(f"CUDA of torch: {torch.version.cuda}, stepcache from {Path(stepcache.__file__).resolve().parent}")
    if torch.cuda.is_available():
        from benchmarks.kernels.bench import driver_version

        free, total = torch.cuda.mem_get_info()
        print(f"driver: {driver_version()}, memory: {free >> 20} of {total >> 20} MiB free")
    elif not dry:
        raise SystemExit("torch sees no CUDA GPU here. --dry-run tries the script without one.")
    for name, what in WANTED.items():
        if text := import_error(name):
            print(f"{NOTE}without {what}, since {text}.")


def import_error(name: str) -> str:
    """Why that package cannot be imported, "" where it can: diffusers looks for packages and versions by itself."""
    try:
        import_module(name)
    except Exception as error:
        return f"{name}: {' '.join(str(error).split())[:300] or type(error).__name__}"
    return ""


def tune(model: str) -> int:
    """The joins of that architecture both ways, as the command measures them. STEPCACHE_CACHE is set: to --out."""
    from stepcache.cli import main as stepcache

    return stepcache(["tune", model, "--size", str(PIXELS[model])])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of CSVs and log (default benchmarks/results)")
    parser.add_argument("--minutes", type=float, default=9.0, help="that all of it may take (default 9)")
    parser.add_argument("--wheels", type=Path, help="folder of wheels (default: wheels/ of the checkout, if there)")
    parser.add_argument("--commit", default="", help="of this checkout, where there is no .git to tell")
    parser.add_argument(
        "--continue", dest="earlier", type=Path, metavar="DIR", help="results of an earlier run: do what is missing"
    )
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="JOB", help="these jobs, by name; a job that needs others says so"
    )
    parser.add_argument("--list", action="store_true", help="print the jobs and end")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, small sizes")
    for name, options in (
        ("--tests", {"nargs": "+", "default": DRY_TESTS}),  # what a dry run has in the place of its own
        ("--environment", {"action": "store_true"}),  # the rest are what the gate starts
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
            print(f"{job.name:24} begun with {job.least:3.0f} s left, takes at most {job.most:3.0f} s")
    else:
        return run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
