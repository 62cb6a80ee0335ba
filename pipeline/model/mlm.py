"""The masked-language-model head. BERT's and DistilBERT's compute the same and differ only in their tensors' names."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.encoder import Encoder, EncoderConfig, initialise
from pipeline.support.errors import UserError

# Our tensor names -> Hugging Face's.
BERT_MLM = {
    "dense.weight": "cls.predictions.transform.dense.weight",
    "dense.bias": "cls.predictions.transform.dense.bias",
    "norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "bias": "cls.predictions.bias",
}
DISTILBERT_MLM = {
    "dense.weight": "vocab_transform.weight",
    "dense.bias": "vocab_transform.bias",
    "norm.weight": "vocab_layer_norm.weight",
    "norm.bias": "vocab_layer_norm.bias",
    "bias": "vocab_projector.bias",
}
# Hugging Face's name of the matrix that scores words; it is tied to the word embeddings unless the checkpoint says
# otherwise.
DECODERS = {"bert": "cls.predictions.decoder.weight", "distilbert": "vocab_projector.weight"}


class MlmHead(nn.Module):
    """Scores every word: dense layer, gelu, layer norm, product with the word embeddings, plus a bias."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(initialise)

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Returns logits [tokens, vocab_size].

        Args:
            hidden: [tokens, hidden_size].
            words: the word embeddings, [vocab_size, hidden_size].
        """
        return F.linear(self.norm(F.gelu(self.dense(hidden))), words, self.bias)


class MaskedLM(nn.Module):
    """An encoder with a masked-LM head: it predicts the words that were masked."""

    def __init__(self, encoder: Encoder, head: MlmHead):
        super().__init__()
        self.encoder, self.head = encoder, head

    def logits(self, hidden: Tensor, chosen: Tensor) -> Tensor:
        """Scores all words, but only at the chosen tokens.

        The vocabulary is by far the widest layer, and the loss needs no other tokens.

        Args:
            hidden: the encoder's last state, [batch, length, hidden_size].
            chosen: [batch, length] bool.

        Returns:
            [chosen tokens, vocab_size], ordered by row, then by position.
        """
        return self.head(hidden[chosen], self.encoder.embeddings.word.weight)


def convert_mlm_head(
    state: dict[str, Tensor], config: EncoderConfig, kind: str, file: Path
) -> dict[str, Tensor] | None:
    """Converts a checkpoint's masked-LM head to a state dict of `MlmHead`.

    Args:
        state: the checkpoint's tensors.
        kind: "bert" or "distilbert".
        file: the checkpoint, for error messages.

    Returns:
        None if the checkpoint has no such head, or one whose decoder is not tied to the word embeddings.

    Raises:
        UserError: a tensor of the head does not fit the encoder's sizes.
    """
    names = BERT_MLM if kind == "bert" else DISTILBERT_MLM
    if not all(name in state for name in names.values()):
        return None
    decoder, words = state.get(DECODERS[kind]), state.get(f"{kind}.embeddings.word_embeddings.weight")
    if decoder is not None and (words is None or not torch.equal(decoder, words)):
        return None
    width = config.hidden_size
    shapes = {"dense.weight": (width, width), "bias": (config.vocab_size,)}
    for ours, theirs in names.items():
        shape, expected = tuple(state[theirs].shape), shapes.get(ours, (width,))
        if shape != expected:
            raise UserError(f"has shape {shape}, config.json says {expected}", file=file, field=theirs)
    return {ours: state[theirs] for ours, theirs in names.items()}
