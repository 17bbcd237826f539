"""params.yaml as frozen dataclasses, read strictly: one clear line for an unknown key, a wrong type or a bad value.

The dataclasses below are the schema; a field's type says what the file must hold. To add a parameter, add a field here
and its line to params.yaml; nothing else. There are no defaults in code: params.yaml shows every value. What must not
change a result (device, workers, batch size) is no parameter, see ``maskmill.cli.runtime``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import yaml

from maskmill.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Bounds of a number, or of the length of a text or list: ``low <= x <= high`` and ``above < x``."""

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def admit(self, x: float) -> bool:
        return not (
            (self.low is not None and x < self.low)
            or (self.high is not None and x > self.high)
            or (self.above is not None and x <= self.above)
        )

    def __str__(self) -> str:
        parts = [] if self.above is None else [f"above {self.above}"]
        if self.low is not None and self.high is not None:
            parts.append(f"from {self.low} to {self.high}")
        elif self.low is not None:
            parts.append(f"of at least {self.low}")
        elif self.high is not None:
            parts.append(f"of at most {self.high}")
        return " and ".join(parts)


Count = Annotated[int, Limits(low=1)]
Whole = Annotated[int, Limits(low=0)]
Share = Annotated[float, Limits(0, 1)]
Weight = Annotated[float, Limits(low=0)]
Positive = Annotated[float, Limits(above=0)]
Word = Annotated[str, Limits(low=1)]
Counts = Annotated[tuple[Count, ...], Limits(low=1)]
Words = Annotated[tuple[Word, ...], Limits(low=1)]
Timestep = Annotated[int, Limits(0, 1000)]


@dataclass(frozen=True)
class Model:
    id: Word
    revision: str
    dtype: Literal["float32", "float16", "bfloat16"]
    clip: str


@dataclass(frozen=True)
class World:
    size: Annotated[int, Limits(low=16)]
    two_objects: Share
    test_two_objects: Share
    test_count: Count
    seeds: Annotated[tuple[Whole, ...], Limits(low=1)]


@dataclass(frozen=True)
class PretrainVae:
    channels: Counts
    latent_channels: Count
    steps: Count
    batch: Count
    lr: Positive
    kl_weight: Weight
    ema: Share
    decay_share: Share


@dataclass(frozen=True)
class PretrainClip:
    width: Count
    layers: Annotated[tuple[Count, ...], Limits(low=4, high=4)]
    embed_dim: Count
    steps: Count
    batch: Count
    lr: Positive
    ema: Share
    decay_share: Share


@dataclass(frozen=True)
class PretrainUnet:
    channels: Counts
    layers_per_block: Count
    heads: Count
    text_dim: Count
    context: Annotated[int, Limits(low=4)]
    steps: Count
    batch: Count
    lr: Positive
    t_low: Timestep
    t_high: Timestep
    uncond: Share
    ema: Share
    decay_share: Share


@dataclass(frozen=True)
class Pretrain:
    scenes: Count
    precision: Literal["float32", "bfloat16"]
    vae: PretrainVae
    clip: PretrainClip
    unet: PretrainUnet


@dataclass(frozen=True)
class Prompts:
    source: Literal["grammar", "templates", "file", "llm"]
    count: Count
    classes: Words
    file: str
    colour_share: Share
    place_share: Share
    second_share: Share
    llm: str
    llm_revision: str
    per_class: Count
    tries: Count
    words: Annotated[int, Limits(low=3)]


@dataclass(frozen=True)
class Generate:
    steps: Count
    solver: Literal["ddim", "dpmsolver++"]
    guidance: Weight
    negative: str
    filter: Share
    size: Annotated[int, Limits(low=16)]
    bins: Count
    cells: Count
    features: bool


@dataclass(frozen=True)
class InvertFeatures:
    steps: Count
    prior: Literal["dataset", "clip", "none", "scene", "absent"]
    labels: str
    template: Annotated[str, Limits(low=2)]
    features: bool
    path: Literal["up", "down"]
    limit: Whole


