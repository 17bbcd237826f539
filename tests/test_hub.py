"""Ids of the hub, and the line that says how to get a missing model."""

from __future__ import annotations

import huggingface_hub.constants
import pytest

from maskmill.errors import UserError
from maskmill.hub import download, download_model, is_hub_id
from maskmill.prompts import load_tokenizer


@pytest.mark.parametrize(
    ("text", "is_id"),
    [("owner/name", True), ("name", False), ("models/name", False), ("data/mini", False), ("./owner/name", False),
     ("/owner/name", False), ("~/name", False), ("a/b/c", False), ("", False)],
)  # fmt: skip
def test_ids_are_told_from_folders(text, is_id):
    assert is_hub_id(text) == is_id


def test_every_pattern_has_its_own_option():
    line = download("owner/name", "v1", "model.clip", ("*.json", "*.txt"), ("old/*",))
    assert line == ("hf download owner/name --revision v1 --include '*.json' --include '*.txt' --exclude 'old/*' "
                    "--local-dir models/name, then set model.clip to models/name")  # fmt: skip
    line = "hf download owner/name --local-dir models/name, then set x to models/name"
    assert download("owner/name", "", "x") == line


def test_a_tokenizer_that_is_not_at_hand_says_how_to_get_the_model(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the variable was read at the import
    with pytest.raises(UserError) as caught:
        load_tokenizer("nobody/no-such-model", "abc")
    assert download_model("nobody/no-such-model", "abc") in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="models/nothing-here: expected a model folder or an id of the hub"):
        load_tokenizer("models/nothing-here")
