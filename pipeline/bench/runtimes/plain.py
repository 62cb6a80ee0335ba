"""The student as a user has it without this project: Hugging Face's module with one head. The peers run this model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.model.checkpoint import load_model
from pipeline.model.encoder import attention_bias
from pipeline.model.exit_model import ExitModel
from pipeline.model.pretrained import DISTILBERT_LAYER, DISTILBERT_QKV, fold_token_types
from pipeline.support.quiet import import_quietly, quiet_logging
from pipeline.tasks import get_task


class PlainModel(nn.Module):
    """`DistilBertModel` with the student's weights, followed by the student's last head.

    Args:
        model: the student, of any shape. A BERT without token types and pooler is a DistilBERT.
        attention: Hugging Face's name of an attention implementation.
    """

    def __init__(self, model: ExitModel, attention: str = "sdpa"):
        super().__init__()
        transformers = import_quietly("transformers")
        config, state = fold_token_types(model.config, model.encoder.state_dict())
        distilbert_config = transformers.DistilBertConfig(
            vocab_size=config.vocab_size,
            dim=config.hidden_size,
            n_layers=config.layers,
            n_heads=config.heads,
            hidden_dim=config.intermediate_size,
            max_position_embeddings=config.max_positions,
            attn_implementation=attention,
        )
        with torch.random.fork_rng(devices=[]), quiet_logging():
            self.encoder = transformers.DistilBertModel(distilbert_config)
        self.encoder.load_state_dict(hugging_face_state(state, config.layers))
        for module in self.encoder.modules():
            if isinstance(module, nn.LayerNorm):  # DistilBertConfig has no field for it
                module.eps = config.layer_norm_eps
        self.task, self.head = model.task, model.heads[-1]
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, folder: Path, attention: str = "sdpa") -> PlainModel:
        """Loads the student from a folder that `save_model` wrote."""
        return cls(load_model(folder), attention)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Returns (logits [1, labels],), or for question answering (start logits, end logits), [1, length] each.

        Args:
            input_ids, attention_mask: integers [1, length].
        """
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.head(hidden, attention_bias(attention_mask))
        return get_task(self.task).split_logits(logits)


def hugging_face_state(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Renames an encoder's state dict for `DistilBertModel`, as `convert_encoder` does in the other direction.

    Args:
        state: an encoder's state dict without token types.
        layers: number of layers.
    """
    embeddings = {"word.weight": "word_embeddings.weight", "position.weight": "position_embeddings.weight"}
    embeddings |= {f"norm.{kind}": f"LayerNorm.{kind}" for kind in ("weight", "bias")}
    renamed = {f"embeddings.{theirs}": state[f"embeddings.{ours}"] for ours, theirs in embeddings.items()}
    for layer in range(layers):
        target, source = f"transformer.layer.{layer}", f"layers.{layer}"
        for kind in ("weight", "bias"):
            for name, part in zip(DISTILBERT_QKV, state[f"{source}.qkv.{kind}"].chunk(3)):
                renamed[f"{target}.{name}.{kind}"] = part
            for theirs, ours in DISTILBERT_LAYER.items():
                renamed[f"{target}.{theirs}.{kind}"] = state[f"{source}.{ours}.{kind}"]
    return renamed
