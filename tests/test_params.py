"""The strict loader: every kind of mistake gives one line that names the place, what was expected and what came."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import yaml

from maskmill import params
from maskmill.errors import UserError

COMMITTED = Path(__file__).parents[1] / "params.yaml"


@pytest.fixture
def edited(tmp_path):
    """Returns a function: dotted key -> new value (or DROP) -> path of params.yaml with that one change."""
    base = yaml.safe_load(COMMITTED.read_text(encoding="utf-8"))

    def edit(dotted: str, value: object) -> Path:
        data = copy.deepcopy(base)
        *sections, last = dotted.split(".")
        place = data
        for section in sections:
            place = place[section]
        if value is DROP:
            del place[last]
        else:
            place[last] = value
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
        return path

    return edit


DROP = object()


def message(path, overrides=None) -> str:
    with pytest.raises(UserError) as error:
        params.load(path, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_the_committed_file_loads_and_every_value_arrives():
    p = params.load(COMMITTED)
    assert params.plain(p) == yaml.safe_load(COMMITTED.read_text(encoding="utf-8"))
    assert p.attentioncut.lambda_ == yaml.safe_load(COMMITTED.read_text())["attentioncut"]["lambda"]


def test_sections_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.load(COMMITTED).attentioncut.tau = 0.5


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("attentioncut.tua", 0.1, ["attentioncut.tua", "unknown key", "did you mean tau?"]),
        ("sead", 0, ["sead", "unknown key", "did you mean seed?"]),
        ("evaluate.qqq", 1, ["evaluate.qqq", "expected one of grid_rows"]),
        ("attentioncut.tau", DROP, ["attentioncut.tau", "missing key", "expected a number from 0 to 1"]),
        ("attentioncut.lambda", DROP, ["attentioncut.lambda", "missing key"]),
        ("model", DROP, ["model", "missing key", "expected a section"]),
        ("attentioncut.tau", "high", ["attentioncut.tau", "a number from 0 to 1", "got 'high' (text)"]),
        ("attentioncut.tau", 1.5, ["attentioncut.tau", "from 0 to 1", "got 1.5 (number)"]),
        ("attentioncut.tau", float("nan"), ["attentioncut.tau", "got nan"]),
        ("attentioncut.beta", float("inf"), ["attentioncut.beta", "got inf"]),
        ("attentioncut.beta", True, ["attentioncut.beta", "a number", "got True (boolean)"]),
        ("attentioncut.beta", None, ["attentioncut.beta", "got nothing (null)"]),
        ("seed", True, ["seed", "an integer", "got True (boolean)"]),
        ("seed", 1.0, ["seed", "an integer", "got 1.0 (number)"]),
        ("seed", -1, ["seed", "got -1 (integer)"]),
        ("attentioncut.semantic", 1, ["attentioncut.semantic", "true or false", "got 1 (integer)"]),
        ("attentioncut.semantic", "yes please", ["attentioncut.semantic", "true or false"]),
        ("generate.steps", 0, ["generate.steps", "of at least 1", "got 0"]),
        ("attentioncut.t_max", 0, ["attentioncut.t_max", "above 0", "got 0"]),
        ("prompts.source", "gramar", ["prompts.source", "one of grammar, templates, file, llm", "got 'gramar'"]),
        ("attentioncut.neighbours", 6, ["attentioncut.neighbours", "one of 4, 8", "got 6 (integer)"]),
        ("attentioncut.neighbours", 4.0, ["attentioncut.neighbours", "one of 4, 8", "got 4.0 (number)"]),
        ("invert_features.prior", "caption", ["invert_features.prior", "one of dataset, clip, none, scene, absent"]),
        ("invert_features.caption", "none", ["invert_features.caption", "unknown key"]),
        ("test.set", "", ["test.set", "not empty", "got ''"]),
        ("prompts.second_share", 1.5, ["prompts.second_share", "from 0 to 1", "got 1.5 (number)"]),
        ("train_decoder.kernel", 2, ["train_decoder.kernel", "one of 1, 3", "got 2 (integer)"]),
        ("train_decoder.validation", 1, ["train_decoder.validation", "from 0 to 0.9", "got 1 (integer)"]),
        ("train_decoder.noise", DROP, ["train_decoder.noise", "missing key", "a number of at least 0"]),
        ("model.id", "", ["model.id", "not empty", "got ''"]),
        ("model.id", 14, ["model.id", "text", "got 14 (integer)"]),
        ("world.seeds", 3, ["world.seeds", "a list", "got 3 (integer)"]),
        ("world.seeds", [], ["world.seeds", "a list of length at least 1", "got [] (list)"]),
        ("world.seeds", [1, "two"], ["world.seeds[1]", "an integer", "got 'two' (text)"]),
        ("attentioncut", [1], ["attentioncut", "a section with keys", "got [1] (list)"]),
        ("pretrain.unet", None, ["pretrain.unet", "a section with keys", "nothing"]),
        ("pretrain.unet.chanels", [1], ["pretrain.unet.chanels", "did you mean channels?"]),
        ("pretrain.unet.t_low", 850, ["pretrain.unet.t_low: expected a value below pretrain.unet.t_high, which is 850",
                                      "got 850 (integer)"]),
        ("pretrain.unet.t_high", 0, ["pretrain.unet.t_low: expected a value below", "which is 0, got 380"]),
    ],
)
def test_one_line_names_file_key_expected_and_got(edited, key, value, parts):
    path = edited(key, value)
    text = message(path)
    assert text.startswith(f"{path}: ")
    for part in parts:
        assert part in text


@pytest.mark.parametrize(("value", "expected"), [("1e-3", 1e-3), ("5E2", 500.0), (2, 2.0), ("2.", 2.0), (".5", 0.5)])
def test_floats_as_people_write_them(edited, value, expected):
    got = params.load(edited("attentioncut.beta", value)).attentioncut.beta
    assert got == expected and type(got) is float


@pytest.mark.parametrize("value", ["0x10", "1e", "one", "", "1 2", "nan"])
def test_text_that_is_no_number_is_no_float(edited, value):
    assert "attentioncut.beta" in message(edited("attentioncut.beta", value))


def test_file_level_mistakes(tmp_path):
    path = tmp_path / "params.yaml"
    assert "expected a readable parameter file" in message(path)
    assert "expected a readable parameter file" in message(tmp_path)
    path.write_text("seed: 0\nmodel: a: b\nworld: x\n")
    assert "line 2: expected valid YAML" in message(path)
    path.write_bytes(b"seed: \x01\n")
    assert "expected valid YAML" in message(path)
    path.write_text("seed: 0\nmodel: !!python/object:os.system {}\n")
    assert "expected valid YAML" in message(path) and "line 2" in message(path)
    path.write_bytes(b"seed: \xff\xfe\n")
    assert "expected UTF-8 text" in message(path)
    path.write_text("")
    assert "expected a section with keys, got nothing" in message(path)
    path.write_text("- 1\n")
    assert "expected a section with keys, got [1]" in message(path)
    path.write_text(COMMITTED.read_text().replace("evaluate:\n", "evaluate:\n  grid_rows: 4\n"))
    assert "evaluate.grid_rows: expected each key once" in message(path)


def test_overrides_change_only_what_they_name():
    base = params.load(COMMITTED)
    changed = params.load(COMMITTED, {"attentioncut.lambda": "0.7", "seed": "5"})
    assert (changed.attentioncut.lambda_, changed.seed) == (0.7, 5)
    cut = dataclasses.replace(changed.attentioncut, lambda_=base.attentioncut.lambda_)
    assert dataclasses.replace(changed, seed=base.seed, attentioncut=cut) == base


@pytest.mark.parametrize(
    ("key", "typed", "expected"),
    [
        ("attentioncut.lambda", "1e-3", 1e-3),
        ("attentioncut.semantic", "false", False),
        ("world.seeds", ["4", "5"], (4, 5)),
        ("world.seeds", "[4, 5]", (4, 5)),
        ("world.seeds", "4 5", (4, 5)),
        ("prompts.classes", ["red panda", "cat"], ("red panda", "cat")),
        ("prompts.file", "123", "123"),
        ("attentioncut.neighbours", "4", 4),
        ("prompts.file", "", ""),
        ("prompts.source", "llm", "llm"),
        ("invert_features.labels", "", ""),
        ("train_decoder.kernel", "1", 1),
        ("train_decoder.flip", "false", False),
        ("pretrain.unet.channels", ["8", "16"], (8, 16)),
        ("model.revision", "null", "null"),
    ],
)
def test_overrides_are_read_by_the_type_of_their_key(key, typed, expected):
    assert params.get(params.load(COMMITTED, {key: typed}), key) == expected


@pytest.mark.parametrize(
    ("key", "typed", "part"),
    [
        ("attentioncut.lamda", "1", "--attentioncut.lamda: unknown parameter; did you mean attentioncut.lambda?"),
        ("attentioncut.tau", "2", "--attentioncut.tau: expected a number from 0 to 1, got 2 (integer)"),
        ("pretrain.unet.t_low", "900", "--pretrain.unet.t_low: expected a value below pretrain.unet.t_high, which is"),
        ("attentioncut.semantic", "maybe", "--attentioncut.semantic: expected true or false, got 'maybe' (text)"),
        ("world.seeds", ["1", "x"], "--world.seeds: expected an integer of at least 0, got 'x' (text)"),
        ("seed", "", "--seed: expected an integer"),
        ("seed", ["1", "2"], "--seed: expected an integer"),
        ("generate.steps", "[", "--generate.steps: "),
    ],
)
def test_wrong_overrides_name_the_option(key, typed, part):
    assert part in message(COMMITTED, {key: typed})


def test_every_parameter_has_a_way_in_and_out():
    p = params.load(COMMITTED)
    kinds = dict(params.leaves(params.Params))
    assert "attentioncut.lambda" in kinds and "pretrain.vae.channels" in kinds
    for key, kind in kinds.items():
        params.get(p, key)
        assert params.describe(kind)


def test_comments_are_found_beside_their_keys(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("a: 1  # one\nb:\n  # not this\n  c: [1, 2]  # a list # of two\n  d: '# no'\ne: ''  # empty\n")
    assert params.comments(path) == {"a": "one", "b.c": "a list # of two", "e": "empty"}


def test_the_cut_takes_the_section_as_it_is():
    from maskmill.masks.attentioncut import CutParams

    section = params.load(COMMITTED).attentioncut
    assert vars(CutParams(**vars(section))).items() >= vars(section).items()
