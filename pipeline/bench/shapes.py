"""Bundles of well-known shapes with random weights. Neither time nor size depends on the values of the weights."""

from __future__ import annotations

import string
from pathlib import Path

import torch

from pipeline.bench.cache import cached_path, code_digest
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.export.bundle import TOOLS, BundleSource, Labels, write_bundle
from pipeline.model.checkpoint import save_model
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from pipeline.support.packages import installed_version
from pipeline.support.progress import OnStep, silent
from pipeline.support.workspace import digest_of
from pipeline.tasks import get_task
from quantize.schemes import apply_scheme

SHAPES: dict[str, EncoderConfig] = {
    "distilbert": EncoderConfig(),
    "minilm": EncoderConfig(hidden_size=384, intermediate_size=1536),
}
SEED = 0
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def shape_bundle(name: str, on_step: OnStep = silent) -> Path:
    """Makes an int8 bundle for classification with an exit after every layer and seeded random weights.

    The first call makes it, and the cache folder keeps it.

    Args:
        name: a key of `SHAPES`.

    Returns:
        a folder with `bundle`, and with the float32 weights in `exits`, as a run leaves them.

    Raises:
        UserError: there is no such shape, or the cache folder cannot be written.
    """
    if name not in SHAPES:
        raise UserError(f"{name!r} is not known; take {' or '.join(SHAPES)}", field="--shape")
    config = SHAPES[name]
    recipe = Recipe.model_validate(
        {
            "name": f"{name}-random",
            "task": "classification",
            "seed": SEED,
            "data": {"max_length": config.max_positions, "label_names": ["negative", "positive"]},
            "export": {"max_length": config.max_positions, "coreml": False},
        }
    )

    def build(folder: Path) -> None:
        (folder / "exits").mkdir(parents=True)
        torch.manual_seed(recipe.seed)
        model = ExitModel(recipe.task, config, 2, recipe.head, range(1, config.layers + 1)).eval()
        save_model(model, folder / "exits")
        vocabulary = folder / "exits" / "vocab.txt"
        vocabulary.write_text("\n".join(letter_vocabulary(config.vocab_size)) + "\n", encoding="utf-8")
        write_bundle(
            folder / "bundle",
            recipe,
            BundleSource(model, apply_scheme(Programs.of(model), recipe.quantize.scheme, recipe.quantize.embeddings)),
            WordPieceTokenizer.from_vocab(vocabulary),
            Labels(("0", "1")),
            speeds={},
            conformance_examples=get_task("classification").load_demo()[1][:8],
            provenance={"weights": f"random, seed {recipe.seed}", "data": "none"},
            on_step=on_step,
        )

    versions = [installed_version(tool) for tool in TOOLS]
    digest = digest_of(recipe.model_dump(), config.to_dict(), versions, code_digest())
    return cached_path(f"{recipe.name}-{digest[:16]}", build)


def letter_vocabulary(size: int) -> list[str]:
    """Returns `size` tokens that spell every word letter by letter; the remaining tokens are never used."""
    characters = string.ascii_lowercase + string.digits
    tokens = [*SPECIAL_TOKENS, *string.punctuation, *characters, *(f"##{character}" for character in characters)]
    return [*tokens, *(f"[unused{index}]" for index in range(size - len(tokens)))][:size]
