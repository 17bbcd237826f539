"""The plan of a run: counts against sums done by hand, sizes against what is on disk, and what stops a run."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskmill import params, profiles, store
from maskmill.cli import Runtime
from maskmill.errors import UserError, exit_cleanly
from maskmill.plan import costs, machine, needs, pipeline, report, shapes
from maskmill.plan.__main__ import main

ROOT = Path(__file__).parents[1]
COMMITTED = (ROOT / "params.yaml").read_text(encoding="utf-8")
SD14 = "CompVis/stable-diffusion-v1-4"


def text_of(profile: str, **changes: object) -> str:
    """params.yaml with a profile's values and some more (``benchmarks__ecssd`` for benchmarks.ecssd)."""
    patch = profiles.read(ROOT / "profiles" / f"{profile}.yaml") if profile else {}
    return profiles.patch(COMMITTED, patch | {k.replace("__", "."): v for k, v in changes.items()})


def counted(text: str, stages: list[pipeline.Stage]) -> dict[str, costs.Job]:
    model = params.loads(text, "p").model.id
    ledger = costs.Ledger(ROOT, text, "p", shapes.of_model(str(ROOT / model) if model.startswith("data/") else model))
    return {job.stage.name: job for job in costs.count(stages, ledger)}


@pytest.fixture(scope="module")
def stages() -> list[pipeline.Stage]:
    return pipeline.read(ROOT, COMMITTED)


@pytest.fixture(scope="module")
def mini(stages) -> dict[str, costs.Job]:
    return counted(COMMITTED, stages)


@pytest.fixture(scope="module")
def sd14_stages() -> list[pipeline.Stage]:
    return pipeline.read(ROOT, text_of("sd14"))


@pytest.fixture(scope="module")
def sd14(sd14_stages) -> dict[str, costs.Job]:
    folders = {f"benchmarks__{key}": f"/sets/{key}" for key in ("ecssd", "duts_te", "cub", "voc07")}
    return counted(text_of("sd14", **folders), sd14_stages)


# --- stages -----------------------------------------------------------------------------------------------------------


def test_stages_are_those_of_dvc_and_come_after_what_they_need(mini):
    names = list(mini)
    assert names.index("prompts") < names.index("generate") < names.index("invert_features@generated")
    assert names.index("attentioncut@generated") < names.index("train_decoder") < names.index("decode@test")
    noprior = mini["invert_features@noprior"].stage
    assert noprior.commands[0].script == "invert_features" and noprior.outs == {"data/inverted/world_noprior": True}
    assert mini["invert_features@noprior"].params.invert_features.prior == "none"
    assert mini["generate"].stage.outs == {"data/generated/records": True, "data/generated/set": True}
    assert mini["evaluate"].stage.outs["metrics/evaluate.json"] is False


def test_a_profile_brings_stages_of_other_files_in(sd14):
    assert "tables/benchmarks:benchmarks@test" in sd14 and "tables/benchmarks:benchmarks@train" not in sd14
    images = sd14["invert_features@test"].stage.commands[0].option("images")
    assert images == "data/benchmarks"


def test_a_table_brings_only_what_it_needs_of_the_main_pipeline():
    jobs = counted(COMMITTED, pipeline.read(ROOT, COMMITTED, ["tables/diffusionseg-tab3/dvc.yaml"]))
    assert "attentioncut@generated" in jobs and "rivals@crf" not in jobs
    few = jobs["tables/diffusionseg-tab3:rows@unet-syn-few"]
    assert [c.script for c in few.stage.commands] == ["train_decoder", "decode", "score"]
    p = params.loads(COMMITTED, "p")
    assert few.params.train_decoder.pairs == p.tables.few and few.params.train_decoder.alone is True
    assert few.cost.steps == p.tables.end_to_end_steps


def test_command_lines_are_read_as_the_stages_read_them():
    (command,) = pipeline.commands('${LAUNCH:-python} stages/x.py --a "b c" --s.k 1 2 --no-s.f --s.g --out=d && rm e')
    assert command.script == "x"
    assert command.options == {"a": ["b c"], "s.k": ["1", "2"], "s.f": ["false"], "s.g": [], "out": ["d"]}
    both = pipeline.commands("python stages/x.py --a 1\npython stages/y.py --b 2")
    assert [(c.script, c.options) for c in both] == [("x", {"a": ["1"]}), ("y", {"b": ["2"]})]
    assert pipeline.commands("echo stages") == []
    both = 'test -{} "a b" || python stages/x.py ; test -{} "" || test -s file || python stages/y.py'
    assert [c.script for c in pipeline.commands(both.format("n", "n"))] == ["y"]
    assert [c.script for c in pipeline.commands(both.format("z", "z"))] == ["x"]


