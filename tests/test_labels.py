"""The table of everyday words, entry by entry where it can be checked, and the label files of users."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter
from pathlib import Path

import open_clip
import pytest

from maskmill.errors import UserError
from maskmill.labels import IMAGENET, LabelSet, load_labels, plain_labels

PAIRS = {"binoculars", "jeans", "pajamas", "sunglasses", "tights"}  # English has no singular of these
ENDS_IN_S = {"abacus", "bus", "compass", "dress", "glass", "hippopotamus", "hourglass", "magnifying glass", "platypus",
             "praying mantis"}  # fmt: skip
ONE_OF = [  # the same thing in other words or another spelling
    ("airplane", "aeroplane", "plane"), ("armor", "armour"), ("axe", "ax"), ("bicycle", "bike"), ("bison", "buffalo"),
    ("bookcase", "bookshelf"), ("camper", "caravan"), ("cash machine", "atm"), ("chicken", "hen", "rooster"),
    ("couch", "sofa"), ("diaper", "nappy"), ("hair dryer", "hairdryer"), ("hamburger", "burger"),
    ("motorcycle", "motorbike"), ("pajamas", "pyjamas"), ("person", "man", "woman", "human"), ("phone", "telephone"),
    ("rabbit", "hare", "bunny"), ("refrigerator", "fridge"), ("ship", "vessel"), ("shop", "store"), ("stove", "oven"),
    ("street sign", "traffic sign"), ("television", "tv"), ("trash can", "garbage can", "dustbin"),
    ("tram", "streetcar"), ("turtle", "tortoise"), ("zucchini", "courgette"),
]  # fmt: skip


@pytest.fixture(scope="module")
def table() -> list[dict[str, str]]:
    with open(IMAGENET, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def vocabulary(table) -> set[str]:
    return {row["word"] for row in table}


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_row_for_each_class_in_imagenets_order(table):
    assert list(table[0]) == ["index", "label", "word"]
    assert [int(row["index"]) for row in table] == list(range(1000))
    assert [row["label"] for row in table] == list(open_clip.IMAGENET_CLASSNAMES)


def test_words_are_plain_lower_case(vocabulary):
    assert len(vocabulary) == 522
    assert [w for w in vocabulary if not re.fullmatch(r"[a-z]+([ -][a-z]+)*", w)] == []


def test_words_are_singular(vocabulary):
    assert {w for w in vocabulary if w.endswith("s")} == PAIRS | ENDS_IN_S
    assert {w for w in vocabulary if f"{w}s" in vocabulary or f"{w}es" in vocabulary} == set()
    assert vocabulary.isdisjoint({"people", "men", "women", "mice", "geese", "feet", "teeth", "children"})


def test_no_thing_has_two_words(vocabulary):
    assert [names for names in ONE_OF if len(vocabulary.intersection(names)) != 1] == []
    joined = Counter(re.sub("[ -]", "", w) for w in vocabulary)
    assert [w for w, count in joined.items() if count > 1] == []


@pytest.mark.parametrize(
    ("indices", "word"),
    [
        (range(151, 269), "dog"), (range(281, 286), "cat"), (range(52, 69), "snake"), (range(118, 122), "crab"),
        (range(72, 78), "spider"), (range(38, 49), "lizard"), (range(321, 327), "butterfly"), (range(2, 5), "shark"),
        (range(370, 383), "monkey"), (range(33, 38), "turtle"), (range(30, 33), "frog"), (range(87, 91), "parrot"),
        (range(277, 281), "fox"), (range(991, 998), "mushroom"), ((385, 386, 101), "elephant"),
        ((436, 511, 609, 627, 661, 751, 817), "car"), ((472, 484, 554, 576, 625, 780, 814, 871, 914), "boat"),
        ((429, 430, 522, 574, 722, 768, 805, 852, 890), "ball"), ((981, 982, 983), "person"), ((404, 895), "airplane"),
        ((7, 8), "chicken"), ((24,), "owl"), ((22,), "eagle"), ((145,), "penguin"), ((97,), "duck"), ((340,), "zebra"),
        ((134,), "bird"), ((517,), "construction crane"), ((673,), "computer mouse"),
    ],
)  # fmt: skip
def test_what_is_known_of_the_indices(table, indices, word):
    assert {table[i]["word"] for i in indices} == {word}


def test_breeds_by_name(table):
    words = {row["label"]: row["word"] for row in table}
    for label in ("Toy Poodle", "Chihuahua", "pug", "dingo"):
        assert words[label] == "dog"
    assert sum(row["word"] == "dog" for row in table) == 118 + 3  # dingo, dhole and African wild dog besides the breeds
    assert words["tabby cat"] == words["tiger cat"] == "cat"
    assert words["tiger"] == "tiger" and words["hot dog"] == "hot dog" and words["red panda"] == "red panda"


def test_a_label_that_ends_in_a_word_of_the_table_becomes_that_word(table, vocabulary):
    """ringlet butterfly -> butterfly, but for these, whose last word is not what the thing is called."""
    other = {"bittern bird": "heron", "sea lion": "seal", "infant bed": "crib", "freight car": "train",
             "railroad car": "train", "laptop computer": "laptop", "notebook computer": "laptop",
             "one-piece bathing suit": "swimsuit", "moving van": "truck", "plant pot": "flowerpot", "hot pot": "soup",
             "potter's wheel": "pottery wheel", "typewriter keyboard": "typewriter",
             "cherimoya (custard apple)": "fruit"}  # fmt: skip
    found = {}
    for row in table:
        tokens = re.findall("[a-z]+", row["label"].lower())
        endings = [" ".join(tokens[-n:]) for n in (2, 1)]
        known = [e for e in endings if e in vocabulary]
        if known and row["word"] != known[0]:
            found[row["label"]] = row["word"]
    assert found == other


def test_imagenet_by_name(table):
    labels = load_labels("imagenet")
    assert len(labels.labels) == len(labels.words) == len(set(labels.labels)) == 998
    merged = dict(zip(labels.labels, labels.words, strict=True))
    assert all(merged[row["label"]] == row["word"] for row in table)
    twice = [label for label, count in Counter(row["label"] for row in table).items() if count > 1]
    assert twice == ["missile", "sunglasses"]
    assert {len({row["word"] for row in table if row["label"] == label}) for label in twice} == {1}


# --- labels of one's own ----------------------------------------------------------------------------------------------


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "labels.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_an_image_sets_own_classes():
    assert plain_labels(["dog", "bird", "dog"]) == LabelSet(("bird", "dog"), ("bird", "dog"))


def test_a_file_with_and_without_words(tmp_path):
    content = "# my labels\n\npoodle, dog\npug,dog  # small\n  grey   wolf \nowl\n"
    labels = load_labels(written(tmp_path, content))
    assert labels == LabelSet(("poodle", "pug", "grey wolf", "owl"), ("dog", "dog", "grey wolf", "owl"))
    for other in ("\ufeff" + content, content.replace("\n", "\r\n"), content.rstrip("\n")):
        assert load_labels(str(written(tmp_path, other))) == labels


def test_quotes_keep_a_comma_and_letters_are_composed(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Bärenhöhle")
    labels = load_labels(written(tmp_path, f'"kite, a bird of prey", bird\n{decomposed}\n5" disk\n'))
    assert labels.labels == ("kite, a bird of prey", "Bärenhöhle", '5" disk')
    assert labels.words == ("bird", "Bärenhöhle", '5" disk')


def test_a_file_that_is_called_imagenet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("imagenet").write_text("dog\n")
    assert len(load_labels("imagenet").labels) == 998
    assert load_labels("./imagenet").labels == load_labels(tmp_path / "imagenet").labels == ("dog",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "expected a label per line, got no label"),
        ("# nothing\n\n", "expected a label per line, got no label"),
        ("dog\na,b,c\n", "line 2: expected label or label,word, got 'a,b,c'"),
        ("dog\n\ncat,\n", "line 3: expected label or label,word, got 'cat,'"),
        (",dog\n", "line 1: expected label or label,word, got ',dog'"),
        ('"dog\ncat\n', "line 1: expected label or label,word, got '\"dog'"),
        ("dog\ncat\nDog,animal\n", "line 3: expected each label once, got 'Dog' again (first at line 1)"),
        (b"dog\ncaf\xe9\n", "line 2: expected UTF-8 text, got the byte 0xe9"),
    ],
)
def test_what_a_label_file_is_refused_for(tmp_path, content, said):
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        load_labels(path)
    assert str(caught.value) == f"{path}: {said}"


@pytest.mark.parametrize("name", ["imagenet21k", "."])
def test_neither_a_name_nor_a_file(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{re.escape(name)}: expected imagenet or a text file"):
        load_labels(name)
