"""The zero-shot judge on a random CLIP: its arithmetic, its independence of neighbours, the words it picks, and what it
refuses."""

from __future__ import annotations

import json
import shutil
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from maskmill.datasets.table import read_image, read_table
from maskmill.errors import UserError
from maskmill.labels import load_labels
from maskmill.zeroshot import PRIOR_TEMPLATES, TEMPLATES, ZeroShot, _full_batches, pick_words, with_article

CLASSES = ("bird", "dog", "car", "house")


@pytest.fixture(scope="module")
def judge(tiny_model) -> ZeroShot:
    return ZeroShot(str(tiny_model / "clip"), CLASSES)


@pytest.fixture(scope="module")
def images(world_set) -> list[np.ndarray]:
    return [read_image(world_set / i.image) for i in read_table(world_set)[:4]]


@pytest.fixture
def copied(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model / "clip", tmp_path / "clip"))


def test_the_weights_are_those_of_the_folder(judge, tiny_model):
    weights = load_file(tiny_model / "clip" / "open_clip_model.safetensors")
    assert all(torch.equal(v, weights[k]) for k, v in judge.model.state_dict().items())


def test_probabilities_sum_to_one_and_tell_pictures_apart(judge, images):
    p = judge.probabilities(images)
    assert p.shape == (4, 4) and p.dtype == np.float64
    assert np.allclose(p.sum(1), 1, atol=1e-12) and (p > 0).all()
    assert np.abs(p[0] - p[1]).max() > 1e-4 and p.std(1).min() > 1e-4


def test_a_picture_owes_nothing_to_its_neighbours(judge, images):
    together = judge.probabilities(images)
    for i, image in enumerate(images):
        assert np.array_equal(judge.probabilities([image])[0], together[i])
    assert np.array_equal(judge.probabilities(images[::-1])[::-1], together)


def test_the_order_of_the_classes_does_not_matter(judge, images, tiny_model):
    other = ZeroShot(str(tiny_model / "clip"), CLASSES[::-1])
    assert other.classes == CLASSES[::-1]
    assert np.allclose(other.probabilities(images)[:, ::-1], judge.probabilities(images), atol=1e-6)


def test_a_class_is_the_mean_of_its_normalised_prompts(judge, images, tiny_model):
    """softmax over classes of scale * <image, class>, everything of length one, by hand for one picture."""
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_model / 'clip'}")
    x = torch.tensor(images[0]).permute(2, 0, 1)[None] / 127.5 - 1  # 64 pixels as they are, mean and std 0.5
    with torch.inference_mode():
        picture = judge.model.encode_image(x)[0]
        rows = []
        for cls in CLASSES:
            text = judge.model.encode_text(tokenizer([t.format(cls) for t in TEMPLATES]))
            rows.append((text / text.norm(dim=1, keepdim=True)).mean(0))
    cosine = torch.stack([(r / r.norm()) @ (picture / picture.norm()) for r in rows])
    expected = (float(judge.model.logit_scale.exp()) * cosine).softmax(0)
    assert np.allclose(judge.probabilities(images[:1])[0], expected.numpy(), atol=1e-5)


def test_a_path_with_a_space_and_other_templates(tiny_model, images):
    assert " " in str(tiny_model)
    one = ZeroShot(str(tiny_model / "clip"), CLASSES, templates=("{}",))
    assert not np.allclose(one.probabilities(images), ZeroShot(str(tiny_model / "clip"), CLASSES).probabilities(images))


def test_one_at_a_time_bit_by_bit(judge, images, tiny_model):
    """The plain loops over classes and pictures, which the judge of the shipped results ran."""
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_model / 'clip'}")
    with torch.inference_mode():
        rows = []
        for cls in CLASSES:
            text = judge.model.encode_text(tokenizer([t.format(cls) for t in TEMPLATES]), normalize=True)
            rows.append(torch.nn.functional.normalize(text.mean(0), dim=0))
        assert torch.equal(judge.text, torch.stack(rows))
        for image, p in zip(images, judge.probabilities(images), strict=True):
            picture = judge.model.encode_image(judge.preprocess(Image.fromarray(image))[None], normalize=True)
            expected = (judge.scale * picture.double() @ judge.text.double().T).softmax(-1)[0]
            assert np.array_equal(p, expected.numpy())


# --- in batches -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batched(tiny_model) -> ZeroShot:
    return ZeroShot(str(tiny_model / "clip"), CLASSES, batch=3)  # neither 4 classes nor 4 pictures fill the last one


def test_batches_are_full_and_lose_nothing():
    assert list(_full_batches("abcde", 2)) == [(["a", "b"], 2), (["c", "d"], 2), (["e", "e"], 1)]
    assert list(_full_batches("ab", 1)) == [(["a"], 1), (["b"], 1)] and list(_full_batches("", 2)) == []
    assert next(_full_batches(count(), 3)) == ([0, 1, 2], 3)  # an endless iterator: reads no further than it must


def test_batches_change_the_rounding_only(judge, batched, images):
    assert batched.text.shape == judge.text.shape
    assert np.allclose(batched.probabilities(images), judge.probabilities(images), atol=1e-6)


def test_in_batches_too_a_picture_owes_nothing_to_its_neighbours(batched, images):
    together = batched.probabilities(iter(images))
    for i, image in enumerate(images):
        assert np.array_equal(batched.probabilities([image])[0], together[i])
    assert np.array_equal(batched.probabilities(images[::-1])[::-1], together)


