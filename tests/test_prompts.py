"""Prompts: token spans on a real CLIPTokenizer, sources, seeds, the table, and the stage end to end."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from maskmill import params, prompts, world
from maskmill.errors import UserError

ROOT = Path(__file__).parents[1]
CONTEXT = 24
WORDS = ("a", "an", "photo", "of", "bird", "birds", "car", "carpet", "red", "on", "grass", "with", "park", "fish",
         "picture", "good", "in", "front")  # fmt: skip


def clip_tokenizer(context: int = CONTEXT):
    """A CLIPTokenizer in which each of WORDS is one token and every other word is spelt letter by letter."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens = alphabet + [a + "</w>" for a in alphabet] + ["".join(m) for m in merges]
    vocabulary = {t: i for i, t in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=context)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    return prompts.load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def wide():
    return clip_tokenizer(context=200)


@pytest.fixture(scope="module")
def committed() -> params.Prompts:
    return params.load(ROOT / "params.yaml").prompts


@pytest.fixture
def settings(committed):
    return dataclasses.replace(committed, source="grammar", count=24, classes=world.CLASSES, file="", llm="",
                               second_share=0.0)  # fmt: skip


def tokens(tokenizer, text: str, span: tuple[int, int]) -> str:
    """What stands at a span of the padded sequence, as text."""
    padded = tokenizer(text, padding="max_length", truncation=True)["input_ids"]
    assert len(padded) == tokenizer.model_max_length
    return tokenizer.decode(padded[span[0] : span[1]]).replace(" ", "")


@pytest.mark.parametrize(
    ("prompt", "word", "span"),
    [
        ("a photo of a bird", "bird", (5, 6)),
        ("bird", "bird", (1, 2)),
        ("A Photo of a BIRD!", "bird", (5, 6)),
        ("a carpet with a car", "car", (5, 6)),
        ("a car-park, a car", "car", (7, 8)),
        ("a bird on a bird", "bird", (2, 3)),
        ("a photo of a boat", "boat", (5, 9)),
        ("a red  boat on grass", "boat", (3, 7)),
        ("a 'bird', red", "bird", (3, 4)),
        ("red bird's", "bird", (2, 3)),
        ("a fish bird on grass", "fish bird", (2, 4)),
        ("a fish\tbird", "Fish Bird", (2, 4)),
    ],
)
def test_word_span_by_hand(tokenizer, prompt, word, span):
    assert prompts.word_span(tokenizer, prompt, word) == span
    assert tokens(tokenizer, prompt, span) == "".join(word.lower().split())


