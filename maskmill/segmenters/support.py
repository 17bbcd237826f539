"""Support sets of OVDiff: the classes, their folders, and the prompts of the pictures that stand for them (3.2).

A support set is a folder per class, ``<support>/<class>``, with

    prompts.csv    sample_id, class, prompt, tokens of the class word, seed
    set/           the pictures as an image set
    records/       their attention records

A class's pictures depend on the seed and on its own name alone: what else is in the vocabulary changes none of them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path
from typing import Any

from maskmill.errors import UserError
from maskmill.params import SupportSets
from maskmill.prompts import Row, read_classes, sample_id, sample_seed, word_span
from maskmill.world import article

NEGATIVES = {"ovdiff": "text, low quality, blurry, cartoon, meme, low resolution, bad, poor, faded"}  # by short names

def wanted(name: str | None, file: str | Path | None) -> list[str]:
    """The classes of a command line: one by its name, or those of a text file with one per line.

    Raises:
        UserError: neither or both are given, an empty name, or a file without classes or with one twice.
    """
    if (name is None) == (file is None):
        raise UserError(f"expected either --class NAME or --classes-file FILE, got {'both' if name else 'neither'}")
    if file is not None:
        return read_classes(file)
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if not name:
        raise UserError("--class: expected the name of a class, got ''")
    return [name]


def class_folder(name: str) -> str:
    """The name of a class's folder: its own, or where a file system could not have that, letters and a hash of it."""
    if re.fullmatch(r"\w[\w ,.'()-]{0,79}", name) and name[-1] not in ". ":
        return name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    stem = re.sub("[^a-z0-9]+", "-", plain).strip("-")[:40] or "class"
    return f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def picture_of(support: str | Path, name: str, image: str) -> Path:
    """Where the support image lies that a prototype's link names."""
    return Path(support) / class_folder(name) / "set" / "images" / f"{image}.png"


def negative_prompt(settings: SupportSets) -> str:
    """The prompt of the unconditional branch, which the parameters may give by a short name."""
    return NEGATIVES.get(settings.negative, settings.negative)


def support_rows(name: str, settings: SupportSets, seed: int, tokenizer: Any) -> list[Row]:
    """The prompts of a class: ``settings.count`` times the same text, each with a seed of its own.

    More of them leave the earlier ones as they are.

    Raises:
        UserError: the template has no place for the class, or the tokenizer does not keep the class whole in it.
    """
    if not re.search(r"\{a?\}", settings.template) or re.search(r"[{}]", re.sub(r"\{a?\}", "", settings.template)):
        raise UserError(f"support.template: expected {{}} or {{a}} for the class and no other braces, got "
                        f"{settings.template!r}")  # fmt: skip
    prompt = settings.template.format(name, a=article(name))
    try:
        start, end = word_span(tokenizer, prompt, name)
    except UserError as error:
        raise UserError(f"support.template: class {name!r}: {error}") from None
    own = int.from_bytes(hashlib.sha256(f"support/{seed}/{name}".encode()).digest()[:7], "big")
    return [
        Row(sample_id(i, name), name, prompt, start, end, sample_seed(own, i)) for i in range(settings.count)
    ]