def test_overrides_are_applied_with_their_types():
    command = pipeline.Command("x", {"world.seeds": ["4", "5"], "no": [], "attentioncut.lambda": ["0.5"],
                                     "train_decoder.alone": [], "generate.negative": []})  # fmt: skip
    p = command.parameters(COMMITTED, "p")
    assert p.world.seeds == (4, 5) and p.attentioncut.lambda_ == 0.5 and p.train_decoder.alone is True
    assert p.generate.negative == ""


@pytest.mark.parametrize("target", ["tables/nowhere/dvc.yaml", "nowhere", "tables/diffusionseg-tab3/dvc.yaml:nowhere"])
def test_a_target_that_is_none_is_refused(target):
    with pytest.raises(UserError, match=f"{target}: expected a dvc.yaml of this repository"):
        pipeline.read(ROOT, COMMITTED, [target])


def test_targets_are_what_dvc_repro_takes():
    def names(*targets: str) -> list[str]:
        return [stage.name for stage in pipeline.read(ROOT, COMMITTED, targets)]

    cut = names("attentioncut@test")
    assert sorted(cut[:-2]) == ["pretrain", "world"] and cut[-2:] == ["invert_features@test", "attentioncut@test"]
    family = names("attentioncut", "world")
    made = {n.partition("@")[2] for n in family if n.startswith("attentioncut")}
    assert made == {"test", "noprior", "generated"}
    row = names("tables/diffusionseg-tab3/dvc.yaml:rows@unet-syn-few")
    assert row == names("tables/diffusionseg-tab3:rows@unet-syn-few")
    assert [n for n in row if n.startswith("tables/diffusionseg-tab3")] == [row[-1]]


def test_folders_that_a_command_leaves_out_are_those_of_the_script():
    (command,) = pipeline.commands("python stages/generate.py --out data/other", ROOT)
    assert command.option("prompts") == "data/prompts.csv" and command.option("out") == "data/other"
    assert pipeline.commands("python stages/generate.py")[0].option("prompts") == ""
    for script in costs.HANDLERS:  # every stage that is counted is there, and names its folders where they can be read
        path = ROOT / f"stages/{script}.py"
        assert not path.is_file() or pipeline.defaults(path) or script in ("join_sets", "table", "ledger"), path
    assert pipeline.defaults(ROOT / "stages/support.py")["out"] == "data/support"
    assert "class" not in pipeline.defaults(ROOT / "stages/support.py")  # None: no default
    assert pipeline.defaults(ROOT / "stages/nowhere.py") == {}


def test_every_stage_of_every_pipeline_is_counted():
    files = [ROOT / "dvc.yaml", *ROOT.glob("tables/**/dvc.yaml")]
    called = {script for path in files for script in re.findall(r"python stages/(\w+)\.py", path.read_text())}
    assert len(called) > 25 and called <= set(costs.HANDLERS)


# --- counts by hand ---------------------------------------------------------------------------------------------------


def test_calls_of_the_miniature(mini):
    p = params.loads(COMMITTED, "p")
    held = p.world.test_count * len(p.world.seeds)
    assert held == 300 and p.prompts.count == 960 and p.generate.steps == 10 and p.invert_features.steps == 20
    assert mini["generate"].cost.calls == 960 * 10 * 2  # guidance: with and without the prompt
    assert mini["invert_features@generated"].cost.calls == 960 * 10 * 2  # there and back
    assert mini["invert_features@test"].cost.calls == mini["invert_features@noprior"].cost.calls == 300 * 20 * 2
    assert mini["invert_features@wrong_word"].cost.calls == 300 * 20  # no features: there only
    assert mini["attentioncut@test"].cost.cuts == 300 and mini["attentioncut@test"].cost.calls == 0
    assert mini["train_decoder"].cost.items == 960 - 96 and mini["train_decoder"].cost.steps == 1500


