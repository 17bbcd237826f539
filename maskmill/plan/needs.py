"""Weights and data sets that a run needs: found, or missing with the line that says what to get and where to put it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from maskmill.datasets import semantic
from maskmill.datasets.benchmarks import COUNTS, ROLES, read_benchmark
from maskmill.diffusion.architectures import of_name, weight_counts
from maskmill.diffusion.backbone import check_folder
from maskmill.errors import UserError
from maskmill.hub import download, download_model, is_hub_id
from maskmill.params import Params
from maskmill.plan.costs import Job

FILES = ("*.json", "*.txt", "*.safetensors")
HOMES = {  # where a data set's authors give it
    "ecssd": "images.zip and ground_truth_mask.zip of www.cse.cuhk.edu.hk/leojia/projects/hsaliency/dataset.html",
    "duts_te": "DUTS-TE.zip of saliencydetection.net/duts",
    "duts_tr": "DUTS-TR.zip of saliencydetection.net/duts",
    "dut_omron": "DUT-OMRON-image.zip and DUT-OMRON-gt-pixelwise.zip.zip of saliencydetection.net/dut-omron",
    "cub": "CUB_200_2011.tgz and segmentations.tgz of www.vision.caltech.edu/datasets/cub_200_2011",
    "voc07": "VOCtrainval_06-Nov-2007.tar of host.robots.ox.ac.uk/pascal/VOC/voc2007",
    "voc12": "VOCtrainval_11-May-2012.tar of host.robots.ox.ac.uk/pascal/VOC/voc2012",
    "coco20k": "train2014.zip and annotations_trainval2014.zip of cocodataset.org, and the list of names of COCO20K",
}


@dataclass(frozen=True)
class Need:
    """Something that must be at hand. ``what`` names it and its parameter; ``line`` says what to do where it is not."""

    what: str
    found: bool
    line: str = ""
    optional: bool = False


# Stages that ask the diffusion model, if only for its tokenizer; those that ask CLIP.
TOKENS = {"prompts", "concept", "check_model", "generate", "invert_features"}
JUDGES = {"generate", "check_model", "generation_quality", "name_regions"}


def needs(jobs: Iterable[Job], p: Params) -> list[Need]:
    """What the stages of a run need."""
    scripts = {command.script for job in jobs for command in job.stage.commands}
    found = []
    users = [job.params.model for job in jobs if job.cost.calls or job.cost.trained
             or any(command.script in TOKENS for command in job.stage.commands)]  # fmt: skip
    found += [model(*key) for key in dict.fromkeys((m.id, m.revision, m.dtype) for m in users)]
    judged = any(job.params.invert_features.prior == "clip" and c.script == "invert_features"
                 for job in jobs for c in job.stage.commands)  # fmt: skip
    if p.model.clip and (judged or scripts & JUDGES):
        found.append(clip(p.model.clip))
    if p.prompts.source == "llm" and "prompts" in scripts:
        found.append(language_model(p.prompts.llm, p.prompts.llm_revision))
    if scripts & {"build_prototypes", "segment"}:
        found += networks(p)
    roles = {c.option("role") for job in jobs for c in job.stage.commands if c.script == "benchmarks"}
    for role in sorted(roles & set(ROLES)):
        found += data_sets(p, role)
    named = {c.option("name") for job in jobs for c in job.stage.commands if c.script == "semantic_benchmarks"}
    return found + [semantic_set(p, name) for name in sorted(named) if getattr(p.benchmarks, semantic.FOLDERS[name])]


def model(id: str, revision: str, dtype: str = "float32") -> Need:
    """The diffusion model, in a folder or in the hub's cache; of a folder every part is looked at."""
    what = f"model.id {id}{f' @ {revision}' if revision else ''}"
    folder = Path(id).expanduser()
    if folder.is_dir():
        try:
            check_folder(folder)
            return Need(what, True)
        except UserError as error:
            return Need(what, False, str(error))
    if not is_hub_id(id):
        return Need(what, False, f"{id}: no such folder; put a diffusers pipeline there, or set model.id to a hub id")
    known = of_name(id)
    if pipeline_in_cache(id, revision, dtype, len(known.encoders) if known else 1):
        return Need(what, True)
    size = f" ({sum(weight_counts(known).values()) * 4 / 1e9:.1f} GB in float32)" if known else ""
    return Need(what, False, download_model(id, revision) + size)