def test_pictures_of_any_sizes(batched, images):
    mixed = [images[0], np.kron(images[1], np.ones((2, 3, 1), np.uint8))]
    assert np.array_equal(batched.probabilities(mixed)[0], batched.probabilities(images)[0])


def test_no_picture_at_all(judge, batched):
    assert judge.probabilities([]).shape == batched.probabilities([]).shape == (0, 4)
    assert pick_words(batched, [], CLASSES) == []


# --- the words it picks -----------------------------------------------------------------------------------------------


def saying(*rows: list[float]) -> SimpleNamespace:
    return SimpleNamespace(probabilities=lambda images: np.array(rows))


def test_a_word_has_the_sum_of_its_labels():
    words = ["dog", "wolf", "dog", "dog"]
    picks = pick_words(saying([0.2, 0.4, 0.25, 0.15], [0.1, 0.6, 0.1, 0.2]), [0, 1], words)
    assert [word for word, _ in picks] == ["dog", "wolf"]  # wolf has the largest label in both
    assert [p for _, p in picks] == pytest.approx([0.6, 0.6])
    assert all(type(p) is float for _, p in picks)
    assert pick_words(saying([0.25] * 4), [0], ["b", "a", "b", "a"])[0][0] == "b"  # a tie goes to the first


def test_words_for_other_classes_are_refused():
    with pytest.raises(ValueError):
        pick_words(saying([0.5, 0.5]), [0], ["dog"])


def test_picks_are_the_judges_own_sums(batched, images):
    words = ("animal", "animal", "thing", "thing")
    p = batched.probabilities(images)
    sums = [{"animal": row[0] + row[1], "thing": row[2] + row[3]} for row in p]
    assert pick_words(batched, images, words) == [max(s.items(), key=lambda pair: pair[1]) for s in sums]
    own = pick_words(batched, images, CLASSES)
    assert own == [(CLASSES[k], p[i, k]) for i, k in enumerate(p.argmax(1))]


def test_imagenets_labels_with_all_templates(tiny_model, images):
    labels = load_labels("imagenet")
    prior = ZeroShot(str(tiny_model / "clip"), labels.labels, PRIOR_TEMPLATES, batch=32)
    assert prior.text.shape == (998, 16) and prior.text.unique(dim=0).shape[0] > 900
    picks = pick_words(prior, images, labels.words)
    assert {word for word, _ in picks} <= set(labels.words) and all(0 < p < 1 for _, p in picks)


@pytest.mark.parametrize(
    "text", ["a dog", "an ox", "an Egyptian Mau", "an hourglass", "a unicycle", "a European polecat", "an umbrella",
             "a one-piece bathing suit", "an iPod", "a house", "a horse", "jeans", "binoculars", "a compass", "a bus",
             "an abacus"],
)  # fmt: skip
def test_articles(text):
    assert with_article(text.split(" ", 1)[-1] if text.startswith(("a ", "an ")) else text) == text


def test_templates_put_the_article_where_they_ask_for_it(tiny_model):
    folder = str(tiny_model / "clip")
    assert all(("{a}" in t) != ("{}" in t) for t in PRIOR_TEMPLATES) and len(set(PRIOR_TEMPLATES)) == 8
    asked = ZeroShot(folder, ("owl", "jeans"), ("a photo of {a}",)).text
    assert torch.equal(asked, ZeroShot(folder, ("an owl", "jeans"), ("a photo of {}",)).text)
    assert not torch.equal(asked, ZeroShot(folder, ("owl", "jeans"), ("a photo of a {}",)).text)


# --- what it refuses --------------------------------------------------------------------------------------------------


def refused(model: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        ZeroShot(str(model), CLASSES)
    assert "\n" not in str(caught.value) and str(model) in str(caught.value)
    return str(caught.value)


def test_a_folder_without_configuration_or_weights(copied):
    next(copied.glob("*.safetensors")).rename(copied / "open_clip_pytorch_model.bin")
    assert "expected weights as *.safetensors, found none" in refused(copied)
    (copied / "open_clip_config.json").unlink()
    assert "without open_clip_config.json" in refused(copied)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", "cut"])
def test_broken_weights(copied, content):
    path = copied / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content == "cut" else content)
    assert "cannot be loaded" in refused(copied)


def test_weights_of_another_model(copied):
    weights = load_file(copied / "open_clip_model.safetensors")
    weights.pop("text_projection")
    save_file(weights, copied / "open_clip_model.safetensors")
    assert "text_projection" in refused(copied)


@pytest.mark.parametrize("text", ["{", "{}", '{"model_cfg": {}}'])
def test_a_broken_configuration(copied, text):
    (copied / "open_clip_config.json").write_text(text)
    assert "cannot be loaded" in refused(copied)


def test_an_unknown_key_in_the_configuration(copied):
    document = json.loads((copied / "open_clip_config.json").read_text())
    document["model_cfg"]["vision_cfg"]["oops"] = 1
    (copied / "open_clip_config.json").write_text(json.dumps(document))
    assert "oops" in refused(copied)


def test_a_folder_without_its_tokenizer(copied):
    for path in copied.glob("tokenizer*"):
        path.unlink()
    assert "cannot be loaded" in refused(copied)


@pytest.mark.parametrize("name", ["ViT-B-16/no-such-tag", "no-such-model/openai", "ViT-B-16", "data/nowhere/clip"])
def test_an_unknown_name(name):
    assert f"model.clip {name}: expected a model folder, or name/tag" in refused(name)


def test_a_known_name_whose_weights_cannot_be_had(monkeypatch):
    def create(*args, **kwargs):
        raise ConnectionError("no network here\nat all")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    assert "no network here at all" in refused("ViT-B-16/openai")
