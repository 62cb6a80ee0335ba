"""Bundles of a well-known shape with random weights: what a run costs and a file weighs does not depend on the weights' values."""

from __future__ import annotations

import string
from pathlib import Path

import torch

from pipeline.bench.cache import code_digest, kept
from pipeline.doctor import installed
from pipeline.export.bundle import TOOLS, write_bundle
from pipeline.model.checkpoint import save_model
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.support.workspace import fingerprint
from pipeline.tasks import get_task
from quantize.schemes import apply_scheme

SHAPES: dict[str, EncoderConfig] = {
    "distilbert": EncoderConfig(),
    "minilm": EncoderConfig(hidden_size=384, intermediate_size=1536),
}
SEED = 0
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def shape_bundle(name: str, on_step: OnStep = silent) -> Path:
    """A bundle of that shape for classification, int8, an exit after every layer, with seeded random weights.

    Made on first use and kept in the cache folder.

    Returns:
        a folder as that of a run: `bundle`, and `exits` with the weights in float32.

    Raises:
        UserError: no such shape, or the cache folder cannot be written.
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
        vocabulary.write_text("\n".join(letters(config.vocab_size)) + "\n", encoding="utf-8")
        write_bundle(
            folder / "bundle",
            model=model,
            quantized=apply_scheme(Programs.of(model), recipe.quantize.scheme, recipe.quantize.embeddings),
            recipe=recipe,
            tokenizer_vocab=vocabulary,
            lowercase=True,
            label_values=("0", "1"),
            speeds={},
            conformance_examples=get_task("classification").load_demo()[1][:8],
            provenance={"weights": f"random, seed {recipe.seed}", "data": "none"},
            on_step=on_step,
        )

    mark = fingerprint(recipe.model_dump(), config.to_dict(), [installed(tool) for tool in TOOLS], code_digest())
    return kept(f"{recipe.name}-{mark[:16]}", build)


def letters(size: int) -> list[str]:
    """A vocabulary of so many tokens that spells every word letter by letter; what is left is never used."""
    characters = string.ascii_lowercase + string.digits
    tokens = [*SPECIAL_TOKENS, *string.punctuation, *characters, *(f"##{each}" for each in characters)]
    return [*tokens, *(f"[unused{at}]" for at in range(size - len(tokens)))][:size]