def pipeline_in_cache(id: str, revision: str, dtype: str, encoders: int) -> bool:
    """Whether the local cache holds a hub repository's index and the weights of each part, as they would be loaded."""
    parts = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    if encoders > 1:
        parts["text_encoder_2"] = "model"
    endings = (".fp16.safetensors", ".safetensors") if dtype == "float16" else (".safetensors",)
    return in_cache(id, revision, "model_index.json") and all(
        any(in_cache(id, revision, f"{part}/{stem}{ending}") for ending in endings) for part, stem in parts.items()
    )


def in_cache(id: str, revision: str, file: str) -> bool:
    """Whether a file of a hub repository is in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(id, file, revision=revision or None), (str, os.PathLike))


def clip(name: str, key: str = "model.clip") -> Need:
    """A CLIP model: a folder, or open_clip's ``name/tag`` in the hub's cache; ``key`` is its parameter."""
    import open_clip  # late: two seconds

    what, folder = f"{key} {name}", Path(name).expanduser()
    if folder.is_dir():
        whole = (folder / "open_clip_config.json").is_file() and any(folder.glob("*.safetensors"))
        return Need(what, whole, "" if whole else f"{name}: expected open_clip_config.json and *.safetensors in it")
    kind, _, tag = name.partition("/")
    if (kind, tag) not in open_clip.list_pretrained():
        return Need(what, False, f"{name}: expected a folder, or name/tag that open_clip lists; found neither")
    repository = (open_clip.get_pretrained_cfg(kind, tag).get("hf_hub") or "").strip("/")
    if not repository:
        return Need(what, False, f"{name}: open_clip has no safetensors of it; choose another tag")
    if any(in_cache(repository, "", f) for f in ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")):
        return Need(what, True)
    return Need(what, False, download(repository, "", key, ("*.json", "*.safetensors")))


def language_model(id: str, revision: str) -> Need:
    what = f"prompts.llm {id or '(none)'}"
    if not id:
        return Need(what, False, "set prompts.llm to a causal language model, or prompts.source to grammar")
    if Path(id).expanduser().is_dir() or in_cache(id, revision, "config.json"):
        return Need(what, True)
    line = download(id, revision, "prompts.llm", FILES)
    return Need(what, False, f"{line}; or set prompts.source to grammar")


def networks(p: Params) -> list[Need]:
    """The frozen networks that OVDiff compares pictures with, beside the diffusion model."""
    found = []
    for name in (n for n in p.extractors.names if n != "sd"):
        settings = getattr(p.extractors, name)
        if name == "clip" and (not settings.id or settings.id.partition("/")[0].startswith("ViT-")):
            need = clip(settings.id or p.model.clip, "extractors.clip.id")
        elif settings.id and (Path(settings.id).expanduser().is_dir()
                              or in_cache(settings.id, settings.revision, "config.json")):  # fmt: skip
            need = Need("", True)
        else:
            line = f"set extractors.{name}.id, or leave {name} out of extractors.names"
            if settings.id:
                line = download(settings.id, settings.revision, f"extractors.{name}.id", FILES)
            need = Need("", False, line)
        found.append(Need(f"extractors.{name}.id {settings.id or p.model.clip}", need.found, need.line))
    return found


def data_sets(p: Params, role: str) -> list[Need]:
    """The public data sets of a role. One that is named must be whole; those that are not named are left out."""
    found = []
    for key, name in ROLES[role].items():
        what = f"benchmarks.{key} {name}, {COUNTS[name]:,} images"
        if not getattr(p.benchmarks, key):
            line = f"not named, left out; {HOMES[key]}, unpacked into one folder, its path into benchmarks.{key}"
            found.append(Need(what, False, line, optional=True))
            continue
        try:
            read_benchmark(key, p.benchmarks)
            found.append(Need(what, True))
        except UserError as error:
            found.append(Need(what, False, f"{error}; {HOMES[key]}"))
    return found


def semantic_set(p: Params, name: str) -> Need:
    """A data set of semantic segmentation that is named; one that is not is the stage's trouble, or left out by it."""
    what = f"benchmarks.{semantic.FOLDERS[name]} {semantic.NAMES[name]}, {semantic.COUNTS[name][0]:,} images"
    try:
        semantic.read_semantic(name, p.benchmarks)
        return Need(what, True)
    except UserError as error:
        return Need(what, False, str(error))
