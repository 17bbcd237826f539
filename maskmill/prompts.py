"""Prompts for the synthetic set: rows of sample id, class, prompt, token span of the class word, seed.

DiffusionSeg 3.2.1: class names become richer scene descriptions, by an LLM in the paper; here by templates, by a small
compositional grammar (the default), or by any causal language model. The token span is where the cross-attention of the
class word is read (Eq. 2), so a prompt whose class word the tokenizer does not keep whole is refused with its row.

Every row is a function of the global seed and of its own index: making more rows leaves the earlier ones as they are.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from maskmill import world
from maskmill.errors import UserError
from maskmill.hub import download_model, is_hub_id
from maskmill.params import Prompts
from maskmill.store import read_rows
from maskmill.world import article

TEMPLATES = ("a photo of {}", "a picture of {}", "a good picture of {}", "a close photo of {}", "a bright photo of {}")
OPENINGS = ("a photo of {}", "a photo of {}", "a picture of {}", "a good picture of {}", "{}")

# The everyday grammar, for classes that the miniature's world does not have. Phrases that fit almost any thing.
ADJECTIVES = ("small", "large", "old", "young", "beautiful", "colourful", "dark", "bright", "single", "lone")
PLACES = (
    "on a sandy beach", "in a green meadow", "in front of a brick wall", "on a wooden floor", "in a quiet street",
    "beside a calm lake", "in a snowy field", "on a rocky hill", "in a garden", "in a forest clearing",
    "in a bright room", "on a dusty road", "under a blue sky", "in a city park", "against a plain wall",
)  # fmt: skip
LIGHTS = ("at sunset", "in soft morning light", "on a cloudy day", "at night", "in bright sunlight", "in the fog")
VIEWS = ("seen from the side", "seen from the front", "in close-up", "seen from a distance", "in sharp focus")

COLUMNS = ("sample_id", "class", "prompt", "token_start", "token_end", "seed")

Generate = Callable[[str, int], str]


@dataclass(frozen=True)
class Row:
    """One sample to make. Tokens ``token_start:token_end`` (end exclusive, start token counted) are the class word."""

    sample_id: str
    cls: str
    prompt: str
    token_start: int
    token_end: int
    seed: int


# --- seeds ------------------------------------------------------------------------------------------------------------


def _hashed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big")


def sample_seed(seed: int, index: int) -> int:
    """Seed of a sample, 0..2^32-1: the same on every machine, and different for each of 2^32 indices.

    A hash of the global seed plus the index times an odd constant: the step is a bijection modulo 2^32, so no two
    samples of a run can share their noise, as with a plain 32-bit hash about one pair in 90,000 samples would.
    """
    return (_hashed("sample", seed) + 2_654_435_761 * index) % 2**32


def row_rng(seed: int, index: int) -> np.random.Generator:
    """The generator that words row ``index``; independent of all other rows."""
    return np.random.default_rng([13, seed, index])


def sample_id(index: int, cls: str) -> str:
    """``00012-bird``: sorts in order, reads well, is a safe file name and never looks like a number."""
    slug = re.sub(r"[^a-z0-9]+", "-", cls.lower()).strip("-")
    return f"{index:05d}-{slug or 'class'}"


# --- token spans ------------------------------------------------------------------------------------------------------


def find_word(prompt: str, word: str, plural: bool = False) -> tuple[int, int] | None:
    """Character span of the first whole-word match, upper and lower case alike; None when there is none.

    ``car`` is not found in ``carpet`` or ``car-park``. With ``plural``, ``birds`` and ``boxes`` are found for ``bird``
    and ``box`` where the word itself does not stand.
    """
    body = r"\s+".join(re.escape(part) for part in word.split())
    for ending in ("", "e?s") if plural else ("",):
        match = re.search(rf"(?<![\w-]){body}{ending}(?![\w-])", prompt, re.IGNORECASE)
        if match:
            return match.span()
    return None


def word_span(tokenizer: Any, prompt: str, word: str, plural: bool = False) -> tuple[int, int]:
    """Tokens of the class word in a prompt.

    Args:
        tokenizer: a CLIPTokenizer, fast or slow, or another that splits between words as it does.
        prompt, word: the word may have several words or several tokens.
        plural: accept the plural of the word.

    Returns:
        (start, end), end exclusive, positions in the padded sequence that the text encoder sees, start token counted.

    Raises:
        UserError: the word is absent; the prompt is longer than the context (says whether the word itself falls off).
    """
    place = find_word(prompt, word, plural)
    if place is None:
        raise UserError(f"expected the class word {word!r} in the prompt, got {prompt!r}")

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    full = list(tokenizer(prompt, truncation=False, verbose=False)["input_ids"])
    first = int(bool(full) and full[0] == tokenizer.bos_token_id)
    # Words are tokenized one by one, so what stands before a word takes as many tokens alone as within the prompt.
    start, end = (first + len(ids(prompt[:at])) for at in place)
    context = tokenizer.model_max_length
    if len(full) > context:
        lost = f"; the class word {word!r} is truncated away" if end > context - 1 else ""
        raise UserError(f"expected a prompt of at most {context} tokens, got {len(full)}{lost}: {_short(prompt)!r}")
    if start == end or full[start:end] != ids(prompt[place[0] : place[1]]):
        raise UserError(f"expected the class word {word!r} as whole tokens, got a tokenizer that joins it: {prompt!r}")
    return start, end


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


# --- classes ----------------------------------------------------------------------------------------------------------


def read_classes(path: str | Path) -> list[str]:
    """The user's classes: one per line, UTF-8, blank lines and ``#`` comments skipped.

    Raises:
        UserError: the file cannot be read, is not UTF-8, holds no class, or one twice; names the file and the line.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: expected a readable class file, got: {error.strerror}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line}: expected UTF-8 text, got the byte 0x{raw[error.start]:02x}") from None
    rows = [
        (n, " ".join(unicodedata.normalize("NFC", line.partition("#")[0]).split()))
        for n, line in enumerate(text.splitlines(), 1)
    ]
    rows = [(n, cls) for n, cls in rows if cls]
    if not rows:
        raise UserError(f"{path}: expected one class per line, got no class")
    _refuse_duplicates([(f"{path}: line {n}", cls) for n, cls in rows])
    return [cls for _, cls in rows]


