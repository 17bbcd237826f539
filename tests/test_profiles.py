"""Profiles: each shipped one applies, comments stay, and the flags say the same as the file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from maskmill import params, profiles
from maskmill.errors import UserError

ROOT = Path(__file__).parents[1]
COMMITTED = (ROOT / "params.yaml").read_text(encoding="utf-8")
SHIPPED = sorted((ROOT / "profiles").glob("*.yaml"))


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "maskmill.profiles", *argv, "--params", str(folder / "params.yaml")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def comment_texts(text: str) -> list[str]:
    return [line.split("#", 1)[1].strip() for line in text.splitlines() if "#" in line]


def test_an_empty_patch_changes_no_byte():
    assert profiles.patch(COMMITTED, {}) == COMMITTED
    same = {"attentioncut.tau": yaml.safe_load(COMMITTED)["attentioncut"]["tau"]}
    assert profiles.patch(COMMITTED, same) == COMMITTED


def test_there_are_the_profiles_that_the_readme_names():
    assert {"sd14", "sd15", "sdxl", "smoke"} <= {p.stem for p in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_profile_applies_and_keeps_comments_and_order(path):
    changes = profiles.read(path)
    new = profiles.patch(COMMITTED, changes)
    loaded = params.plain(params.loads(new, str(path)))
    expected = dict(profiles._flatten(yaml.safe_load(COMMITTED))) | changes
    assert dict(profiles._flatten(loaded)) == expected
    assert comment_texts(new) == comment_texts(COMMITTED)
    assert len(new.splitlines()) == len(COMMITTED.splitlines())


@pytest.mark.parametrize("name", ["sd14", "sd15", "sdxl"])
def test_every_value_of_the_papers_profiles_says_whether_a_paper_states_it(name):
    said = ""
    for line in (ROOT / f"profiles/{name}.yaml").read_text(encoding="utf-8").splitlines():
        text, _, comment = line.partition("#")
        if re.match(r"  \w+: ", text):
            assert re.match(r"(stated|choice)\b", (comment or said).strip()), line
        said = comment


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_flags_give_dvc_the_same_parameters(path, tmp_path):
    from dvc.utils.hydra import apply_overrides

    changes = profiles.read(path)
    words = " ".join(profiles.flags(changes, path.name)).split()
    assert words[::2] == ["-S"] * len(changes)
    target = tmp_path / "params.yaml"
    target.write_text(COMMITTED, encoding="utf-8")
    apply_overrides(target, words[1::2])
    assert params.load(target) == params.loads(profiles.patch(COMMITTED, changes), "x")


def test_a_patch_touches_one_value_only():
    new = profiles.patch(COMMITTED, {"attentioncut.lambda": 0.75, "world.seeds": [7, 8]})
    changed = [(a, b) for a, b in zip(COMMITTED.splitlines(), new.splitlines(), strict=True) if a != b]
    assert [b.split("#")[0].strip() for _, b in changed] == ["seeds: [7, 8]", "lambda: 0.75"]
    lines = profiles.differences(COMMITTED, new)
    assert [line.split(":")[0] for line in lines] == ["world.seeds", "attentioncut.lambda"]
    assert lines[0].endswith("-> [7,8]") and lines[1].endswith("-> 0.75")


def test_the_command_writes_shows_and_says_when_there_is_nothing_to_do(tmp_path):
    (tmp_path / "params.yaml").write_text(COMMITTED, encoding="utf-8")
    printed = run(tmp_path, "smoke", "--print")
    assert printed.returncode == 0 and printed.stdout.startswith("-S ")
    assert (tmp_path / "params.yaml").read_text(encoding="utf-8") == COMMITTED
    first = run(tmp_path, "smoke")
    assert first.returncode == 0 and "prompts.count: " in first.stdout and " -> 8\n" in first.stdout
    assert params.load(tmp_path / "params.yaml").prompts.count == 8
    assert "already" in run(tmp_path, "smoke").stdout


def test_an_unknown_profile_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "params.yaml").write_text(COMMITTED, encoding="utf-8")
    got = run(tmp_path, "smoek")
    assert got.returncode == 2 and got.stdout == ""
    assert "expected one of: " in got.stderr and "smoke" in got.stderr and got.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("attentioncut: {lamda: 1}", "attentioncut.lamda: unknown key"),
        ("attentioncut: 3", "attentioncut: unknown key"),
        ("a: [", "expected valid YAML"),
        ("- 1", "expected a section"),
    ],
)
def test_a_wrong_profile_is_refused(tmp_path, text, part):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="p.yaml") as error:
        profiles.read(path)
    assert part in str(error.value) and "\n" not in str(error.value)


def test_a_profile_that_extends_another_has_its_values_and_its_own_ones_win():
    one, other = (profiles.read(ROOT / f"profiles/{name}.yaml") for name in ("sd14", "sdxl"))
    assert set(one) <= set(other) and other["generate.steps"] == one["generate.steps"] == 40
    assert (one["generate.size"], other["generate.size"]) == (512, 1024)
    assert other["extractors.sd.t"] == one["extractors.sd.t"] and "extends" not in other
    changed = {k for k, v in profiles.read(ROOT / "profiles/sd15.yaml").items() if one.get(k) != v}
    assert changed == {"model.id"}


@pytest.mark.parametrize(
    ("text", "part"),
    [("extends: nobody", "nobody.yaml: no such profile"), ("extends: [a]", "extends: expected the name of a profile"),
     ("extends: p", "expected a profile that does not extend this one, got 'p'"), ("extends: q", "got 'p'")],
)  # fmt: skip
def test_a_profile_that_extends_nothing_or_itself_is_refused(tmp_path, text, part):
    (tmp_path / "p.yaml").write_text(text)
    (tmp_path / "q.yaml").write_text("extends: p")
    with pytest.raises(UserError, match=re.escape(part)):
        profiles.read(tmp_path / "p.yaml")


def test_what_the_paper_states_is_what_the_profile_says():
    """DiffusionSeg 4.1, concept distillation A, OVDiff 4: read once more from the papers' own list of values."""
    p = params.loads(profiles.patch(COMMITTED, profiles.read(ROOT / "profiles/sd14.yaml")), "p")
    assert (p.generate.steps, p.generate.size, p.prompts.count) == (40, 512, 50_000)
    assert (p.attentioncut.tau, p.attentioncut.beta, p.attentioncut.lambda_) == (0.16, 2.5, 0.1)
    assert (p.train_decoder.lr, p.train_decoder.batch) == (0.001, 10)
    assert (p.distill.steps, p.distill.batch, p.distill.lr) == (12_000, 32, 0.001)
    assert p.support.count == 32 and p.segment.threshold == 0.72
    assert (p.segment.short, p.segment.sizes, p.segment.stride) == (448, (448, 336), 224)


def test_text_that_a_shell_would_split_is_refused_as_a_flag():
    with pytest.raises(UserError, match="p: prompts.classes: .*'red panda'"):
        profiles.flags({"prompts.classes": ["cat", "red panda"]}, "p")