@dataclass(frozen=True)
class AttentionCut:
    """The fields of ``maskmill.masks.attentioncut.CutParams`` that a user sets; see there for what they do."""

    size: Whole
    top_k: Count
    t_max: Annotated[float, Limits(above=0, high=1)]
    tau: Share
    seeds: Count
    beta: Weight
    r_percentile: Annotated[float, Limits(above=50, high=100)]
    normalise: Literal["sum", "clip", "max"]
    midpoint: Annotated[float, Limits(0, 0.999)]
    eps: Annotated[float, Limits(above=0, high=0.499)]
    lambda_: Weight
    sigma: Positive
    neighbours: Literal[4, 8]
    use_cross: bool
    use_refined: bool
    semantic: bool
    spatial: bool


@dataclass(frozen=True)
class Evaluate:
    grid_rows: Count


@dataclass(frozen=True)
class Test:
    """Names of image sets under data/: what is segmented and scored."""

    set: Word
    single: Word
    train: Word


@dataclass(frozen=True)
class Benchmarks:
    """Folders of public data sets in the layouts as distributed, see ``maskmill.datasets``."""

    ecssd: str
    duts_te: str
    duts_tr: str
    dut_omron: str
    cub: str
    cub_split: str
    voc07: str
    voc12: str
    coco20k: str
    coco20k_list: str
    context: str
    coco_stuff164k: str
    ade20k: str
    cityscapes: str
    partial: bool


@dataclass(frozen=True)
class Tables:
    """Numbers of training pairs in the papers' tables; published: 1,000, 5,000, 10,000, and 1,000 to 100,000."""

    few: Count
    half: Count
    many: Count
    sweep: Counts
    encoder: Word
    end_to_end_steps: Count


@dataclass(frozen=True)
class Postprocess:
    """Off by default; ``maskmill.masks.refine`` says what they do."""

    bilateral: bool
    sigma_xy: Positive
    sigma_luma: Positive
    sigma_chroma: Positive
    smoothness: Weight
    largest: bool
    fill: bool


@dataclass(frozen=True)
class ExtractFeatures:
    """A frozen network beside the diffusion model, and what is taken of it; see ``maskmill.segmenters.extractors``."""

    family: Literal["clip", "dino", "mae", "moco"]
    id: Word
    revision: str
    facet: Literal["token", "key", "query", "value"]
    layers: Annotated[tuple[int, ...], Limits(low=1)]
    size: Count


@dataclass(frozen=True)
class RivalKMeans:
    size: Annotated[int, Limits(0, 64)]
    scale: Literal["l2", "centred", "standard"]
    components: Whole
    colour: Weight
    position: Weight
    attention: Weight
    clusters: Annotated[int, Limits(low=2)]
    keep: Share


@dataclass(frozen=True)
class RivalNcut:
    size: Annotated[int, Limits(0, 64)]
    scale: Literal["l2", "centred", "standard"]
    colour: Weight
    position: Weight
    attention: Weight
    tau: Annotated[float, Limits(-1, 1)]
    eps: Annotated[float, Limits(above=0, high=1)]
    segments: Annotated[int, Limits(low=2)]
    keep: Share


@dataclass(frozen=True)
class RivalCrf:
    size: Annotated[int, Limits(0, 64)]
    scale: Literal["l2", "centred", "standard"]
    components: Whole
    colour: Weight
    sigma_xy: Positive
    sigma_features: Positive
    sigma_smooth: Positive
    weight_features: Weight
    weight_smooth: Weight
    midpoint: Annotated[float, Limits(0, 0.999)]
    eps: Annotated[float, Limits(above=0, high=0.499)]
    iterations: Whole


@dataclass(frozen=True)
class Rivals:
    """Other methods on the same features and A_c; ``maskmill.masks.rivals`` says what their parameters do."""

    method: Literal["kmeans", "ncut", "crf"]
    kmeans: RivalKMeans
    ncut: RivalNcut
    crf: RivalCrf