def test_calls_of_the_papers_profile(sd14):
    test = 1000 + 5019 + 1000 + 5011
    assert sd14["tables/benchmarks:benchmarks@test"].cost.items == test
    assert sd14["generate"].cost.calls == 4_000_000 == 50_000 * 40 * 2
    assert sd14["invert_features@generated"].cost.calls == 50_000 * 40 * 2
    assert sd14["invert_features@test"].cost.calls == test * 40 * 2
    assert sd14["train_decoder"].cost.items == 49_500 and sd14["train_decoder"].cost.steps == 50_000


def test_calls_of_the_stages_of_tables():
    targets = ["tables/ovdiff-cost", "tables/diffusionseg-prose", "tables/distillation-fig3", "distill_unet_syn"]
    p, jobs = params.loads(COMMITTED, "p"), counted(COMMITTED, pipeline.read(ROOT, COMMITTED, targets))

    def of(script: str) -> costs.Job:
        return next(j for j in jobs.values() if any(c.script == script for c in j.stage.commands))

    s, a, classes = p.support, p.attention_curves, 3
    assert of("ovdiff_cost").cost.calls == (1 + classes) * s.count * (s.steps * 2 + max(p.extractors.sd.draws, 1))
    assert of("reconstruction").cost.calls == 300 * p.invert_features.steps
    n = of("attention_curves").cost.items
    assert n and of("attention_curves").cost.calls == n * (max(*a.t0, a.token_t0) + a.repeats * max(a.samples))
    joined = p.concept.count + p.concept_set.count  # D_s and D'_s
    assert jobs["distill_unet_syn"].cost.items == joined - round(p.train_decoder.validation * joined)


def test_guidance_one_is_one_call_a_step_and_a_limit_counts_per_draw(stages):
    jobs = counted(text_of("", generate__guidance=1.0, invert_features__limit=5), stages)
    assert jobs["generate"].cost.calls == 960 * 10 and jobs["generate"].cost.guided == 1
    assert jobs["invert_features@test"].cost.items == 15


def test_the_record_and_the_features_of_stable_diffusion_by_hand():
    """Five transformer blocks at 64, 32 and 16 (two down, three up) and one at 8; 4 bins, pairs of 32 x 32 cells of
    float16."""
    shape = shapes.of_model(SD14)
    call = shapes.call(shape, 64)
    assert sorted(call.cross) == sorted(call.own) == [8] + [16] * 5 + [32] * 5 + [64] * 5
    cross = 4 * (5 * (64**2 + 32**2 + 16**2) + 8**2) * 2
    near = 8 * (64**2 + 32**2 + 16**2 + 8**2) * 2
    pairs = 2 * 1024 * 1025 // 2 + 256 * 257 // 2 + 64 * 65 // 2
    assert call.record_bytes(4, 32) - 12 * shapes.HEADER == cross + near + pairs * 2
    assert call.record_bytes(4, 32) < 2.5e6
    assert call.features == ((1280, 16), (1280, 16), (640, 32), (640, 32), (320, 64), (320, 64))
    assert abs(call.feature_bytes / 9.175e6 - 1) < 1e-3
    assert abs(call.flops / 803e9 - 1) < 0.01  # 401 GMAC
    assert shapes.call(shape, 64, "down").features[0] == (320, 64)


@pytest.mark.parametrize(
    ("model", "unet", "text"),
    [(SD14, 859_520_964, 123_060_480), ("a/stable-diffusion-2-1", 865_910_724, 340_387_840),
     ("stabilityai/stable-diffusion-xl-base-1.0", 2_567_463_684, 123_060_480)],
)  # fmt: skip
def test_published_numbers_of_weights(model, unet, text):
    weights = shapes.of_model(model).weights
    assert weights["unet"] == unet and weights["text_encoder"] == text and weights["vae"] == 83_653_863
    assert ("text_encoder_2" in weights) == ("xl" in model)


def test_an_autoencoder_that_is_computed_in_float32_takes_its_memory():
    xl, sd1 = shapes.of_model("stabilityai/stable-diffusion-xl-base-1.0"), shapes.of_model(SD14)
    assert (xl.vae_dtype("float16"), xl.vae_dtype("bfloat16"), sd1.vae_dtype("float16")) == (
        "float32", "bfloat16", "float16")  # fmt: skip
    assert xl.weight_bytes("float16") == sum(xl.weights.values()) * 2 + xl.weights["vae"] * 2
    assert shapes.vae_bytes(xl, 1024, "float16") == 2 * shapes.vae_bytes(xl, 1024, "bfloat16")


def test_a_model_whose_size_nobody_knows_is_refused():
    with pytest.raises(UserError, match="model.id nobody/some-model: expected a folder, or a name that says which"):
        shapes.of_model("nobody/some-model")


