"""The fine-tuned model as a source of pictures: between its concepts, and each of them by itself."""

import numpy as np
import pytest

from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.concepts import ConceptSampler, object_prompt
from maskmill.errors import UserError

PROMPTS = ("a photo of a bird", "a photo of a background")


def sampler(model, negative: str = "", size: int = 64) -> ConceptSampler:
    return ConceptSampler(Backbone(str(model)), model / "unet", PROMPTS, size, 2, negative)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """The same picture up to the rounding of another order of sums."""
    return int(np.abs(a.astype(int) - b.astype(int)).max()) <= 1


def test_at_scale_one_a_concept_alone_is_the_end_of_the_way_between_them(tiny_model):
    """w = 1 and w = 0 of equation 10 know one concept; so does classifier-free guidance of scale 1."""
    paint = sampler(tiny_model)
    between = {w: paint([3, 4], w) for w in (0.0, 1.0)}
    assert between[1.0].shape == (2, 64, 64, 3) and between[1.0].dtype == np.uint8
    assert close(paint.alone([3, 4], "y_f", 1.0), between[1.0])
    assert close(paint.alone([3, 4], "y_b", 1.0), between[0.0])
    assert not close(between[0.0], between[1.0])


def test_alone_is_guided_away_from_the_negative_prompt_and_not_from_the_other_concept(tiny_model):
    between = sampler(tiny_model)([3], 3.0)
    assert not close(sampler(tiny_model).alone([3], "y_f", 3.0), between)
    other = sampler(tiny_model, negative=PROMPTS[1])
    assert close(other.alone([3], "y_f", 3.0), between)  # the other concept as the negative prompt is the way between
    assert close(other.alone([3], "y_b", 3.0), other([3], 0.0))  # away from itself: guidance has nothing to add


def test_a_picture_depends_on_its_own_seed_alone(tiny_model):
    paint = sampler(tiny_model)
    for both, one in ((paint([3, 4], 2.0), paint([4], 2.0)),
                      (paint.alone([3, 4], "y_f", 2.0), paint.alone([4], "y_f", 2.0))):  # fmt: skip
        assert close(both[1:], one) and not close(both[:1], one)


def test_object_prompts():
    assert object_prompt("a photo of a {}", "boat") == PROMPTS[0].replace("bird", "boat")
    with pytest.raises(UserError, match=r"distill\.object: expected a text with \{\} where the word goes"):
        object_prompt("a photo", "boat")


def test_a_size_that_is_no_whole_number_of_cells_is_refused(tiny_model):
    with pytest.raises(UserError, match="generate.size: expected a multiple of .*, got 63"):
        sampler(tiny_model, size=63)