@dataclass(frozen=True)
class Statistics:
    """How sets of masks are compared; ``maskmill.scores.geometry`` says what is measured."""

    tolerance: Positive
    pairs: Count
    polygons: Count


@dataclass(frozen=True)
class TrainDecoder:
    """See ``maskmill.training.Recipe`` and ``maskmill.segmenters.models.build``."""

    model: Literal["fcn", "unet", "deeplabv3"]
    pairs: Whole
    alone: bool
    validation: Annotated[float, Limits(0, 0.9)]
    size: Annotated[int, Limits(low=16)]
    width: Count
    kernel: Literal[1, 3]
    upsample: Count
    encoder: Word
    encoder_weights: str
    decoder_width: Count
    steps: Count
    batch: Count
    accumulate: Count
    lr: Positive
    decay_share: Share
    ema: Annotated[float, Limits(0, 0.99999)]
    precision: Literal["float32", "float16", "bfloat16"]
    flip: bool
    noise: Weight
    log_every: Count


@dataclass(frozen=True)
class Distill:
    """Concept distillation: what several of its stages share, and its U-Nets (read where dvc.yaml trains them)."""

    word: Word
    object: Annotated[str, Limits(low=2)]
    background: Word
    encoder: Word
    decoder_width: Count
    steps: Count
    batch: Count
    lr: Positive
    size: Annotated[int, Limits(low=16)]
    log_every: Count


@dataclass(frozen=True)
class Concept:
    """The pictures that all show one object, see ``maskmill.datasets.single_class``."""

    source: Literal["world", "folder", "cub", "dogs", "cars", "human36m"]
    root: str
    test_root: str
    split: str
    partial: bool
    least: Count
    count: Count
    seed: Whole
    test_count: Count
    test_seeds: Annotated[tuple[Whole, ...], Limits(low=1)]


@dataclass(frozen=True)
class MeanAttention:
    """Preliminary masks, see ``maskmill.diffusion.mean_attention`` and ``maskmill.masks.mixture``."""

    words: tuple[Word, ...]
    steps: Count
    t0: Count
    samples: Count
    min_contrast: Weight
    token_maps: bool


@dataclass(frozen=True)
class DistillInpaint:
    """Fine-tuning on the two concepts, see ``maskmill.diffusion.inpainting`` and ``maskmill.training.Recipe``."""

    grow: Whole
    steps: Count
    batch: Count
    accumulate: Count
    lr: Positive
    decay_share: Share
    ema: Annotated[float, Limits(0, 0.99999)]
    t_share: Share
    t_low: Timestep
    t_high: Timestep
    precision: Literal["float32", "float16", "bfloat16"]
    log_every: Count


@dataclass(frozen=True)
class RefineMasks:
    """Painting the object over, see ``maskmill.diffusion.inpainting.paint_over``."""

    grow: Whole
    steps: Count
    guidance: float


@dataclass(frozen=True)
class ConceptSet:
    """The synthetic set D'_s."""

    count: Count
    guidance: float
    steps: Count


@dataclass(frozen=True)
class AttentionCurves:
    """What the AUROC of the mean attention is measured against, see ``maskmill.diffusion.mean_attention``."""

    steps: Count
    t0: Counts
    token_t0: Count
    samples: Counts
    repeats: Count


@dataclass(frozen=True)
class GenerationQuality:
    """See ``maskmill.scores.generation``."""

    guidance: Annotated[tuple[float, ...], Limits(low=1)]
    count: Annotated[int, Limits(low=2)]
    steps: Count
    inception: str


@dataclass(frozen=True)
class Vocabulary:
    """The classes of OVDiff in the pipeline; every one is a stage of its own."""

    classes: Words


@dataclass(frozen=True)
class SupportSets:
    """How the support images of a class are generated (OVDiff 3.2)."""

    count: Count
    template: Annotated[str, Limits(low=2)]
    solver: Literal["ddim", "dpmsolver++"]
    steps: Count
    guidance: Weight
    negative: str
    size: Annotated[int, Limits(low=16)]