def chosen_classes(settings: Prompts) -> list[str]:
    """The classes of the section ``prompts``: those of its file if it names one, else its list.

    Raises:
        UserError: see ``read_classes``; the list has a blank or double entry; source ``file`` without a file.
    """
    if settings.source == "file" and not settings.file:
        raise UserError("prompts.file: expected a class file for prompts.source file, got ''")
    if settings.file:
        return read_classes(settings.file)
    classes = [" ".join(unicodedata.normalize("NFC", cls).split()) for cls in settings.classes]
    for i, cls in enumerate(classes, 1):
        if not cls:
            raise UserError(f"prompts.classes: entry {i}: expected a class, got blanks")
    _refuse_duplicates((f"prompts.classes: entry {i}", cls) for i, cls in enumerate(classes, 1))
    return classes


def _refuse_duplicates(places: Iterable[tuple[str, str]]) -> None:
    first: dict[str, str] = {}
    for place, cls in places:
        if cls.casefold() in first:
            before = first[cls.casefold()].rpartition(": ")[2]
            raise UserError(f"{place}: expected each class once, got {cls!r} again (first at {before})")
        first[cls.casefold()] = place


# --- sources ----------------------------------------------------------------------------------------------------------


def from_template(cls: str, rng: np.random.Generator) -> str:
    """``a photo of a bird``."""
    return str(rng.choice(TEMPLATES)).format(article(cls))


def from_grammar(
    cls: str, rng: np.random.Generator, colour_share: float, place_share: float, others: Sequence[str] = ()
) -> str:
    """``a photo of a red bird on grass in front of brick``, in the words that the miniature was trained on; for a
    class that its world does not have, ``a picture of a large zebra in a green meadow at sunset``. Where there are
    ``others``, one of them is named beside it: ``a photo of a car and a red bird``."""
    return (_world_prompt if cls in world.CLASSES else _everyday_prompt)(cls, rng, colour_share, place_share, others)


def _with_company(noun: str, others: Sequence[str], rng: np.random.Generator) -> str:
    """The noun alone, or beside one of the others, in either order; both with their articles."""
    if not others:
        return article(noun)
    pair = [article(noun), article(str(rng.choice(others)))]
    return " and ".join(pair[i] for i in rng.permutation(2))


def _world_prompt(
    cls: str, rng: np.random.Generator, colour_share: float, place_share: float, others: Sequence[str]
) -> str:
    colours = [palette[0] for palette in world.PALETTES[cls]]
    noun = f"{rng.choice(colours)} {cls}" if rng.random() < colour_share else cls
    text = str(rng.choice(OPENINGS)).format(_with_company(noun, others, rng))
    if rng.random() < place_share:
        text += f" on {rng.choice(world.LOWER_STUFF)}"
        if rng.random() < 0.4:
            text += f" in front of {rng.choice(world.UPPER_STUFF)}"
    return text


