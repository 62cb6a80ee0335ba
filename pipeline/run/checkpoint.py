"""Quantizes a checkpoint as it stands, without training, into a bundle of one segment at full depth."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bundle.manifest import Manifest
from pipeline.data.examples import ClassificationExample, Example
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.export.bundle import EXECUTORCH_FILE, BundleSource, Labels, TokenizerFiles, write_bundle
from pipeline.model.exit_model import ExitModel
from pipeline.model.pretrained import Pretrained, load_pretrained
from pipeline.model.segments import Programs
from pipeline.names import Task
from pipeline.recipe import MIN_ROUNDING_TEXTS, Recipe, apply_settings, check_recipe
from pipeline.run.examples import read_source, sample_examples
from pipeline.run.precision import has_int4, is_mixed
from pipeline.run.preconditions import check_positions
from pipeline.run.quantizing import choose_mix, quantize_model, round_to_int4
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.support.workspace import write_text
from pipeline.tasks import TASKS, get_task
from pipeline.verify.verify import Verification, verify
from quantize.checkpoint import QuantizedCheckpoint
from quantize.sensitivity import Comparison, Judge
from quantize.size import size_of

MAX_TOKENS = 512  # the longest input that a recipe may ask a program to take
COMPARED_TEXTS = 256  # unless the settings have data.dev_limit
CONFORMANCE_EXAMPLES = 8


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint, ready to be quantized.

    Attributes:
        model: the checkpoint as a model with one exit, in float32.
        examples: the texts on which the quantized model is compared with it.
        values: what the data write for each class; empty for question answering.
        files: the tokenizer's files; `tokenizer` is made from them.
    """

    recipe: Recipe
    model: ExitModel
    examples: list[Example]
    values: tuple[str, ...]
    files: TokenizerFiles
    tokenizer: WordPieceTokenizer

    @property
    def labels(self) -> tuple[str, ...]:
        """What each logit stands for, as `Results.labels` has it."""
        return self.values or ("start", "end")


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model, and how it was made.

    Attributes:
        programs: the quantized programs.
        matrix_schemes: the scheme of each matrix, if the recipe's is mixed.
        rounding_texts: how many texts int4 matrices were rounded by.
        comparison: how far its answers are from those of float32.
    """

    programs: Programs
    matrix_schemes: Mapping[str, str]
    rounding_texts: int
    comparison: Comparison


def quantize_checkpoint(
    weights: str, settings: Sequence[str], out: Path | None, on_step: OnStep = silent
) -> QuantizedCheckpoint:
    """Quantizes a checkpoint and writes its bundle, which appears only if all checks of it passed.

    Args:
        weights: a folder, a hub name or "minilm", as in `teacher.weights` of a recipe. It must be a BERT or a
            DistilBERT with a head for classification or question answering.
        settings: keys of a recipe as `key=value`, for example `quantize.scheme=int4` or `export.max_length=128`. The
            quantized model is compared with float32 on `data.dev`, with labels or without; a mix is chosen on the same
            texts. Without the key they are the embedded texts. int4 is rounded by texts of `data.train`, or by those of
            `data.dev` that are not compared.
        out: the folder of the bundle, which must not exist yet; runs/NAME-SCHEME if None.
        on_step: is told of the progress.

    Raises:
        UserError: the architecture, the head or the type of the weights is not supported, a length exceeds the model's
            positions, there are too few texts, a budget cannot be met, the folder exists, or a program is out of
            tolerance.
    """
    loaded, task = load_checkpoint(weights, settings)
    out = out or Path("runs") / f"{loaded.recipe.name}-{loaded.recipe.quantize.scheme}"
    if out.exists():
        raise UserError("is already there; remove it, or give another folder with --out", file=out)
    quantized = quantize_loaded(loaded, on_step)
    manifest, verification = write_verified(loaded, quantized, weights, out, on_step)
    report = size_of(out)
    return QuantizedCheckpoint(
        bundle=str(out),
        weights=weights,
        task=task,
        scheme=manifest.scheme,
        embeddings=manifest.embeddings_scheme,
        matrix_schemes=dict(quantized.matrix_schemes),
        file_bytes=(out / EXECUTORCH_FILE).stat().st_size,
        fp32_bytes=report.fp32_bytes,
        parts=report.targets[0].parts.model_dump(),
        texts=len(loaded.examples),
        rounding_texts=quantized.rounding_texts,
        metric=get_task(task).speed_metric,
        parity_db=next(check.value for check in verification.checks if check.metric == "logits_snr_db"),
        **quantized.comparison.model_dump(),
    )


def load_checkpoint(weights: str, settings: Sequence[str]) -> tuple[LoadedCheckpoint, Task]:
    """Reads a checkpoint and the texts to compare it on; arguments and errors are those of `quantize_checkpoint`."""
    pretrained, task = load_with_head(weights)
    recipe = build_recipe(pretrained, task, settings)
    check_positions(recipe, pretrained.config.max_positions)
    files = TokenizerFiles(pretrained.vocab, pretrained.lowercase)
    tokenizer = WordPieceTokenizer.from_vocab(files.vocab, lowercase=files.lowercase)
    model = build_model(pretrained, task, tokenizer.sep_id)
    examples, values = read_texts(recipe, pretrained)
    return LoadedCheckpoint(recipe, model, examples, values, files, tokenizer), task


def quantize_loaded(loaded: LoadedCheckpoint, on_step: OnStep) -> QuantizedModel:
    """Quantizes the model as the recipe says, and compares it with float32."""
    recipe, model, tokenizer, labels = loaded.recipe, loaded.model, loaded.tokenizer, loaded.labels
    judge = Judge(Programs.of(model), loaded.examples, tokenizer, labels, recipe)
    texts = read_rounding_texts(recipe, loaded.examples) if has_int4(recipe) else []
    rounded = round_to_int4(model, texts, tokenizer, labels, recipe, on_step) if texts else None
    schemes: Mapping[str, str] = {}
    if is_mixed(recipe):
        compared = loaded.examples[: recipe.quantize.sensitivity_examples]
        schemes = choose_mix(model, rounded, compared, tokenizer, labels, recipe, on_step).schemes
    programs = quantize_model(model, rounded, schemes, recipe)
    return QuantizedModel(programs, schemes, len(texts), judge.compare(programs))


def write_verified(
    loaded: LoadedCheckpoint, quantized: QuantizedModel, weights: str, out: Path, on_step: OnStep
) -> tuple[Manifest, Verification]:
    """Writes the bundle beside its folder, verifies it, and moves it into place.

    Raises:
        UserError: a check failed. All of them can then be read in the file that the message names.
    """
    recipe, error = loaded.recipe, quantized.comparison.relative_error
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    try:
        manifest = write_bundle(
            partial,
            recipe,
            BundleSource(loaded.model, quantized.programs, matrix_schemes=quantized.matrix_schemes),
            loaded.files,
            Labels(loaded.values),
            speeds={},
            conformance_examples=loaded.examples[:CONFORMANCE_EXAMPLES],
            provenance={
                "weights": weights,
                "relative_error": f"{error:.3g} on {len(loaded.examples)} texts of {recipe.data.dev}",
            },
            on_step=on_step,
        )
        verification = verify(partial, on_step=on_step)
        failed = out.with_name(out.name + ".failed.json")
        if not verification.passed:
            write_text(failed, json.dumps(verification.to_json(), indent=2))
        verification.require(failed)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest, verification


def load_with_head(weights: str) -> tuple[Pretrained, Task]:
    """Loads a checkpoint and finds the task that its head is for.

    Raises:
        UserError: it has no head, or one for regression.
    """
    for task in (definition.name for definition in TASKS.values() if definition.answers_from_checkpoint):
        pretrained = load_pretrained(weights, task)
        if pretrained.head is not None:
            break
    else:
        raise UserError(
            "has no head for classification or question answering, so there is nothing it answers; "
            "give a fine-tuned checkpoint, or a recipe",
            file=weights,
        )
    if get_task(task).has_classes and len(pretrained.labels) == 1:
        raise UserError(
            "has one output, a regression, and does not say its range of labels; give a recipe of that task",
            file=weights,
        )
    return pretrained, task


def build_recipe(pretrained: Pretrained, task: Task, settings: Sequence[str]) -> Recipe:
    """Returns the recipe that writes the checkpoint's bundle.

    It has the settings, and where they name no lengths, the longest that the model takes.
    """
    raw: dict[str, Any] = {}
    apply_settings(raw, settings)
    raw |= {"name": re.sub("[^A-Za-z0-9._-]+", "-", Path(pretrained.source).resolve().name), "task": task}
    raw.setdefault("teacher", {}).setdefault("weights", pretrained.source)
    export = raw.setdefault("export", {})
    longest = export.setdefault("max_length", min(MAX_TOKENS, pretrained.config.max_positions))
    export["coreml"] = False
    if isinstance(longest, int):
        get_task(task).set_lengths(raw, longest)
    if get_task(task).has_classes:
        raw.setdefault("data", {}).setdefault("label_names", list(pretrained.labels))
    return check_recipe(raw, Path(pretrained.source))


def build_model(pretrained: Pretrained, task: Task, separator: int) -> ExitModel:
    """Returns the checkpoint as a model with one exit, after its last layer.

    A BERT keeps its token types: its programs find the second text by the separator before it.

    Args:
        pretrained: a checkpoint with a head for the task.
        task: what the head is for.
        separator: the id of [SEP].

    Raises:
        UserError: the head does not fit the checkpoint's config.
    """
    config = pretrained.config
    model = ExitModel(task, config, len(pretrained.labels) or 2, pretrained.head_kind, [config.layers])
    model.encoder.load_state_dict(pretrained.encoder)
    try:
        assert pretrained.head is not None  # see `load_with_head`
        model.heads[-1].load_state_dict(pretrained.head)
    except RuntimeError as error:  # torch writes a line for every tensor that does not fit
        last_line = str(error).splitlines()[-1].strip()
        raise UserError(f"has a head that does not fit its config ({last_line})", file=pretrained.source) from None
    if config.token_types > 1:
        model.separator = separator
    return model.eval()


def read_texts(recipe: Recipe, pretrained: Pretrained) -> tuple[list[Example], tuple[str, ...]]:
    """Returns the texts on which the quantized model is compared, and what the data write for each class.

    Files may write a label as the checkpoint names it, or as its number. The embedded texts have other labels, which
    are removed. For question answering there are no classes.
    """
    examples = sample_examples(read_source(recipe, "dev"), recipe.data.dev_limit or COMPARED_TEXTS, recipe.seed)
    task = get_task(recipe.task)
    if not task.has_classes:
        return examples, ()
    numbers = tuple(str(number) for number in range(len(pretrained.labels)))
    if recipe.data.dev == "demo":
        return [task.without_label(example) for example in examples], pretrained.labels
    written = {example.label for example in examples if isinstance(example, ClassificationExample)}
    return examples, numbers if written <= {*numbers, None} else pretrained.labels


def read_rounding_texts(recipe: Recipe, compared: Sequence[Example]) -> list[Example]:
    """Returns texts to round int4 by, without labels; none where there are too few to say anything.

    They are training texts, or the dev texts that are not compared. A model looks better than it is on the texts that
    it was rounded by.
    """
    if recipe.data.train != "demo" or recipe.data.dev == "demo":
        texts = read_source(recipe, "train")
    else:
        without_limit = recipe.model_copy(update={"data": recipe.data.model_copy(update={"dev_limit": None})})
        texts = read_source(without_limit, "dev")
    without_label = get_task(recipe.task).without_label
    held_out = {without_label(text) for text in compared}
    left = [text for text in map(without_label, texts) if text not in held_out]
    chosen = sample_examples(left, recipe.quantize.rounding_texts, recipe.seed)
    return chosen if len(chosen) >= MIN_ROUNDING_TEXTS else []