def test_word_span_agrees_with_the_tokenizers_own_offsets(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(50):
        words = list(rng.choice([*WORDS, "zebra", "x-ray", "ünter", "don't", "5th,"], 5))
        cls = str(rng.choice(["zebra", "bird"]))
        prompt = "  ".join([*words, cls, "end."])
        at = prompts.find_word(prompt, cls)
        offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        expected = [i for i, (a, b) in enumerate(offsets) if b > a and a >= at[0] and b <= at[1]]
        if len(offsets) <= CONTEXT:
            assert list(range(*prompts.word_span(tokenizer, prompt, cls))) == expected


def test_plurals_only_where_asked_and_only_without_the_word_itself(tokenizer):
    assert prompts.word_span(tokenizer, "birds on grass", "bird", plural=True) == (1, 2)
    assert prompts.word_span(tokenizer, "birds on a bird", "bird", plural=True) == (4, 5)
    assert prompts.find_word("two boxes", "box", plural=True) == (4, 9)
    with pytest.raises(UserError, match="expected the class word 'bird' in the prompt"):
        prompts.word_span(tokenizer, "birds on grass", "bird")


def test_what_does_not_fit_the_context_is_refused(tokenizer):
    fits = " ".join(["a"] * 21 + ["bird"])
    assert prompts.word_span(tokenizer, fits, "bird") == (22, 23)
    with pytest.raises(UserError, match="at most 24 tokens, got 25; the class word 'bird' is truncated away"):
        prompts.word_span(tokenizer, f"a {fits}", "bird")
    with pytest.raises(UserError, match="at most 24 tokens, got 31: ") as error:
        prompts.word_span(tokenizer, "bird" + " a" * 28, "bird")
    assert "truncated away" not in str(error.value)
    with pytest.raises(UserError, match="expected the class word 'car' in the prompt"):
        prompts.word_span(tokenizer, "a carpet", "car")


def test_sample_seeds_are_stable_distinct_and_local():
    assert [prompts.sample_seed(0, i) for i in range(3)] == [2290225806, 649694271, 3304130032]
    many = {prompts.sample_seed(3, i) for i in range(50_000)}
    assert len(many) == 50_000 and all(0 <= s < 2**32 for s in many)
    assert prompts.sample_seed(4, 0) != prompts.sample_seed(3, 0)


def test_rows_of_the_world_grammar(wide, settings):
    rows = prompts.make_rows(settings, 0, wide)
    known = {*world.STUFF, *world.COLOURS, *world.CLASSES, *"a an photo picture good of on in front".split()}
    assert [r.cls for r in rows[:9]] == [*world.CLASSES, "bird"]
    assert rows[1].sample_id == "00001-dog" and len({r.sample_id for r in rows}) == 24
    for row in rows:
        assert set(row.prompt.split()) <= known and f" {row.cls}" in row.prompt
        assert tokens(wide, row.prompt, (row.token_start, row.token_end)) == row.cls
    assert len({r.prompt for r in rows}) > 12
    assert all(r.seed == prompts.sample_seed(0, i) for i, r in enumerate(rows))


def test_shares_of_colours_and_places_are_kept(wide, settings):
    def counts(colour: float, place: float) -> tuple[int, int]:
        chosen = dataclasses.replace(settings, count=200, colour_share=colour, place_share=place)
        texts = [r.prompt for r in prompts.make_rows(chosen, 0, wide)]
        coloured = [t for t in texts if set(t.split()) & set(world.COLOURS)]
        placed = [t for t in texts if " on " in t]
        assert all(t.split(" on ")[1].split()[0] in world.LOWER_STUFF for t in placed)
        return len(coloured), len(placed)

    assert counts(0, 0) == (0, 0) and counts(1, 1) == (200, 200)
    coloured, placed = counts(0.3, 0.5)
    assert 40 < coloured < 80 and 75 < placed < 125


def named(prompt: str, classes) -> list[str]:
    """The classes that a prompt names, in its order."""
    found = [(place[0], cls) for cls in classes if (place := prompts.find_word(prompt, cls))]
    return [cls for _, cls in sorted(found)]


def test_a_second_class_stands_beside_the_first_in_either_order(wide, settings):
    rows = prompts.make_rows(dataclasses.replace(settings, count=400, second_share=0.6), 0, wide)
    pairs = [named(r.prompt, world.CLASSES) for r in rows]
    assert all(r.cls in pair and len(set(pair)) == len(pair) <= 2 for r, pair in zip(rows, pairs, strict=True))
    both = [(r, pair) for r, pair in zip(rows, pairs, strict=True) if len(pair) == 2]
    assert 200 < len(both) < 280  # 240 +- 4 standard deviations
    assert 0.4 < np.mean([pair[0] == r.cls for r, pair in both]) < 0.6
    others = [next(c for c in pair if c != r.cls) for r, pair in both]
    assert {c: others.count(c) > 10 for c in world.CLASSES} == dict.fromkeys(world.CLASSES, True)
    for row, _ in both:  # each with its article, once; the span is of the row's own class
        assert re.search(r"\ban? (\w+ )?\w+ and an? (\w+ )?\w+", row.prompt), row.prompt
        assert row.prompt.count(" and ") == 1 and tokens(wide, row.prompt, (row.token_start, row.token_end)) == row.cls
    assert not [r.prompt for r in rows if re.search(r"\ba [aeiou]|\ban [^aeiou]", r.prompt)]


@pytest.mark.parametrize("classes", [world.CLASSES, ("zebra", "owl", "potted plant")])
def test_the_share_of_second_classes_is_kept_at_its_ends(wide, settings, classes):
    for share, count in ((0.0, 1), (1.0, 2)):
        rows = prompts.make_rows(dataclasses.replace(settings, classes=classes, second_share=share), 0, wide)
        assert {len(named(r.prompt, classes)) for r in rows} == {count}


def test_a_class_that_holds_the_others_word_never_stands_beside_it(wide, settings):
    """The first "boat" of "a house boat and a boat" would be the wrong one."""
    classes = ("boat", "house boat", "car")
    rows = prompts.make_rows(dataclasses.replace(settings, classes=classes, count=90, second_share=1.0), 0, wide)
    beside = {(r.cls, other) for r in rows for other in ("house boat", "car") if prompts.find_word(r.prompt, other)}
    assert ("boat", "house boat") not in beside and {("boat", "car"), ("house boat", "car")} <= beside
    for row in rows:
        assert tokens(wide, row.prompt, (row.token_start, row.token_end)) == row.cls.replace(" ", "")


def test_a_single_class_has_no_company(wide, settings):
    rows = prompts.make_rows(dataclasses.replace(settings, classes=("dog",), second_share=1.0), 0, wide)
    assert not [r for r in rows if " and " in r.prompt]


def test_more_rows_leave_the_earlier_ones_and_the_seed_changes_them(wide, settings):
    chosen = dataclasses.replace(settings, second_share=0.5)
    few = prompts.make_rows(chosen, 0, wide)
    more = prompts.make_rows(dataclasses.replace(chosen, count=40), 0, wide)
    assert more[:24] == few
    other = prompts.make_rows(chosen, 1, wide)
    assert [r.prompt for r in other] != [r.prompt for r in few]
    assert not {r.seed for r in other} & {r.seed for r in few}


def test_any_class_gets_everyday_english(wide, settings):
    chosen = dataclasses.replace(settings, classes=("zebra", "potted plant", "owl"), count=90)
    rows = prompts.make_rows(chosen, 0, wide)
    assert all(r.cls in r.prompt for r in rows) and len({r.prompt for r in rows}) > 60
    assert tokens(wide, rows[1].prompt, (rows[1].token_start, rows[1].token_end)) == "pottedplant"
    assert rows[1].sample_id == "00001-potted-plant"
    assert not [r.prompt for r in rows if re.search(r"\ba [aeiou]|\ban [^aeiou]", r.prompt)]


def test_templates(tokenizer, settings):
    rows = prompts.make_rows(dataclasses.replace(settings, source="templates", classes=("fish", "owl")), 0, tokenizer)
    allowed = {t.format(f"{a} {c}") for t in prompts.TEMPLATES for a, c in (("a", "fish"), ("an", "owl"))}
    assert {r.prompt for r in rows} <= allowed and len({r.prompt for r in rows}) > 4


def test_a_row_that_does_not_fit_is_named(tokenizer, settings):
    chosen = dataclasses.replace(settings, source="templates", classes=("bird", "hippopotamus amphibius"), count=4)
    with pytest.raises(UserError, match="prompts: row 00001-hippopotamus-amphibius: expected a prompt of at most 24"):
        prompts.make_rows(chosen, 0, tokenizer)


# --- class files ------------------------------------------------------------------------------------------------------


def test_class_files_as_people_write_them(tmp_path, wide, settings):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeff# mine\n bird \r\n\n  Fish  # the animal\nre\u0301sume\u0301  car\n".encode())
    assert prompts.read_classes(path) == ["bird", "Fish", "r\u00e9sum\u00e9 car"]
    path.write_text("car\nowl\n")
    rows = prompts.make_rows(dataclasses.replace(settings, source="file", file=str(path), count=2), 0, wide)
    assert [r.cls for r in rows] == ["car", "owl"]


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "expected one class per line, got no class"),
        (b"# only a comment\n\n   \n", "expected one class per line, got no class"),
        (b"bird\ncar\n\nBird\n", "line 4: expected each class once, got 'Bird' again (first at line 1)"),
        (b"bird\ncaf\xe9\n", "line 2: expected UTF-8 text, got the byte 0xe9"),
        ("bird\n".encode("utf-16"), "line 1: expected UTF-8 text"),
        (None, "expected a readable class file"),
    ],
)
def test_bad_class_files_name_file_and_line(tmp_path, data, part):
    path = tmp_path / "classes.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError) as error:
        prompts.read_classes(path)
    assert str(error.value).startswith(f"{path}: ") and part in str(error.value) and "\n" not in str(error.value)