def test_sizes_on_disk(mini, tmp_path):
    """Against stores as the stages write them: 20 made records and features, and pictures that were made for this."""
    call = shapes.call(shapes.of_folder(ROOT / "data/mini"), 16)
    sample: dict[str, np.ndarray] = {}
    for r in set(call.cross):
        sample[f"cross_{r}"] = np.zeros((4, call.cross.count(r), r, r), np.float16)
        sample[f"near_{r}"] = np.zeros((8, r, r), np.float16)
        sample[f"pairs_{r}"] = np.zeros(min(r, 32) ** 2 * (min(r, 32) ** 2 + 1) // 2, np.float16)
    ids = [f"{k:05d}-bird" for k in range(20)]
    with store.ShardWriter(tmp_path / "records", ids, "f" * 32, {}, 20, tmp_path / "scratch") as writer:
        writer.put(0, dict.fromkeys(ids, sample))
        writer.assemble()
    real = (tmp_path / "records/00000.safetensors").stat().st_size
    assert abs(20 * call.record_bytes(4, 32) / real - 1) < 0.02


@pytest.mark.skipif(not (ROOT / "data/inverted/world").is_dir(), reason="the pipeline has not run here")
@pytest.mark.parametrize("name", ["world", "generate", "invert_features@test", "invert_features@generated",
                                  "invert_features@wrong_word", "attentioncut@test", "train_decoder"])  # fmt: skip
def test_sizes_of_what_the_miniature_left_on_disk_are_within_a_quarter(mini, name):
    expected = mini[name].cost.disk
    if not all((ROOT / path).exists() for path in expected):
        pytest.skip("not made yet")
    real = sum(machine.bytes_on_disk(ROOT / path) for path in expected)
    assert abs(sum(expected.values()) / real - 1) < 0.25


# --- what stops a run -------------------------------------------------------------------------------------------------


def plan_of(jobs: dict[str, costs.Job], text: str, **there: float) -> report.Plan:
    p = params.loads(text, "p")
    found = report.Machine(Runtime("cpu", 8, 2), there.get("memory", 1e12), there.get("disk", 1e15), None, 2)
    wanted = [needs.Need("model.id x", True)]
    rates = report.Rates(machine.Speed(0.01, 16, 8, 1e6, 50), 0.01, {"train_decoder": 0.02})
    return report.Plan("p", p, shapes.of_model(p.model.id), list(jobs.values()), wanted, rates, found, Path("/nowhere"))


def test_hours_are_calls_times_the_measured_call_over_the_workers(mini, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = plan_of(mini, text_of(""))
    job = mini["invert_features@test"]
    vae = 300 * shapes.vae_flops(plan.shape, 64)[0] / shapes.call(plan.shape, 16).flops  # in U-Net calls
    assert report.seconds(job, plan) == pytest.approx(costs.START + (12_000 + vae) * 0.01 / 2)
    assert report.seconds(mini["attentioncut@test"], plan) == pytest.approx(costs.START + 300 * 0.01 / 2)
    assert report.seconds(mini["train_decoder"], plan) == pytest.approx(costs.START + 1500 * 0.02)
    assert report.seconds(mini["pretrain"], plan) == 0
    shown = report.table(plan)
    assert "19,200" in shown and "85.9 MB" in shown and "found    model.id x" in shown
    assert report.problems(plan) == []


def test_disk_counts_the_copy_in_dvcs_cache_and_stops_a_run_that_does_not_fit(mini, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = plan_of(mini, text_of(""))
    needed, there = report.disk(plan)
    kept = sum(sum(j.cost.disk.values()) for name, j in mini.items() if name != "pretrain")
    assert needed == pytest.approx(2 * kept + 24e6, rel=0.01) and there == 0  # the miniature itself is in git
    small = replace(plan, machine=replace(plan.machine, disk=needed * 0.9))
    (line,) = report.problems(small)
    assert line.startswith("disk: 1.") and "`dvc config cache.type hardlink,symlink` halves it" in line
    linked = replace(small, machine=replace(small.machine, copies=1))
    assert report.problems(linked) == []


def test_memory_that_is_not_there_stops_a_run(mini, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = report.problems(plan_of(mini, text_of(""), memory=1.5e9))
    assert any(line.startswith("generate: about ") and "MASKMILL_WORKERS" in line for line in lines)


def test_sets_that_name_no_class_stop_the_priors_that_need_one(sd14, sd14_stages):
    assert sd14["invert_features@test"].cost.trouble == ""  # CLIP needs none
    assert sd14["invert_features@wrong_word"].cost.trouble == ""  # nor to say what is not there
    ecssd = {"benchmarks__ecssd": "/sets/ecssd"}
    for change, name in (({"invert_features__labels": ""}, "wrong_word"), ({"model__clip": ""}, "wrong_word"),
                         ({"invert_features__prior": "dataset"}, "test")):  # fmt: skip
        jobs = counted(text_of("sd14", **ecssd, **change), sd14_stages)
        assert "data/benchmarks names no class" in jobs[f"invert_features@{name}"].cost.trouble
    none = counted(text_of("sd14"), sd14_stages)["tables/benchmarks:benchmarks@test"]
    assert none.cost.trouble.startswith("no data set is named: set at least one of benchmarks.ecssd, ")


def test_a_concept_without_its_pictures_stops_a_run(sd14_stages):
    jobs = counted(text_of("sd14"), sd14_stages)
    assert jobs["concept"].cost.trouble == "concept.root: expected the folder of cub, got ''"
    jobs = counted(text_of("sd14", concept__root="/sets/cub"), sd14_stages)
    p = jobs["concept"].params
    assert jobs["concept"].cost.trouble == "" and jobs["concept"].cost.items == 10_788 + 1_000
    assert jobs["distill_inpaint"].cost.trained == p.distill_inpaint.steps * p.distill_inpaint.batch
    assert jobs["mean_attention@train"].cost.calls == 10_788 * 40
    assert jobs["support@dog"].cost.calls == 32 * 30 * 2  # N pictures of 30 steps, with and without the prompt


def test_a_size_that_the_model_cannot_make_stops_a_run(stages):
    assert "multiple of 4" in counted(text_of("", generate__size=66), stages)["generate"].cost.trouble


def test_a_training_on_more_pairs_than_there_are_stops_a_run(stages):
    assert "864" in counted(text_of("", train_decoder__pairs=900), stages)["train_decoder"].cost.trouble


# --- weights and data sets --------------------------------------------------------------------------------------------


def test_weights_in_a_folder_are_found_and_a_missing_part_is_named(tiny_model, tmp_path):
    assert needs.model(str(tiny_model), "") == needs.Need(f"model.id {tiny_model}", True)
    (tmp_path / "model").mkdir()
    missing = needs.model(str(tmp_path / "model"), "")
    assert not missing.found and "model_index.json" in missing.line
    assert needs.clip(str(tiny_model / "clip")).found and not needs.clip(str(tmp_path)).found


def test_missing_weights_say_what_to_download_to_where(monkeypatch, tmp_path):
    monkeypatch.setattr(needs, "in_cache", lambda *a: False)
    need = needs.model(SD14, "abc")
    assert not need.found and need.line == (
        "hf download CompVis/stable-diffusion-v1-4 --revision abc --include '*.json' --include '*.txt' "
        "--include '*/*model.safetensors' --exclude 'safety_checker/*' --exclude 'feature_extractor/*' "
        "--local-dir models/stable-diffusion-v1-4, then set model.id to models/stable-diffusion-v1-4 "
        "(4.3 GB in float32)"
    )
    assert "--include '*.json' --include '*.safetensors' --local-dir" in needs.clip("ViT-B-32/laion2b_s34b_b79k").line
    assert "hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K" in needs.clip("ViT-B-32/laion2b_s34b_b79k").line
    assert "or set prompts.source to grammar" in needs.language_model("Qwen/Qwen2.5-1.5B-Instruct", "main").line
    assert "neither" in needs.clip("ViT-B-32/no-such-tag").line
    assert "no such folder" in needs.model("models/nowhere", "").line
    monkeypatch.setattr(needs, "in_cache", lambda *a: True)
    assert needs.model(SD14, "abc").found and needs.clip("ViT-B-32/laion2b_s34b_b79k").found


def test_a_download_that_broke_off_is_missing_and_halves_serve_float16_alone(monkeypatch):
    there: set[str] = {"model_index.json"}
    monkeypatch.setattr(needs, "in_cache", lambda id, revision, file: file in there)
    assert not needs.model(SD14, "").found
    there |= {f"{part}/diffusion_pytorch_model.fp16.safetensors" for part in ("unet", "vae")}
    assert not needs.model(SD14, "", "float16").found
    there.add("text_encoder/model.fp16.safetensors")
    assert needs.model(SD14, "", "float16").found and not needs.model(SD14, "", "bfloat16").found
    assert not needs.model("stabilityai/stable-diffusion-xl-base-1.0", "", "float16").found  # its second encoder


def test_data_sets_that_are_named_must_be_whole_and_others_are_left_out(tmp_path):
    p = params.loads(text_of("", benchmarks__ecssd=str(tmp_path)), "p")
    first, *others = needs.data_sets(p, "test")
    assert not first.found and not first.optional and "images" in first.line and "leojia" in first.line
    assert len(others) == 6 and all(n.optional and "left out" in n.line for n in others)


# --- measuring --------------------------------------------------------------------------------------------------------


def test_the_measurement_takes_the_largest_call_that_fits():
    flops = {8: 1.0, 16: 4.0, 32: 16.0, 64: 64.0}

    def timed(side: int, rows: int) -> float:
        asked.append((side, rows))
        return flops[side] * rows * 0.001

    asked: list[tuple[int, int]] = []
    side, rows, times, share = machine.choose(timed, flops.__getitem__, 64, 16, 0.03, 8)
    assert (side, rows, share) == (16, 1, 16.0) and times[0] == 0.004 and asked[0] == (8, 1)
    side, rows, times, share = machine.choose(timed, flops.__getitem__, 64, 2, 0.6, 8)
    assert (side, rows, share) == (64, 2, 1.0)


def test_the_miniatures_unet_is_measured_with_random_weights_in_its_shape():
    shape = shapes.of_folder(ROOT / "data/mini")
    speed = machine.measure_unet(shape, 16, "float32", "cpu", 4, seconds=1.0)
    assert isinstance(speed, machine.Speed) and speed.side in (4, 8, 16) and 1e-4 < speed.seconds < 60
    assert speed.activations < 2e8  # whatever was measured: it is a small model
    assert abs(shapes.activation_bytes(shapes.of_model(SD14), 64, "float32") / 0.3e9 - 1) < 0.1  # bench/capture.py
    p = params.loads(COMMITTED, "p")
    assert 1e-4 < machine.measure_cut(shapes.call(shape, 16), p, 64, 0.1) < 5
    assert 1e-4 < machine.measure_step(shapes.call(shape, 16), p, "cpu", 0.1) < 60


def test_a_model_that_does_not_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 1e9)
    said = machine.measure_unet(shapes.of_model(SD14), 64, "float32", "cpu", 1)
    assert said == "not measured: its U-Net alone needs 3.4 GB, 1.0 GB are free"


def test_copies_that_dvc_keeps():
    assert [machine.copies(t) for t in ("", "reflink,copy", "hardlink,symlink", "symlink")] == [2, 2, 1, 1]


# --- the command ------------------------------------------------------------------------------------------------------


def run(monkeypatch, *argv: str) -> int:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MASKMILL_DEVICE", "cpu")
    monkeypatch.setattr(sys, "argv", ["maskmill.plan", *argv])
    with pytest.raises(SystemExit) as stopped:
        exit_cleanly(main)
    return stopped.value.code


def test_the_command_plans_a_profile_that_cannot_run_here(monkeypatch, capsys):
    assert run(monkeypatch, "--profile", "sd14", "--quick") == 1
    said = capsys.readouterr()
    assert "4,000,000" in said.out and "MISSING" in said.out and "not used benchmarks.ecssd" in said.out
    assert "This run cannot end well:" in said.err and "set at least one of benchmarks.ecssd" in said.err


def test_an_unknown_profile_is_one_line(monkeypatch, capsys):
    assert run(monkeypatch, "--profile", "sd41", "--quick") == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "expected one of" in said.err and said.out == ""


def test_numbers_in_words():
    assert [report.size_text(n) for n in (0, 999, 1.5e6, 152e6, 4.27e9, 1.2e12)] == [
        "0 B", "999 B", "1.5 MB", "152 MB", "4.3 GB", "1.2 TB"]  # fmt: skip
    assert [report.time_text(s) for s in (None, 5, 600, 7200, 3 * 86400)] == ["?", "5 s", "10 min", "2.0 h", "3 d"]
    lines = report.columns([("a", "bb", ""), ("ccc", "d", "e"), ("all", "1", "")])
    assert lines == ["a    bb", "-------", "ccc   d  e", "-------", "all   1"]