@dataclass(frozen=True)
class DiffusionQueries:
    """See ``maskmill.segmenters.features_of.QueryExtractor``."""

    t: Timestep
    size: Annotated[int, Limits(low=16)]
    side: Whole
    draws: Whole


@dataclass(frozen=True)
class FrozenNetwork:
    """See ``maskmill.segmenters.extractors.Extractor``."""

    id: str
    revision: str
    facet: Literal["token", "key", "query", "value"]
    layers: Annotated[tuple[int, ...], Limits(low=1)]
    size: Count


@dataclass(frozen=True)
class Extractors:
    """OVDiff's feature extractors, see ``maskmill.segmenters.features_of``."""

    names: Words
    sd: DiffusionQueries
    clip: FrozenNetwork
    dino: FrozenNetwork
    mae: FrozenNetwork


@dataclass(frozen=True)
class MaskCut:
    """See ``maskmill.masks.regions.maskcut``."""

    extractor: Word
    count: Count
    tau: Annotated[float, Limits(-1, 1)]
    eps: Annotated[float, Limits(above=0, high=1)]
    scale: Literal["l2", "centred", "standard"]
    corners: Annotated[int, Limits(1, 5)]


@dataclass(frozen=True)
class BuildPrototypes:
    """See ``maskmill.masks.regions`` and ``maskmill.segmenters.prototypes``."""

    regions: Literal["otsu", "maskcut", "proposals"]
    size: Whole
    t_max: Annotated[float, Limits(above=0, high=1)]
    proposals: str
    score: Share
    below: Share
    each: Literal["pixel", "region"]
    erode: Whole
    maskcut: MaskCut
    parts: Whole
    sample: Whole
    grid_rows: Count


@dataclass(frozen=True)
class Kinds:
    """Where it comes from which classes are things and which are stuff, see ``maskmill.segmenters.kinds``."""

    source: Literal["table", "llm"]
    llm: str
    llm_revision: str
    tries: Count


@dataclass(frozen=True)
class Segment:
    """How pictures are labelled with a bank of prototypes, see ``maskmill.segmenters.openvocab``."""

    kinds: Words
    background: Literal["prototypes", "threshold", "none"]
    threshold: Annotated[float, Limits(-1, 1)]
    short: Whole
    sizes: tuple[Count, ...]
    stride: Count
    whole: bool
    filter: bool
    subsets: bool
    eta: Annotated[int, Limits(1, 16)]
    stuff: bool
    similar: Annotated[float, Limits(-1, 1)]
    pamr: bool
    iterations: Whole
    dilations: Counts
    memory: Count
    prior: Literal["clip", "none"]


@dataclass(frozen=True)
class Params:
    """All of params.yaml. A field that ends in ``_`` (``lambda_``) is the key without it."""

    seed: Annotated[int, Limits(0, 2**31 - 1)]
    model: Model
    world: World
    pretrain: Pretrain
    prompts: Prompts
    generate: Generate
    invert_features: InvertFeatures
    attentioncut: AttentionCut
    evaluate: Evaluate
    test: Test
    benchmarks: Benchmarks
    postprocess: Postprocess
    extract_features: ExtractFeatures
    rivals: Rivals
    statistics: Statistics
    train_decoder: TrainDecoder
    distill: Distill
    concept: Concept
    mean_attention: MeanAttention
    distill_inpaint: DistillInpaint
    refine_masks: RefineMasks
    concept_set: ConceptSet
    attention_curves: AttentionCurves
    generation_quality: GenerationQuality
    vocabulary: Vocabulary
    support: SupportSets
    extractors: Extractors
    build_prototypes: BuildPrototypes
    kinds: Kinds
    segment: Segment
    tables: Tables


RANGES = tuple((f"{part}.t_low", f"{part}.t_high") for part in ("pretrain.unet", "distill_inpaint"))  # low below high


# --- reading ----------------------------------------------------------------------------------------------------------