def test_bad_class_lists_name_the_entry(settings):
    for classes, part in [(("car", "Car"), "entry 2: expected each class once"), (("car", " "), "entry 2: expected a")]:
        with pytest.raises(UserError, match=f"prompts.classes: {part}"):
            prompts.chosen_classes(dataclasses.replace(settings, classes=classes))
    with pytest.raises(UserError, match="prompts.file: expected a class file"):
        prompts.chosen_classes(dataclasses.replace(settings, source="file"))


# --- language models --------------------------------------------------------------------------------------------------

ANSWER = """Sure! Here are four descriptions:

1. A red bird on grass.
2) **A bird in a park**
- "A photo of two birds"
• a car in front of a fish
* A red bird on grass.
(5) a carpet
10: bird   in a car
"""


def test_answers_are_parsed_as_models_write_them():
    assert prompts.parse_lines(ANSWER) == [
        "A red bird on grass.", "A bird in a park", "A photo of two birds", "a car in front of a fish",
        "A red bird on grass.", "a carpet", "bird in a car",
    ]  # fmt: skip
    assert prompts.parse_lines("") == []
    assert prompts.parse_lines("3 birds on grass") == ["3 birds on grass"]


def test_lines_without_the_word_are_dropped_and_asked_for_again(settings):
    chosen = dataclasses.replace(settings, source="llm", llm="fake", per_class=5, tries=9)
    asked = []

    def fake(question: str, seed: int) -> str:
        asked.append((question, seed))
        return ANSWER if len(asked) < 3 else "a bird by a fish\na bird with a car"

    found = prompts.describe_class(fake, "bird", chosen, 0, lambda line: "park" not in line)
    assert found == ["A red bird on grass.", "A photo of two birds", "bird in a car", "a bird by a fish",
                     "a bird with a car"]  # fmt: skip
    assert len(asked) == 3 and asked[0][1] == 0 and len({seed for _, seed in asked}) == 3
    assert all("bird" in question and " 5 " in question for question, _ in asked)


