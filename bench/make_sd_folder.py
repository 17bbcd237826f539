"""Make a model folder of Stable Diffusion's size with random weights, in the hub's layout: no download.

    python bench/make_sd_folder.py --out models/random-sd1                     # 4.3 GB, half a minute
    python bench/make_sd_folder.py --model sdxl --small --out models/small-sdxl  # 13 MB, all of XL's layers and parts

For measuring time, memory and the size of records, and for trying a pipeline from end to end before the weights are
there. Its pictures are noise, so its masks mean nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffusers.utils import logging
from transformers.utils import logging as transformers_logging

from maskmill.diffusion.architectures import ARCHITECTURES, save_random, small, weight_counts
from maskmill.errors import exit_cleanly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument("--model", choices=sorted(ARCHITECTURES), default="sd1", help="(default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="a tenth as wide")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    args = parser.parse_args()
    logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    chosen = ARCHITECTURES[args.model]
    chosen = small(chosen) if args.small else chosen
    folder = save_random(chosen, args.out, args.dtype)
    size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
    counts = ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in weight_counts(chosen).items())
    print(f"{folder}: {size / 1e9:.2f} GB; weights: {counts}")


if __name__ == "__main__":
    exit_cleanly(main)