def load(path: str | Path, overrides: Mapping[str, str | Sequence[str]] | None = None) -> Params:
    """Read and check a parameter file.

    Args:
        path: the YAML file; it must hold exactly the keys of ``Params``.
        overrides: dotted key -> text, as it was typed on a command line (a list of texts for a list).

    Raises:
        UserError: the file cannot be read or is no YAML; a key is unknown, missing or given twice; a value has the
            wrong type, is out of range, or is not below the one that ends its range. Names the file (or the option) and
            the dotted key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, got other bytes at position {error.start}") from None
    except OSError as error:
        raise UserError(f"{path}: expected a readable parameter file, got: {error.strerror}") from None
    return loads(text, str(path), overrides)


def loads(text: str, name: str, overrides: Mapping[str, str | Sequence[str]] | None = None) -> Params:
    """``load`` for text that is already in memory; ``name`` stands for the file in messages."""
    data = _parse(text, name)
    overrides = dict(overrides or {})
    kinds = dict(leaves(Params))
    for key, given in overrides.items():
        if key not in kinds:
            raise UserError(f"--{key}: unknown parameter{_nearest(key, kinds)}")
        if isinstance(data, dict):
            _set(data, key, _from_text(kinds[key], given, key))

    def where(key: str) -> str:
        option = key.partition("[")[0]
        return f"--{option}" if option in overrides else f"{name}: {key}"

    params = _section(Params, data, "", where, name)
    for low, high in RANGES:
        first, end = get(params, low), get(params, high)
        if first >= end:
            raise UserError(f"{where(low)}: expected a value below {high}, which is {end}, got {_show(first)}")
    return params


def _parse(text: str, name: str) -> Any:
    """YAML -> Python, where a key given twice is an error instead of a silent choice."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{name}: {line}expected valid YAML, got: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: expected valid YAML, got: {str(error).splitlines()[0]}") from None
    seen: set[str] = set()
    for key, mark in _keys(node, ""):
        if key in seen:
            raise UserError(f"{name}: line {mark.line + 1}: {key}: expected each key once, got it a second time")
        seen.add(key)
    return data


def _keys(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, yaml.Mark]]:
    """Dotted keys of a composed YAML document in order, each with the place where its value ends."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            yield dotted, value.end_mark
            yield from _keys(value, f"{dotted}.")


def comments(path: str | Path) -> dict[str, str]:
    """The comment that stands behind each key's value on its line: dotted key -> text. For ``--help``."""
    text = Path(path).read_text(encoding="utf-8")
    lines = text.splitlines()
    found = {}
    for key, mark in _keys(yaml.compose(text, Loader=yaml.SafeLoader), ""):
        rest = lines[mark.line][mark.column :].strip() if mark.line < len(lines) else ""
        if rest.startswith("#"):
            found[key] = rest.lstrip("# ")
    return found


