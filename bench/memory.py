"""Peak memory of the stage ``generate`` against steps and against samples: it should grow with neither.

    python bench/memory.py --out scratch/memory                      # the miniature: about 6 minutes on one core
    python bench/memory.py --count-steps 2 --out scratch/memory      # samples at two steps: about 2 minutes
    python bench/memory.py --model models/stable-diffusion-v1-4 --profile sd14 --out scratch/memory

Runs the stage as a user would, in one worker, with the smaller number of samples at both numbers of steps and with both
numbers of samples at the first number of steps; each is a process of its own, whose largest resident size is what the
system tells of it at its end. On a GPU this is the memory beside it. Prints JSON; exit code 1 if either grows by 5% or
more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from maskmill import profiles
from maskmill.errors import UserError, exit_cleanly

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 5.0  # per cent


def write_params(path: Path, profile: str, model: str, samples: int) -> Path:
    """The parameters of a run: those of params.yaml, with a profile's values and a model folder's name if given."""
    changes = profiles.read(ROOT / "profiles" / f"{profile}.yaml") if profile else {}
    changes |= {"prompts.source": "grammar", "prompts.count": samples}
    if model:
        changes |= {"model.id": model, "model.revision": ""}
    path.write_text(profiles.patch((ROOT / "params.yaml").read_text(encoding="utf-8"), changes), encoding="utf-8")
    return path


def stage(name: str, *argv: object) -> tuple[float, float]:
    """Run a stage; -> its seconds and its largest resident size in bytes.

    ``wait4`` tells of this process and of those that it has waited for, where RUSAGE_CHILDREN would tell of all stages
    so far.
    """
    environment = {**os.environ, "MASKMILL_WORKERS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, str(ROOT / f"stages/{name}.py"), *map(str, argv)], cwd=ROOT,
                                   env=environment, stdout=subprocess.DEVNULL, stderr=said)  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise UserError(f"stages/{name}.py: expected it to end well, got exit code {process.returncode}: "
                            f"{said.read().decode(errors='replace').strip()[-300:]}")  # fmt: skip
    return time.perf_counter() - start, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def generate(work: Path, samples: int, steps: int, args: argparse.Namespace) -> dict[str, float]:
    """One run of the stage from nothing."""
    folder = work / f"{samples}-samples-{steps}-steps"
    folder.mkdir()
    params = write_params(folder / "params.yaml", args.profile, args.model, samples)
    prompts, places = folder / "prompts.csv", ("--out", folder / "out", "--scratch", folder / "scratch")
    stage("prompts", "--params", params, "--out", prompts)
    seconds, peak = stage("generate", "--params", params, "--prompts", prompts, *places,
                          "--generate.steps", steps, "--generate.filter", 0)  # fmt: skip
    print(f"{samples} samples, {steps} steps: {peak / 1e6:.1f} MB, {seconds:.0f} s", file=sys.stderr, flush=True)
    return {"samples": samples, "steps": steps, "peak_mb": round(peak / 1e6, 1), "seconds": round(seconds, 1)}


def growth(first: dict[str, float], second: dict[str, float]) -> float:
    """Per cent by which the second run's peak exceeds the first one's."""
    return round(100 * (second["peak_mb"] / first["peak_mb"] - 1), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made; must not exist yet")
    parser.add_argument("--model", default="", help="a model folder (default: that of params.yaml or the profile)")
    parser.add_argument("--profile", default="", help="take the values of profiles/NAME.yaml")
    parser.add_argument("--steps", type=int, nargs=2, default=(10, 40), help="(default: 10 40)")
    parser.add_argument("--samples", type=int, nargs=2, default=(16, 256), help="(default: 16 256)")
    parser.add_argument("--count-steps", type=int, default=0,
                        help="of the runs that differ in samples (default: the first of --steps)")  # fmt: skip
    args = parser.parse_args()
    if args.out.exists():
        raise UserError(f"{args.out}: expected no such folder yet")
    args.out.mkdir(parents=True)
    args.out = args.out.resolve()
    (few, many), (short, long), steps = args.samples, args.steps, args.count_steps or args.steps[0]
    runs = {key: generate(args.out, *key, args) for key in dict.fromkeys([(few, short), (few, long), (few, steps),
                                                                          (many, steps)])}  # fmt: skip
    report = {"runs": list(runs.values()),
              f"growth_from_{short}_to_{long}_steps_percent": growth(runs[few, short], runs[few, long]),
              f"growth_from_{few}_to_{many}_samples_percent": growth(runs[few, steps], runs[many, steps])}  # fmt: skip
    print(json.dumps(report, indent=1))
    if any(value >= LIMIT for key, value in report.items() if key.startswith("growth")):
        sys.exit(1)


if __name__ == "__main__":
    exit_cleanly(main)
