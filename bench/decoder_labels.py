"""Why is the miniature's decoder weaker than AttentionCut: its features, its labels, its pictures, or their number?

The same decoder is trained on (1) generated pictures with AttentionCut's masks, which is the method, (2) scenes of the
world with AttentionCut's masks, (3) the same scenes with exact masks, which no method may see; and scored on the
held-out scenes. (1) against (2) is what generated pictures cost, (2) against (3) what the labels cost.

    python bench/decoder_labels.py            # about 6 minutes on 2 cores, after dvc repro; works in scratch/

Scenes of draw 21, two objects each, 600 of them; all three with the same number of training pairs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HOME = Path("scratch/decoder_labels")
PAIRS = 540


def stage(name: str, *options: object) -> None:
    subprocess.run([sys.executable, f"stages/{name}.py", *map(str, options)], check=True)


def learn(name: str, images: Path, masks: str, features: Path) -> dict:
    """Train, segment the held-out scenes, score; -> the scores."""
    model, out, row = HOME / name / "model", HOME / name / "masks", HOME / f"{name}.json"
    stage(
        "train_decoder", "--images", images, "--masks", masks, "--features", features, "--out", model,
        "--scratch", HOME / name / "scratch", "--curve", HOME / name / "curve", "--train_decoder.pairs", PAIRS,
    )  # fmt: skip
    stage("decode", "--model", model, "--out", out)
    stage("score", "--masks", out, "--metrics", row)
    return json.loads(row.read_text())["datasets"][""]["scores"]


def main() -> None:
    scenes, inverted, cut = HOME / "scenes", HOME / "inverted", HOME / "cut"
    if not (inverted / "index.csv").is_file():
        stage("world", "--world.seeds", 21, "--world.test_count", 600, "--out", scenes)
        stage("invert_features", "--images", scenes, "--out", inverted, "--scratch", HOME / "scratch")
        stage("attentioncut", "--images", scenes, "--records", inverted / "records", "--out", cut,
              "--metrics", HOME / "cut.json")  # fmt: skip
    features = inverted / "features"
    found = {
        "generated pictures, AttentionCut's masks": learn(
            "generated", Path("data/generated/set"), "data/masks/generated", Path("data/inverted/generated/features")
        ),
        "scenes, AttentionCut's masks": learn("scenes-cut", scenes, str(cut), features),
        "scenes, exact masks": learn("scenes-exact", scenes, "own", features),
    }
    print(f"\n{PAIRS} pairs each; IoU on the held-out scenes, mean and spread over the draws")
    for name, scores in found.items():
        print(f"{name:44s} {scores['iou']:.3f} ± {scores['iou_std']:.3f}")


if __name__ == "__main__":
    main()