def _everyday_prompt(
    cls: str, rng: np.random.Generator, colour_share: float, place_share: float, others: Sequence[str]
) -> str:
    noun = f"{rng.choice(ADJECTIVES)} {cls}" if rng.random() < colour_share else cls
    text = str(rng.choice(OPENINGS)).format(_with_company(noun, others, rng))
    if rng.random() < 0.3:
        text += f" {rng.choice(VIEWS)}"
    if rng.random() < place_share:
        text += f" {rng.choice(PLACES)}"
    if rng.random() < 0.3:
        text += f" {rng.choice(LIGHTS)}"
    return text


def ask(cls: str, count: int, words: int) -> str:
    """What the language model is asked for one class."""
    return (
        f"List {count} short descriptions of photos. Each shows one {cls} in a different scene: vary place, light, "
        f"weather and what it does. One per line, numbered, at most {words} words, each with the word '{cls}'."
    )


_BULLET = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,3}[.):])\s*")


def parse_lines(text: str) -> list[str]:
    """Descriptions out of a language model's answer: numbers, bullets, quotes and emphasis stripped, blank lines and
    lines that only introduce the list (they end with a colon) dropped."""
    lines = []
    for line in text.splitlines():
        line = _BULLET.sub("", line).strip().strip("*_\"'“”").strip()
        if line and not line.endswith(":"):
            lines.append(" ".join(line.split()))
    return lines


def describe_class(
    generate: Generate, cls: str, settings: Prompts, seed: int, usable: Callable[[str], bool]
) -> list[str]:
    """``settings.per_class`` distinct descriptions of a class.

    Lines without the class word or that are not ``usable`` are dropped and the model is asked again with another seed.

    Args:
        generate: (question, seed) -> answer; the first call of a class has seed 0, which means greedy decoding.

    Raises:
        UserError: after ``settings.tries`` questions there is not one usable line.
    """
    found: dict[str, None] = {}
    for attempt in range(settings.tries):
        question = ask(cls, settings.per_class, settings.words)
        answer = generate(question, 0 if attempt == 0 else 1 + _hashed("llm", seed, cls, attempt) % (2**31 - 1))
        for line in parse_lines(answer):
            if find_word(line, cls, plural=True) and usable(line):
                found.setdefault(line)
        if len(found) >= settings.per_class:
            return list(found)[: settings.per_class]
    if not found:
        raise UserError(
            f"prompts.llm: {settings.llm}: expected descriptions with the word {cls!r} that fit the context, "
            f"got none in {settings.tries} tries"
        )
    print(f"prompts.llm: {len(found)} of {settings.per_class} descriptions for {cls!r}", file=sys.stderr)
    return list(found)


