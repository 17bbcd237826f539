"""One worker against two with one thread each on the miniature's stage ``generate``: time, and file for file the same.

    python bench/workers.py --out scratch/workers                  # 960 pictures: half an hour on two idle cores
    python bench/workers.py --count 128 --kills 2 --out scratch/workers
    python bench/workers.py --ray --out scratch/workers            # the two workers are Ray's

Then runs it with two workers again, as often as --kills says, and each time kills one of them (SIGKILL) at a random
moment: nothing may be lost and nothing doubled, so the files must be those of one worker. Prints JSON; exit code 1 if
any file differs. The two timed runs take turns --repeats times; the ratio is that of the shortest times. What one
process does before and after its workers (libraries, copying) is part of both times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from maskmill import store
from maskmill.errors import UserError, exit_cleanly

ROOT = Path(__file__).resolve().parents[1]
RAY_WORKER = "ray::_Worker"


def command(prompts: Path, out: Path, scratch: Path) -> list[str]:
    return [sys.executable, str(ROOT / "stages/generate.py"), "--prompts", str(prompts), "--out", str(out),
            "--scratch", str(scratch)]  # fmt: skip


def environment(workers: int, ray: bool) -> dict[str, str]:
    more = {"MASKMILL_RAY": "local"} if ray and workers > 1 else {}
    return {**os.environ, "MASKMILL_WORKERS": str(workers), "MASKMILL_DEVICE": "cpu", "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1", **more}  # fmt: skip


def timed(prompts: Path, folder: Path, workers: int, ray: bool) -> float:
    """Run the stage; -> seconds."""
    start = time.perf_counter()
    done = subprocess.run(command(prompts, folder / "out", folder / "scratch"), env=environment(workers, ray), cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        raise UserError(f"stages/generate.py: expected it to end well, got exit code {done.returncode}: "
                        f"{done.stderr.strip()[-300:]}")  # fmt: skip
    return time.perf_counter() - start


def killed(prompts: Path, folder: Path, seconds: float, ray: bool) -> tuple[bool, str]:
    """Run it with two workers and kill one of them after ``seconds``; -> whether one died, what the stage said."""
    process = subprocess.Popen(command(prompts, folder / "out", folder / "scratch"), env=environment(2, ray), cwd=ROOT,
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)  # fmt: skip
    time.sleep(seconds)
    victims = workers_of(process.pid)
    if victims:
        os.kill(random.choice(victims), signal.SIGKILL)
    said = process.communicate()[1]
    if process.returncode:
        raise UserError(f"a run with a killed worker: expected it to end well, got exit code {process.returncode}: "
                        f"{said.strip()[-300:]}")  # fmt: skip
    return bool(victims), said


def workers_of(parent: int) -> list[int]:
    """The worker processes of a stage: its own children that compute, or Ray's workers below it."""
    below, processes = [parent], {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            processes[int(path.name)] = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # it ended meanwhile
    for pid in below:
        below += [child for child, its_parent in processes.items() if its_parent == pid]
    names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace") for pid in below[1:]}
    if any("ray" in name for name in names.values()):
        return [pid for pid, name in names.items() if name.startswith(RAY_WORKER)]
    return [pid for pid, its_parent in processes.items() if its_parent == parent]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made; must not exist yet")
    parser.add_argument("--count", type=int, default=960, help="pictures (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=5, help="runs with a killed worker (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="timed runs of each kind (default: %(default)s)")
    parser.add_argument("--ray", action="store_true", help="two workers of Ray's")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args()
    if args.out.exists():
        raise UserError(f"{args.out}: expected no such folder yet")
    args.out.mkdir(parents=True)
    random.seed(args.seed)
    prompts = args.out / "prompts.csv"
    subprocess.run([sys.executable, str(ROOT / "stages/prompts.py"), "--out", str(prompts), "--prompts.count",
                    str(args.count)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)  # fmt: skip
    took: dict[int, list[float]] = {1: [], 2: []}
    hashes = set()
    for _ in range(args.repeats):
        for workers in (1, 2):
            folder = args.out / f"workers-{workers}"
            shutil.rmtree(folder, ignore_errors=True)
            took[workers].append(timed(prompts, folder, workers, args.ray))
            hashes.add(store.hash_tree(folder / "out"))
            print(f"{workers} workers: {took[workers][-1]:.1f} s", file=sys.stderr, flush=True)
    deaths = 0
    for k in range(args.kills):
        folder = args.out / f"killed-{k}"
        moment = random.uniform(0.15, 0.85) * min(took[2])
        died, said = killed(prompts, folder, moment, args.ray)
        deaths += died and "a worker died" in said
        hashes.add(store.hash_tree(folder / "out"))
        print(f"killed after {moment:.1f} s: {said.strip().splitlines()[-1:]}", file=sys.stderr, flush=True)
        shutil.rmtree(folder)
    best = {workers: min(times) for workers, times in took.items()}
    report = {"pictures": args.count, "seconds": {w: [round(t, 1) for t in times] for w, times in took.items()},
              "ratio": round(best[1] / best[2], 3), "identical": len(hashes) == 1, "kills": args.kills,
              "deaths_seen": deaths, "ray": args.ray}  # fmt: skip
    print(json.dumps(report, indent=1))
    if len(hashes) != 1:
        raise UserError(f"{args.out}: expected the same files of every run, got {len(hashes)} different sets")


if __name__ == "__main__":
    exit_cleanly(main)