def test_a_model_that_never_names_the_class_is_refused_and_few_lines_are_reported(settings, capsys):
    chosen = dataclasses.replace(settings, source="llm", llm="fake", per_class=3, tries=2)
    with pytest.raises(UserError, match="prompts.llm: fake: .*'bird'.*none in 2 tries"):
        prompts.describe_class(lambda *_: "a carpet", "bird", chosen, 0, lambda _: True)
    assert prompts.describe_class(lambda *_: "a bird", "bird", chosen, 0, lambda _: True) == ["a bird"]
    assert "1 of 3 descriptions for 'bird'" in capsys.readouterr().err


def test_llm_rows_take_turns_and_leave_out_what_the_context_cannot_hold(tokenizer, settings):
    chosen = dataclasses.replace(settings, source="llm", llm="fake", classes=("bird", "fish"), per_class=2, count=8)
    seen = []

    def fake(question: str, seed: int) -> str:
        cls = "bird" if "'bird'" in question else "fish"
        return "\n".join([f"1. {cls}" + " a" * 40, f"2. red {cls}", f"3. two {cls}s on grass"])

    rows = prompts.make_rows(chosen, 0, tokenizer, fake, seen.append)
    assert [r.prompt for r in rows] == ["red bird", "red fish", "two birds on grass", "two fishs on grass"] * 2
    assert seen == ["bird", "fish"]
    assert (rows[2].token_start, rows[2].token_end) == (4, 5)
    with pytest.raises(UserError, match="prompts.llm: expected a language model"):
        prompts.make_rows(chosen, 0, tokenizer, None)


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory) -> str:
    """A one-layer GPT-2 with word tokens, fresh in ``untaught``, and in ``taught`` after a few steps to answer with two
    lines on birds."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    answer = "a red bird ; a bird on grass ; <end>"
    words = ["<pad>", "<end>", "<unk>", "1", ".", *dict.fromkeys(answer.split()), "\n"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", model_max_length=256
    )
    size = len(tokenizer)
    config = GPT2Config(vocab_size=size, n_positions=256, n_embd=32, n_layer=1, n_head=2, bos_token_id=None,
                        eos_token_id=tokenizer.eos_token_id, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)  # fmt: skip
    model = GPT2LMHeadModel(config)
    target = tokenizer(answer, return_tensors="pt")["input_ids"]  # (1, n)
    question = tokenizer(prompts.ask("bird", 2, 16) + "\n1.", return_tensors="pt")["input_ids"]
    ids = torch.cat([question, target], 1)
    labels = torch.where(torch.arange(ids.shape[1])[None] < question.shape[1], -100, ids)
    folder = tmp_path_factory.mktemp("llm")
    for name in ("untaught", "taught"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        for _ in range(80):  # steps of fixed length: torch.optim alone takes a second to import
            loss = model(input_ids=ids, labels=labels).loss
            slopes = torch.autograd.grad(loss, list(model.parameters()))
            length = torch.stack([s.norm() for s in slopes]).norm() + 1e-8
            with torch.no_grad():
                for weight, slope in zip(model.parameters(), slopes, strict=True):
                    weight -= min(0.3, loss.item()) * slope / length
    assert loss.item() < 0.2
    return str(folder)


def test_a_real_language_model_writes_the_rows_the_same_each_time(tiny_llm, tokenizer, settings):
    chosen = dataclasses.replace(settings, source="llm", classes=("bird",), per_class=2, words=16, count=2)
    taught = prompts.language_model(f"{tiny_llm}/taught", "", "cpu", max_new_tokens=12)
    assert taught(prompts.ask("bird", 2, 16), 0).split() == "a red bird ; a bird on grass ;".split()
    rows = prompts.make_rows(chosen, 0, tokenizer, lambda q, s: taught(q, s).replace(";", "\n"))
    assert [r.prompt for r in rows] == ["a red bird", "a bird on grass"]
    untaught = prompts.language_model(f"{tiny_llm}/untaught", "", "cpu", max_new_tokens=12)
    answers = [untaught("a", seed) for seed in (5, 6, 7, 5, 0, 0)]
    assert answers[0] == answers[3] and answers[4] == answers[5] and len(set(answers)) == 4


def test_a_language_model_that_is_not_there_or_is_a_pickle(tiny_llm, tmp_path):
    import shutil

    import torch

    with pytest.raises(UserError, match="prompts.llm: expected a causal language model at '/no/such/folder'"):
        prompts.language_model("/no/such/folder", "", "cpu")
    folder = tmp_path / "pickled"
    shutil.copytree(f"{tiny_llm}/taught", folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="prompts.llm: expected a causal language model") as error:
        prompts.language_model(str(folder), "", "cpu")
    assert "\n" not in str(error.value)


# --- the table and the stage ------------------------------------------------------------------------------------------


def test_the_table_comes_back_and_reads_well(tmp_path, wide, settings):
    rows = prompts.make_rows(settings, 0, wide)
    odd = prompts.Row("00099-x", "x", 'a "x", on\u00fc grass', 2, 3, 2**32 - 1)
    path = tmp_path / "p.csv"
    path.write_text(prompts.to_csv([*rows, odd]), encoding="utf-8")
    assert prompts.read_csv(path) == [*rows, odd]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "sample_id,class,prompt,token_start,token_end,seed"
    assert lines[1].startswith("00000-bird,bird,") and lines[1].endswith(f",{prompts.sample_seed(0, 0)}")


HEADER = "sample_id,class,prompt,token_start,token_end,seed\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "expected a CSV table"),
        ("a,b\n1,2\n", "expected the columns sample_id,class,prompt"),
        (HEADER, "expected at least one row"),
        (HEADER + "a,b,b,1,x,3\n", "line 2 (a): expected integers"),
        (HEADER + "a,b,b,2,2,3\n", "line 2 (a): expected token_start < token_end, got 2 and 2"),
        (HEADER + "a,b,b,1,2,3\na,b,b,1,2,3\n", "line 3 (a): expected a distinct sample_id"),
        (HEADER + "../a,b,b,1,2,3\n", "line 2 (../a): expected a distinct sample_id of letters"),
        (HEADER + "a,b,b,1,2,3\na,b,b,1,2,3,4\n", "line 3 (a): expected 6 fields, got 7"),
        (HEADER + "a,b,b,1,2,3,4\n", "line 2 (a): expected 6 fields, got 7"),
        (HEADER + "a,b,b,1\n", "line 2 (a): expected 6 fields, got 4"),
        (None, "expected a prompt table"),
    ],
)
def test_a_bad_table_is_refused_with_its_row(tmp_path, text, part):
    path = tmp_path / "p.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        prompts.read_csv(path)
    assert str(error.value).startswith(f"{path}: ") and part in str(error.value) and "\n" not in str(error.value)


def run_stage(folder: Path, *argv: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "MASKMILL_DEVICE": "cpu"}
    command = [sys.executable, str(ROOT / "stages" / "prompts.py"), "--params", str(ROOT / "params.yaml"), *argv]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_the_stage_writes_the_table_from_any_folder(tmp_path):
    clip_tokenizer(context=77).save_pretrained(tmp_path / "m o" / "tokenizer")
    got = run_stage(tmp_path, "--model", "m o", "--out", "out put/p.csv", "--prompts.count", "5")
    assert got.returncode == 0, got.stderr
    assert "5 prompts for 5 classes" in got.stdout
    rows = prompts.read_csv(tmp_path / "out put" / "p.csv")
    assert [r.cls for r in rows] == list(params.load(ROOT / "params.yaml").prompts.classes[:5])


def test_the_stage_refuses_bad_input_with_one_line_and_writes_nothing(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "model").mkdir()
    data = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    data["prompts"]["cuont"] = 3
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(data))
    for argv, part in [
        (["--params", "wrong.yaml"], "wrong.yaml: prompts.cuont: unknown key; did you mean count?"),
        (["--model", "model"], "model: expected a model folder with a tokenizer in it"),
    ]:
        got = run_stage(tmp_path, *argv)
        assert got.returncode == 2 and got.stderr.count("\n") == 1 and part in got.stderr
        assert not (tmp_path / "data").exists()