def language_model(id: str, revision: str, device: str, max_new_tokens: int = 768) -> Generate:
    """Load a causal language model from a folder or the hub; returns (question, seed) -> answer.

    Seed 0 decodes greedily, any other samples with that seed. Safetensors only, and no code from the model's folder.

    Raises:
        UserError: the model cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(id, revision=revision or None)
        model = AutoModelForCausalLM.from_pretrained(id, revision=revision or None, use_safetensors=True, dtype="auto")
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"prompts.llm: expected a causal language model at {id!r}, got: {reason}") from None
    model = model.to(device).eval()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def generate(question: str, seed: int) -> str:
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": question}]
            question = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            inputs = tokenizer(question, return_tensors="pt", add_special_tokens=False)
        else:
            inputs = tokenizer(question + "\n1.", return_tensors="pt")
        ids = inputs["input_ids"].to(device)  # (1, n)
        how = {"do_sample": True, "temperature": 0.9, "top_p": 0.95} if seed else {"do_sample": False}
        devices = [ids.device] if ids.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, pad_token_id=pad, **how
            )  # (1, n + new)
        return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)

    return generate


# --- rows -------------------------------------------------------------------------------------------------------------


def make_rows(
    settings: Prompts,
    seed: int,
    tokenizer: Any,
    generate: Generate | None = None,
    done: Callable[[str], None] = lambda cls: None,
) -> list[Row]:
    """All rows of a prompt table.

    Args:
        settings: the section ``prompts``. Classes take turns, row i has class i mod their number.
        seed: the global seed.
        tokenizer: the image model's.
        generate: the language model, for source ``llm``.
        done: called with each class that the language model has described.

    Raises:
        UserError: bad classes; a prompt that does not fit the tokenizer (names the row).
    """
    classes = chosen_classes(settings)
    described: dict[str, list[str]] = {}
    if settings.source == "llm":
        if generate is None:
            raise UserError("prompts.llm: expected a language model's folder or hub id for prompts.source llm, got ''")
        for cls in classes[: settings.count]:
            described[cls] = describe_class(generate, cls, settings, seed, lambda s, c=cls: _fits(tokenizer, s, c))
            done(cls)
    rows = []
    for index in range(settings.count):
        cls, rng = classes[index % len(classes)], row_rng(seed, index)
        if settings.source == "llm":
            prompt = described[cls][index // len(classes) % len(described[cls])]
        elif settings.source == "templates":
            prompt = from_template(cls, rng)
        else:
            # "house boat" beside "boat" would make the wrong word's tokens the class's
            others = [c for c in classes if not find_word(c, cls)] if rng.random() < settings.second_share else []
            prompt = from_grammar(cls, rng, settings.colour_share, settings.place_share, others)
        name = sample_id(index, cls)
        try:
            start, end = word_span(tokenizer, prompt, cls, plural=settings.source == "llm")
        except UserError as error:
            raise UserError(f"prompts: row {name}: {error}") from None
        rows.append(Row(name, cls, prompt, start, end, sample_seed(seed, index)))
    return rows


def _fits(tokenizer: Any, prompt: str, cls: str) -> bool:
    try:
        word_span(tokenizer, prompt, cls, plural=True)
    except UserError:
        return False
    return True


def load_tokenizer(model: str, revision: str = "") -> Any:
    """The tokenizer of a diffusers model: a local folder or a hub id.

    Raises:
        UserError: the folder has no ``tokenizer`` part, the id cannot be loaded, or there is no vocabulary.
    """
    folder = Path(model)
    if folder.is_dir() and not (folder / "tokenizer").is_dir():
        raise UserError(f"{folder}: expected a model folder with a tokenizer in it, got none")
    if not folder.is_dir() and not is_hub_id(model):
        raise UserError(f"{model}: expected a model folder or an id of the hub like owner/name, found no such folder")
    from transformers import CLIPTokenizer  # late: it takes seconds

    reason = ""
    try:
        tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer", revision=revision or None)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of files that it cannot find
            reason = "a tokenizer without vocabulary"
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
    if reason:
        mend = "" if folder.is_dir() else f"; download it first: {download_model(model, revision)}"
        raise UserError(f"{model}: expected a diffusers model folder or hub id, got: {reason}{mend}")
    return tokenizer


def check_context(tokenizer: Any, text: str, end: int = 0) -> None:
    """Refuse a text that the tokenizer would truncate, and a word that ends (exclusive) behind the text's last token.

    Raises:
        UserError: names both lengths; the caller adds the row.
    """
    length, context = len(tokenizer(text, truncation=False, verbose=False)["input_ids"]), tokenizer.model_max_length
    if length > context:
        raise UserError(f"expected a prompt of at most {context} tokens, got {length}: {_short(text)!r}")
    if end > length - 1:  # the last one is the end token
        raise UserError(f"expected token_end of at most {length - 1}, the prompt's end, got {end}: {_short(text)!r}")


# --- the table --------------------------------------------------------------------------------------------------------


def to_csv(rows: Sequence[Row]) -> str:
    """The table as CSV text with the header ``COLUMNS``."""
    frame = pd.DataFrame([asdict(r) for r in rows]).rename(columns={"cls": "class"})
    return frame[list(COLUMNS)].to_csv(index=False, lineterminator="\n")


def read_csv(path: str | Path) -> list[Row]:
    """Read a prompt table, written by ``to_csv`` or by hand.

    Raises:
        UserError: the file is missing, is no such table, or a row is malformed; names the file and the row.
    """
    header, lines = read_rows(path, "a prompt table (stage prompts writes one)")
    if tuple(header) != COLUMNS:
        raise UserError(f"{path}: expected the columns {','.join(COLUMNS)}, got {','.join(header)}")
    if not lines:
        raise UserError(f"{path}: expected at least one row, got only the header")
    rows, seen = [], set()
    for line, (name, cls, prompt, *numbers) in lines:
        place = f"{path}: line {line} ({name})"
        if not all(re.fullmatch(r"[0-9]{1,15}", n) for n in numbers):
            raise UserError(f"{place}: expected integers for {', '.join(COLUMNS[3:])}, got {', '.join(numbers)}")
        start, end, seed = map(int, numbers)
        if not 0 <= start < end:
            raise UserError(f"{place}: expected token_start < token_end, got {start} and {end}")
        if not re.fullmatch(r"[\w.-]+", name) or name in seen:
            raise UserError(f"{place}: expected a distinct sample_id of letters, digits and '-', got {name!r}")
        seen.add(name)
        rows.append(Row(name, cls, prompt, start, end, seed))
    return rows
