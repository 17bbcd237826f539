"""The command line of stages as people and DVC type it, runtime settings, progress, dying with the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maskmill import cli, params
from maskmill.errors import UserError

ROOT = Path(__file__).parents[1]
COMMITTED = str(ROOT / "params.yaml")
SECTIONS = ("seed", "attentioncut", "world", "prompts")


def parse(*argv: str, sections=SECTIONS, folders=None):
    folders = {"inverted": "data/inverted", "out": "data/cuts"} if folders is None else folders
    return cli.stage_arguments("What it does.", sections, folders, ["--params", COMMITTED, *argv])


def test_defaults_are_the_files():
    args, got = parse()
    assert got == params.load(COMMITTED)
    assert (args.inverted, args.out, args.params) == ("data/inverted", "data/cuts", COMMITTED)


def test_folders_and_parameters_share_the_line():
    args, got = parse("--out", "with space/x", "--attentioncut.lambda", "0.25", "--seed", "7")
    assert args.out == "with space/x" and got.attentioncut.lambda_ == 0.25 and got.seed == 7


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--attentioncut.semantic"], True),
        (["--attentioncut.semantic", "true"], True),
        (["--attentioncut.semantic", "false"], False),
        (["--attentioncut.semantic=false"], False),
        (["--no-attentioncut.semantic"], False),
        (["--no-attentioncut.semantic", "--attentioncut.semantic"], True),
    ],
)
def test_booleans_in_every_spelling(typed, expected):
    assert parse(*typed)[1].attentioncut.semantic is expected


def test_what_dvc_makes_of_a_table_row_is_understood():
    from dvc.parsing.interpolate import to_str

    row = {"attentioncut": {"lambda": 1e-05, "semantic": False, "spatial": True, "seeds": 3, "normalise": "max"},
           "world": {"seeds": [4, 5]}, "prompts": {"file": "", "classes": ["red panda", "cat"]}}  # fmt: skip
    line = to_str(row, {"bool": "boolean_optional"})
    words = subprocess.run(["sh", "-c", f'printf "%s\\n" {line}'], capture_output=True, text=True, check=True).stdout
    got = parse(*words.split("\n")[:-1])[1]
    cut = got.attentioncut
    assert (cut.lambda_, cut.semantic, cut.spatial, cut.seeds, cut.normalise) == (1e-5, False, True, 3, "max")
    assert got.world.seeds == (4, 5) and got.prompts.classes == ("red panda", "cat") and got.prompts.file == ""


def test_a_folder_may_bear_a_sections_name():
    args, got = parse("--model", "m", "--model.id", "n", sections=("model",), folders={"model": None})
    assert args.model == "m" and got.model.id == "n"
    assert parse(sections=("model",), folders={"model": None})[0].model is None


def test_options_of_other_sections_and_shortened_ones_are_refused(capsys):
    for wrong in (["--generate.steps", "3"], ["--attentioncut.lamb", "1"], ["--ou", "x"], ["stray"]):
        with pytest.raises(SystemExit) as stop:
            parse(*wrong)
        assert stop.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_wrong_value_is_a_user_error():
    with pytest.raises(UserError, match=r"--attentioncut\.tau: expected a number from 0 to 1"):
        parse("--attentioncut.tau", "-3")


def test_a_section_that_does_not_exist_is_a_programming_error():
    with pytest.raises(ValueError, match="attention"):
        parse(sections=("attention",))


def test_help_tells_purpose_meaning_and_present_value(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())
    present = params.load(COMMITTED)
    assert "What it does." in text and "data/cuts" in text and "--attentioncut.lambda" in text
    assert f"now {present.attentioncut.lambda_}" in words
    assert f"now {' '.join(map(str, present.world.seeds))}" in words
    assert params.comments(COMMITTED)["attentioncut.tau"] in words
    assert "--generate.steps" not in text


def test_help_works_without_a_parameter_file(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.stage_arguments("Doc.", ("seed",), {}, ["--params", str(tmp_path / "none.yaml"), "--help"])
    assert stop.value.code == 0 and "--seed" in capsys.readouterr().out


def test_runtime_reads_the_environment():
    got = cli.runtime(batch=6, environ={"MASKMILL_DEVICE": "cpu"})
    assert (got.device, got.batch) == ("cpu", 6) and got.workers >= 1
    got = cli.runtime(environ={"MASKMILL_DEVICE": "cpu", "MASKMILL_BATCH": " 3 ", "MASKMILL_WORKERS": "2"})
    assert got == cli.Runtime("cpu", 3, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("MASKMILL_BATCH", "0"), ("MASKMILL_BATCH", "two"), ("MASKMILL_WORKERS", "-1"), ("MASKMILL_WORKERS", "1.5"),
     ("MASKMILL_DEVICE", "gpu"), ("MASKMILL_DEVICE", "cuda:99")],
)  # fmt: skip
def test_runtime_names_a_wrong_variable(name, value):
    with pytest.raises(UserError, match=f"{name}: expected .*{value}"):
        cli.runtime(environ={"MASKMILL_DEVICE": "cpu", name: value})


def test_progress_gives_every_item_and_is_silent_when_quick(capsys):
    assert list(cli.progress(range(5), "quick")) == [0, 1, 2, 3, 4]
    with cli.progress(None, "by hand", total=2) as bar:
        bar.update(2)
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out == ""


def test_progress_in_a_log_is_lines_with_rate_and_time_left(capsys):
    for _ in cli.progress(range(3), "slow", mininterval=0, delay=0):
        time.sleep(0.01)
    lines = capsys.readouterr().err.splitlines()
    assert lines and "\r" not in "".join(lines)
    assert any("slow" in x and "sample/s" in x and "<" in x for x in lines)


CHILD = """
import os, sys, time
from maskmill.cli import die_with_parent
die_with_parent()
print(os.getpid(), flush=True)
time.sleep(30)
"""
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child that its parent died")
@pytest.mark.parametrize("under_dvc", [True, False])
def test_a_stage_dies_with_dvc_but_not_with_a_shell(under_dvc):
    env = {k: v for k, v in os.environ.items() if k != "DVC_STAGE"} | ({"DVC_STAGE": "x"} if under_dvc else {})
    env["PYTHONPATH"] = str(ROOT)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True, env=env)
    child = int(parent.stdout.readline())
    try:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + (5 if under_dvc else 0.3)
        while is_running(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert is_running(child) is not under_dvc
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)
        parent.stdout.close()
