"""Label sets of the CLIP-classifiable prior (DiffusionSeg 3.3.1): fine labels, and the everyday word that each becomes.

``imagenet.csv`` beside this module holds the 1,000 ImageNet classes. Names of classes are open_clip's; the words are
ours, in the granularity of a person who is asked what is in the photo:

- The common kind, not the breed or the species: poodle -> dog, tench -> fish, macaw -> parrot. A bird, bug or fish has
  a word of its own where most people know it by sight (owl, duck, ladybug, shark); the rest are bird, bug and fish.
- Things that people call by one name are one word, however they differ: sailboat and canoe -> boat, sneaker and clog
  -> shoe. A thing without such a name keeps its own: thimble, stethoscope.
- Where a word could mean two things it is the longer one that cannot: archery bow, metal nail, computer mouse,
  construction crane. The crane that flies is a bird.
- What hardly anybody can name takes the name of what is seen with it: fire screen -> fireplace, scabbard -> sword.
- People in some role (bridegroom, baseball player, diver) -> person. ImageNet has no class for people as such, so a
  picture of a person is most often given the name of what is worn or held.
- Words are lower case, singular but for pairs (jeans), and in American spelling, like the labels.
"""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from maskmill.errors import UserError

IMAGENET = Path(__file__).with_name("imagenet.csv")


@dataclass(frozen=True)
class LabelSet:
    """``words[i]`` is what ``labels[i]`` becomes; labels are distinct, several may share a word."""

    labels: tuple[str, ...]
    words: tuple[str, ...]


def plain_labels(names: Iterable[str]) -> LabelSet:
    """Names that are their own words, each once, in alphabetical order: for the classes that an image set gives."""
    labels = tuple(sorted(set(names)))
    return LabelSet(labels, labels)


def load_labels(name: str | Path) -> LabelSet:
    """A label set by its name or from a file.

    Args:
        name: ``imagenet``, the merged table, in which two names that ImageNet has twice (missile, sunglasses) are one
            label each, so 998 in all; or a text file in UTF-8 with a label per line, or ``label,word`` where several
            labels shall become one word. A label with a comma goes in double quotes. Blank lines and what follows
            ``#`` are skipped.

    Raises:
        UserError: no such file; or not UTF-8, no label, an empty one, one twice, or more than two fields; names the
            file and the line.
    """
    if str(name) == "imagenet":
        with open(IMAGENET, encoding="utf-8", newline="") as file:
            words = {row["label"]: row["word"] for row in csv.DictReader(file)}
        return LabelSet(tuple(words), tuple(words.values()))
    path = Path(name)
    if not path.is_file():
        raise UserError(f"{path}: expected imagenet or a text file with a label per line, found no such file")
    first: dict[str, int] = {}
    pairs = []
    for line, text in _lines(path):
        fields = _fields(text)
        if fields is None or len(fields) > 2 or not all(fields):
            raise UserError(f"{path}: line {line}: expected label or label,word, got {text!r}")
        label, word = fields[0], fields[-1]
        before = first.setdefault(label.casefold(), line)
        if before != line:
            raise UserError(
                f"{path}: line {line}: expected each label once, got {label!r} again (first at line {before})"
            )
        pairs.append((label, word))
    if not pairs:
        raise UserError(f"{path}: expected a label per line, got no label")
    labels, words = zip(*pairs, strict=True)
    return LabelSet(labels, words)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines without comments and without blank ones."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: expected a readable label file, got: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line}: expected UTF-8 text, got the byte 0x{raw[error.start]:02x}") from None
    numbered = [(n, line.partition("#")[0].strip()) for n, line in enumerate(text.splitlines(), 1)]
    return [(n, line) for n, line in numbered if line]


def _fields(text: str) -> list[str] | None:
    """The comma-separated fields of a line, blanks tidied; None where a quote is not closed."""
    try:
        (row,) = csv.reader([text], skipinitialspace=True, strict=True)
    except csv.Error:
        return None
    return [" ".join(unicodedata.normalize("NFC", field).split()) for field in row]
