"""Writes checkpoint folders as transformers 5 does: tokenizer.json and no vocab.txt, with small random weights."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pipeline.support.quiet import import_quietly
from pipeline.tasks import get_task

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZES: dict[str, dict[str, int]] = {
    "Bert": {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 96,
    },
    "DistilBert": {"dim": 64, "n_layers": 1, "n_heads": 2, "hidden_dim": 96},
}


@cache
def demo_texts() -> list[str]:
    """Returns the texts of the embedded data: sentences, questions and passages."""
    texts = [example.text for part in get_task("classification").load_demo() for example in part]
    for part in get_task("qa").load_demo():
        texts += [text for example in part for text in (example.question, example.passage)]
    return list(dict.fromkeys(texts))


@cache
def demo_vocabulary(lowercase: bool) -> list[str]:
    """Returns words of the embedded data, letters with and without accents, punctuation, CJK and pieces of words."""
    words: dict[str, None] = {}
    for text in demo_texts():
        words |= dict.fromkeys(re.findall(r"\w+", text.lower() if lowercase else text))
    letters = "abcdefghijklmnopqrstuvwxyzéèüßñçøåæœðабвгд0123456789"
    letters += "" if lowercase else "ABCDEFGHIJKLMNOPQRSTUVWXYZÉÜÅİ"
    signs = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~“”–—…。、漢字中文ひらがな한국어"
    pieces = [f"##{letter}" for letter in letters + "漢字中文"] + ["##ing", "##ed", "##er"]
    return list(dict.fromkeys([*SPECIAL, *signs, *letters, *pieces, *words]))


def save_tokenizer(folder: Path, kind: str, lowercase: bool, **options: Any) -> None:
    """Writes the tokenizer's files of a "Bert" or "DistilBert"."""
    vocab = {token: number for number, token in enumerate(demo_vocabulary(lowercase))}
    tokenizer = getattr(import_quietly("transformers"), f"{kind}Tokenizer")
    tokenizer(vocab=vocab, do_lower_case=lowercase, **options).save_pretrained(folder)
    assert not (folder / "vocab.txt").exists() and (folder / "tokenizer.json").exists()


def save_checkpoint(folder: Path, kind: str, head: str, lowercase: bool = True, **config: Any) -> Path:
    """Writes a checkpoint with its tokenizer, for example of "Bert" with "ForQuestionAnswering"."""
    transformers = import_quietly("transformers")
    sizes = {"max_position_embeddings": 128, "vocab_size": len(demo_vocabulary(lowercase)), **SIZES[kind], **config}
    torch.manual_seed(0)
    model = getattr(transformers, kind + head)(getattr(transformers, f"{kind}Config")(initializer_range=0.3, **sizes))
    model.save_pretrained(folder)
    save_tokenizer(folder, kind, lowercase)
    return folder
