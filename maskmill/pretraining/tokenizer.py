"""The miniature's tokenizer: an ordinary CLIPTokenizer whose byte-pair merges were learnt from the world's captions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def build(captions: Iterable[str], context: int, folder: Path) -> CLIPTokenizer:
    """Learn merges until every frequent word is one token; save to ``folder`` and load it from there.

    As in CLIP, the vocabulary starts with all bytes, plain and word-final, so that any text can be spelt; the end
    token has the largest id (open_clip pools the text there) and also pads.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=4000, min_frequency=20, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator(captions, trainer)
    learnt = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split()) for m in learnt["merges"]]

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [a + "</w>" for a in alphabet]
    tokens += list(dict.fromkeys("".join(m) for m in merges))
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, BOS, EOS]))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
