"""Names of models on the hub, and the one line that says how to get a missing one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # of a pipeline; neither loaded nor downloaded
# What to take of a hub repository: no halves, no non_ema, no single files of all parts, no safety checker of 1.2 GB.
OF_PIPELINE = ("*.json", "*.txt", "*/*model.safetensors")


def is_hub_id(model_id: str) -> bool:
    """Whether a model that is no folder here can be meant as ``owner/name`` on the hub."""
    parts = Path(model_id).parts
    return len(parts) == 2 and not model_id.startswith((".", "/", "~")) and parts[0] not in ("data", "models")


def download(id: str, revision: str, key: str, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> str:
    """The command that puts a hub repository into a folder, and the parameter ``key`` to set then."""
    at = f" --revision {revision}" if revision else ""
    more = "".join([f" --include '{p}'" for p in include] + [f" --exclude '{p}'" for p in exclude])
    place = f"models/{Path(id).name}"
    return f"hf download {id}{at}{more} --local-dir {place}, then set {key} to {place}"


def download_model(id: str, revision: str) -> str:
    """The command that gets what is needed of a diffusion model, and nothing else."""
    return download(id, revision, "model.id", OF_PIPELINE, [f"{part}/*" for part in UNUSED[:2]])
