"""What a run will cost on this machine, before it starts: ``python -m maskmill.plan [TARGET ...] [--profile NAME]``.

For every stage: pictures, U-Net calls, hours from a measurement of ten seconds, disk and memory; then what there is of
disk and memory, which weights and data sets are found, and for a missing one the line that gets it. Nothing is written.
Exit code 1 if the run cannot end well, 2 if parameters or pipeline cannot be read.

    python -m maskmill.plan                                         # the whole pipeline with params.yaml
    python -m maskmill.plan --profile sd14 --quick                  # the papers' values, without measuring
    python -m maskmill.plan tables/diffusionseg-tab3/dvc.yaml       # a table, with what it needs of the main pipeline
    python -m maskmill.plan attentioncut@test                       # a stage, with what it needs; as dvc repro takes it

Hours are those of a run from nothing: what DVC finds up to date is not run again. A call is one sample at one time
step; "there" is the share of a stage's disk that files of its outputs take now. What other programs do at the same
time slows the measurement as it slows the run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from maskmill import params as parameters
from maskmill import profiles
from maskmill.cli import runtime
from maskmill.errors import exit_cleanly


def read_text(path: Path, profile: str, folder: Path) -> tuple[str, str]:
    """The text of params.yaml, with a profile's values if one is named, and what to call it."""
    parameters.load(path)
    text = path.read_text(encoding="utf-8")
    if not profile:
        return text, str(path)
    file = folder / f"{profile}.yaml"
    return profiles.patch(text, profiles.read(file)), str(file)


def cache_types(root: Path) -> str:
    """DVC's ``cache.type`` of this repository; '' for its default."""
    from dvc.config import Config

    if not (root / ".dvc").is_dir():
        return ""
    return ",".join(Config(str(root / ".dvc"), validate=False).get("cache", {}).get("type", ""))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m maskmill.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", default=["dvc.yaml"], metavar="target",
                        help="what dvc repro would be told: dvc.yaml files, stages (default: dvc.yaml)")  # fmt: skip
    parser.add_argument("--profile", default="", help="plan with the values of profiles/NAME.yaml")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("profiles"), help="of profiles (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="do not measure: counts, disk and needs only")
    parser.add_argument("--seconds", type=float, default=10.0, help="to measure for (default: %(default)s)")
    args = parser.parse_args()
    text, name = read_text(args.params, args.profile, args.folder)
    settings, root = runtime(batch=8), Path.cwd()

    from maskmill.plan import costs, machine, needs, pipeline, report, shapes  # late: --help does without torch

    p = parameters.loads(text, name)
    stages = pipeline.read(root, text, args.targets)
    ledger = costs.Ledger(root, text, name, shapes.of_model(p.model.id))
    jobs = costs.count(stages, ledger)
    wanted = needs.needs(jobs, p)
    rates = None if args.quick else report.measure(jobs, ledger.shape, settings, args.seconds)
    found = report.Machine(
        settings, machine.free_memory(), machine.free_disk(root / "data"),
        None if settings.device == "cpu" else machine.free_device_memory(settings.device),
        machine.copies(cache_types(root)),
    )  # fmt: skip
    plan = report.Plan(name, p, ledger.shape, jobs, wanted, rates, found, root)
    print(report.table(plan))
    problems = report.problems(plan)
    if problems:
        print("\nThis run cannot end well:", file=sys.stderr)
        for line in problems:
            print(f"- {line}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    exit_cleanly(main)

