"""A model of Stable Diffusion 1.4's size through two stages: what one sample costs in time, memory and on disk.

    python bench/sd14_size.py --work scratch/sd14           # random weights, made first: 4.3 GB of disk, 9 GB of memory
    python bench/sd14_size.py --work scratch/sd14 --model models/stable-diffusion-v1-4 --steps 40

Writes the sd14 profile's parameters to a file of its own, then runs stages/prompts.py, generate.py and attentioncut.py
with them as a user would. With random weights the masks mean nothing; sizes and times are those of the real model.
On two busy cores without a GPU, 2 images of 2 steps take several minutes. Exit code 1 if a record exceeds 2.5 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from maskmill import profiles, store
from maskmill.errors import UserError, exit_cleanly

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 2.5e6  # bytes of a sample's attention record


def write_params(work: Path, profile: str, model: str, dtype: str, steps: int, count: int) -> Path:
    """The profile's parameters with this run's model and counts, and without the models that it does not need."""
    changes = profiles.read(ROOT / "profiles" / f"{profile}.yaml")
    changes |= {"model.id": model, "model.revision": "", "model.dtype": dtype, "model.clip": "", "generate.filter": 0.0,
                "generate.steps": steps, "prompts.source": "grammar", "prompts.count": count}  # fmt: skip
    path = work / "params.yaml"
    path.write_text(profiles.patch((ROOT / "params.yaml").read_text(encoding="utf-8"), changes), encoding="utf-8")
    return path


def run(name: str, *argv: object, params: Path, batch: int) -> dict[str, float]:
    """Run a stage; -> its seconds and the peak memory of all stages so far in GB."""
    command = [sys.executable, str(ROOT / "stages" / f"{name}.py"), "--params", str(params), *map(str, argv)]
    start = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, "MASKMILL_BATCH": str(batch), "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise UserError(f"stages/{name}.py: expected it to end well, got exit code {done.returncode}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"seconds": round(time.perf_counter() - start, 1), "peak_gb": round(peak / 1e9, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model and what is made with it")
    parser.add_argument("--model", default="", help="a model folder (default: random weights, made in --work)")
    parser.add_argument("--profile", default="sd14", help="(default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="(default: %(default)s)")
    parser.add_argument("--count", type=int, default=2, help="images (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images at once (default: %(default)s)")
    args = parser.parse_args()
    work = args.work
    work.mkdir(parents=True, exist_ok=True)
    model = Path(args.model or work / "model")
    if not model.exists():
        subprocess.run([sys.executable, str(ROOT / "bench/make_sd_folder.py"), "--out", str(model)], check=True)
    params = write_params(work, args.profile, str(model.resolve()), args.dtype, args.steps, args.count)
    prompts, made, masks = work / "prompts.csv", work / "generated", work / "masks"
    run("prompts", "--out", prompts, params=params, batch=1)
    report = {"model": str(model), "images": args.count, "steps": args.steps}
    report["generate"] = run(
        "generate", "--prompts", prompts, "--out", made, "--scratch", work / "scratch", params=params, batch=args.batch
    )
    report["attentioncut"] = run(
        "attentioncut", "--images", made / "set", "--records", made / "records", "--out", masks,
        "--metrics", work / "attentioncut.json", params=params, batch=1,
    )  # fmt: skip
    records = store.Store(made / "records")
    size = sum(p.stat().st_size for p in (made / "records").glob("*.safetensors")) / len(records)
    report["record_mb"] = round(size / 1e6, 3)
    report["record"] = {k: list(v.shape) for k, v in sorted(records.read(records.ids[0]).items())}
    print(json.dumps(report, indent=1))
    if size > LIMIT:
        raise UserError(f"{made / 'records'}: expected at most {LIMIT / 1e6} MB a sample, got {size / 1e6:.2f}")


if __name__ == "__main__":
    exit_cleanly(main)
