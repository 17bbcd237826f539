"""Which classes of any vocabulary are things and which are stuff: the readable table, a language model, or the user.

OVDiff asks a language model once per class. Here the benchmarks' classes are in ``maskmill/labels/things.csv``; of
classes that are not, a causal language model can be asked. The answer is a table ``class, query, kind, source`` that
``maskmill.segmenters.categories.load_categories`` reads, and that its owner can correct by hand.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from maskmill.errors import UserError
from maskmill.segmenters.categories import STUFF, THING, benchmark_names, load_categories

Generate = Callable[[str, int], str]

QUESTION = (
    "In image segmentation a class is a thing if it can be counted, with a shape of its own (a dog, a car, a chair), "
    "and stuff if it is a material or region without (sky, grass, water, wall). Is {!r} thing or stuff? Answer "
    "with one word."
)


@dataclass(frozen=True)
class Kind:
    """``kind`` thing or stuff, ``source``: a data set of the table, "llm", or "unknown" where thing is a guess."""

    name: str
    kind: str
    source: str


def listed_kinds() -> dict[str, tuple[str, str]]:
    """Class or query, in lower case -> (kind, data set); data sets that disagree: the first in the table."""
    found: dict[str, tuple[str, str]] = {}
    for dataset in benchmark_names():
        for category in load_categories(dataset):
            for name in (category.name, category.query):
                found.setdefault(name.casefold(), (category.kind, dataset))
    return found


def asked(name: str, generate: Generate, tries: int, seed: int) -> str:
    """A language model's answer for one class.

    Args:
        generate: (question, seed) -> answer; seed 0 means greedy decoding, see ``maskmill.prompts.language_model``.
        tries: times that it is asked, with other seeds from the second time on.

    Raises:
        UserError: no answer holds one of the two words, and not the other.
    """
    answer = ""
    for attempt in range(tries):
        key = hashlib.sha256(f"kinds/{seed}/{name}/{attempt}".encode()).digest()
        answer = generate(QUESTION.format(name), 0 if attempt == 0 else 1 + int.from_bytes(key[:3], "big"))
        words = set(re.findall(r"\b(thing|stuff)\b", answer.lower()))
        if len(words) == 1:
            return words.pop()
    raise UserError(f"kinds.llm: expected thing or stuff for the class {name!r}, got in {tries} tries at last "
                    f"{' '.join(answer.split())[:60]!r}; write its kind into a table by hand")  # fmt: skip


def kinds_of(classes: Sequence[str], generate: Generate | None = None, tries: int = 1, seed: int = 0) -> list[Kind]:
    """The kind of each class: from the table where it is listed, else from the model, else a thing.

    Args:
        classes: in any case of letters.
        generate, tries, seed: see ``asked``; None: no model.
    """
    table, out = listed_kinds(), []
    for name in classes:
        if name.casefold() in table:
            out.append(Kind(name, *table[name.casefold()]))
        elif generate is None:
            out.append(Kind(name, THING, "unknown"))
        else:
            out.append(Kind(name, asked(name, generate, tries, seed), "llm"))
    return out


def to_csv(kinds: Sequence[Kind]) -> str:
    """The table as CSV text, in the form that ``load_categories`` reads."""
    rows = [{"class": k.name, "query": k.name, "kind": k.kind, "source": k.source} for k in kinds]
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")


def counted(kinds: Sequence[Kind]) -> str:
    """``5 things, 2 stuff (1 of unknown kind, taken for a thing: gadget)``."""
    things, unknown = sum(k.kind == THING for k in kinds), [k.name for k in kinds if k.source == "unknown"]
    text = f"{things} things, {sum(k.kind == STUFF for k in kinds)} stuff"
    return text + (f"; unknown, taken for things: {', '.join(unknown)}" if unknown else "")