def _set(data: dict, dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for section in sections:
        below = data.setdefault(section, {})
        if not isinstance(below, dict):
            return  # The file has something else where a section belongs; the check that follows says so.
        data = below
    data[last] = value


def _from_text(kind: Any, given: str | Sequence[str], key: str) -> Any:
    """What was typed on a command line, as YAML would have given it; text stays as it was typed."""
    base, _ = _split(kind)
    if get_origin(base) is tuple:
        item = get_args(base)[0]
        if isinstance(given, str):
            listed = given.strip().startswith("[")
            given = [str(v) for v in _parse(given, f"--{key}")] if listed else given.split()
        return [_from_text(item, text, key) for text in given]
    if not isinstance(given, str):
        raise UserError(f"--{key}: expected {describe(kind)}, got {len(given)} values: {' '.join(given)}")
    return given if is_text(kind) else _parse(given, f"--{key}")


# --- checking ---------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Resolved field types of a dataclass by YAML key."""
    hints = get_type_hints(cls, include_extras=True)
    return {yaml_key(f.name): hints[f.name] for f in dataclasses.fields(cls)}


def yaml_key(field: str) -> str:
    """The key of a field: ``lambda_`` -> ``lambda`` (a word that Python keeps for itself)."""
    return field.removesuffix("_")


def _split(kind: Any) -> tuple[Any, Limits | None]:
    if get_origin(kind) is Annotated:
        base, *extra = get_args(kind)
        return base, next((e for e in extra if isinstance(e, Limits)), None)
    return kind, None


def base_type(kind: Any) -> Any:
    """A parameter's type without its limits."""
    return _split(kind)[0]


def is_text(kind: Any) -> bool:
    """Whether a parameter is text, or a choice among texts."""
    base = base_type(kind)
    return base is str or (get_origin(base) is Literal and isinstance(get_args(base)[0], str))


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All parameters of a section class in order: (dotted key, type)."""
    for key, kind in _hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from leaves(kind, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", kind


def describe(kind: Any) -> str:
    """What a parameter's type admits, in words: ``a number from 0 to 1``."""
    base, limits = _split(kind)
    if get_origin(base) is Literal:
        return "one of " + ", ".join(map(str, get_args(base)))
    if get_origin(base) is tuple:
        item = re.sub(r"^(an?|one) ", "", describe(get_args(base)[0]))
        length = f" of length {limits}".replace("of length of", "of length") if limits else ""
        return f"a list{length}, each entry a{'n' if item[0] in 'aeiou' else ''} {item}"
    if base is str:
        return "text that is not empty" if limits and limits.low == 1 else "text"
    words = {bool: "true or false", int: "an integer", float: "a number"}[base]
    return f"{words} {limits}" if limits else words


def _section(cls: type, data: Any, prefix: str, where, name: str) -> Any:
    if not isinstance(data, dict):
        place = f"{name}: {prefix.rstrip('.')}" if prefix else name
        raise UserError(f"{place}: expected a section with keys, got {_show(data)}")
    hints = _hints(cls)
    for key in data:
        if key not in hints:
            raise UserError(f"{name}: {prefix}{key}: unknown key{_nearest(str(key), hints)}")
    values = {}
    for field, (key, kind) in zip(dataclasses.fields(cls), hints.items(), strict=True):
        dotted = f"{prefix}{key}"
        if key not in data:
            expected = "a section with keys" if dataclasses.is_dataclass(kind) else describe(kind)
            raise UserError(f"{name}: {dotted}: missing key, expected {expected}")
        if dataclasses.is_dataclass(kind):
            values[field.name] = _section(kind, data[key], f"{dotted}.", where, name)
        else:
            values[field.name] = _value(kind, data[key], dotted, where)
    return cls(**values)


def _value(kind: Any, value: Any, key: str, where) -> Any:
    base, limits = _split(kind)
    error = UserError(f"{where(key)}: expected {describe(kind)}, got {_show(value)}")
    if get_origin(base) is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in get_args(base)):
            raise error
        return value
    if get_origin(base) is tuple:
        if not isinstance(value, list):
            raise error
        value = tuple(_value(get_args(base)[0], v, f"{key}[{i}]", where) for i, v in enumerate(value))
    elif base is float:
        # YAML 1.1 reads 1e-3 (no dot) as text; everybody means the number.
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise error
        value = float(value)
    elif not isinstance(value, base) or (base is int and isinstance(value, bool)):
        raise error
    if limits and not limits.admit(len(value) if isinstance(value, (tuple, str)) else value):
        raise error
    return value


def _show(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "text", list: "list", dict: "section"}
    if value is None:
        return "nothing (null)"
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    return f"{shown} ({names.get(type(value), type(value).__name__)})"


def _nearest(key: str, known) -> str:
    close = difflib.get_close_matches(key, list(known), 1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; expected one of {', '.join(known)}" if len(known) <= 20 else ""


# --- the other way ----------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Parameters as nested dicts and lists with the keys of params.yaml, for fingerprints and manifests."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {yaml_key(f.name): plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, (dict, types.MappingProxyType)):
        return {str(k): plain(v) for k, v in value.items()}
    return value


def get(params: Params, dotted: str) -> Any:
    """The value of a dotted key: ``get(p, "attentioncut.lambda")``."""
    value: Any = params
    for key in dotted.split("."):
        value = getattr(value, key if hasattr(value, key) else f"{key}_")
    return value
