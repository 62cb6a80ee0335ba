"""A checkpoint quantized as it stands, without training: a bundle of one segment, at full depth."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipeline.data.examples import Example
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.model.exit_model import ExitModel
from pipeline.model.pretrained import Pretrained, load_pretrained
from pipeline.model.segments import Programs
from pipeline.names import Metric, Task
from pipeline.recipe import FEWEST_TO_ROUND_BY, Recipe, apply_settings, check_recipe
from pipeline.run.engine import check_window, items_of, read_source, some_of
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.support.workspace import write_text
from pipeline.tasks import TASKS, get_task

LONGEST = 512  # tokens, the most that a recipe asks a program to take
ENOUGH = 256  # texts to compare on, where the settings do not say


class Quantized(BaseModel):
    """What `pocketbert quantize CHECKPOINT --json` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str
    weights: str
    task: str
    scheme: str
    embeddings: str
    matrix_schemes: dict[str, str] = Field(description="of a mixed scheme, that of each matrix")
    file_bytes: int = Field(description="of model.pte")
    fp32_bytes: int = Field(description="of the same model's parameters in float32")
    parts: dict[str, int] = Field(description="bytes of the bundle by what they hold")
    texts: int
    rounding_texts: int = Field(
        description="other texts, for whose sake int4 matrices were rounded as they are; 0 is each weight to the nearest step"
    )
    relative_error: float = Field(
        description="of the logits against float32's: the root mean square of the difference over theirs; a mix was chosen on these very texts"
    )
    divergence: float = Field(description="of the answers from float32's, mean over the texts, in nats")
    same_answer: float = Field(
        description="share of texts that get float32's answer; of questions, of windows with its best start and end"
    )
    metric: Metric
    loss: float | None = Field(description="score lost, a fraction of 1; null without labels")
    parity_db: float = Field(
        description="the program in ExecuTorch against the quantized model in PyTorch: signal over noise of the logits"
    )


def quantize_checkpoint(weights: str, settings: Sequence[str], out: Path | None, on_step: OnStep = silent) -> Quantized:
    """Writes a checkpoint's quantized bundle, checked against the model it comes from; whole, or not at all.

    Args:
        weights: as `teacher.weights` of a recipe: a folder, a hub name, "minilm". A BERT or DistilBERT with a classification or a QA head.
        settings: `key=value`, keys of a recipe: `quantize.scheme=int4`, `export.max_length=128`. `data.dev` is what the quantized model is
            compared on, with labels or without, and a mix is chosen on; embedded texts if it is not given. int4 is rounded by texts of
            `data.train`, or by those of `data.dev` that are not compared on.
        out: the bundle's folder, which must not be there yet; runs/NAME-SCHEME if None.

    Raises:
        UserError: for an architecture, a head or a type of weights that is not supported, a length beyond the model's positions, too few
            texts, a budget that cannot be met, a folder that is there already, or programs out of tolerance.
    """
    from pipeline.export.bundle import EXECUTORCH_FILE, write_bundle
    from pipeline.verify.checks import to_json
    from pipeline.verify.verify import require, verify_bundle
    from quantize.mixed import choose
    from quantize.rounding import round_model
    from quantize.schemes import apply_scheme, apply_schemes
    from quantize.sensitivity import Judge
    from quantize.size import size_of

    pretrained, task = load_with_head(weights)
    recipe = recipe_for(pretrained, task, settings)
    check_window(recipe, pretrained.config.max_positions)
    out = out or Path("runs") / f"{recipe.name}-{recipe.quantize.scheme}"
    if out.exists():
        raise UserError("is there already; remove it, or give another folder with --out", file=out)
    tokenizer = WordPieceTokenizer.from_vocab(pretrained.vocab, lowercase=pretrained.lowercase)
    model = model_of(pretrained, task, tokenizer.sep_id)
    programs = Programs.of(model)
    examples, values = texts_for(recipe, pretrained)
    labels = values or ("start", "end")
    judge = Judge(programs, examples, tokenizer, labels, recipe)
    options, schemes, rounded = recipe.quantize, {}, None
    others = texts_to_round_by(recipe, examples) if options.scheme in ("int4", "mixed") else []
    if others:
        rounded = Programs.of(round_model(model, items_of(others, tokenizer, labels, recipe), on_step))
    if options.scheme == "mixed":
        schemes = choose(
            programs, examples[: options.sensitivity_examples], tokenizer, labels, recipe, on_step, rounded
        ).schemes
        quantized = apply_schemes(programs, schemes, rounded)
    else:
        quantized = apply_scheme(programs, options.scheme, options.embeddings, rounded)
    comparison = judge.compare(quantized)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    try:
        manifest = write_bundle(
            partial,
            model=model,
            quantized=quantized,
            recipe=recipe,
            tokenizer_vocab=pretrained.vocab,
            lowercase=pretrained.lowercase,
            label_values=values,
            matrix_schemes=schemes,
            speeds={},
            conformance_examples=examples[:8],
            provenance={
                "weights": weights,
                "relative_error": f"{comparison.relative_error:.3g} on {len(examples)} texts of {recipe.data.dev}",
            },
            on_step=on_step,
        )
        checks = verify_bundle(partial, on_step)
        failed = out.with_name(out.name + ".failed.json")
        if not all(check.passed for check in checks):
            write_text(failed, json.dumps(to_json(checks), indent=2))
        require(checks, failed)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    report = size_of(out)
    return Quantized(
        bundle=str(out),
        weights=weights,
        task=task,
        scheme=manifest.scheme,
        embeddings=manifest.embeddings_scheme,
        matrix_schemes=schemes,
        file_bytes=(out / EXECUTORCH_FILE).stat().st_size,
        fp32_bytes=report.fp32_bytes,
        parts=report.targets[0].parts.model_dump(),
        texts=len(examples),
        rounding_texts=len(others),
        metric=get_task(task).speed_metric,
        parity_db=next(check.value for check in checks if check.metric == "logits_snr_db"),
        **comparison.model_dump(),
    )


def load_with_head(weights: str) -> tuple[Pretrained, Task]:
    """A checkpoint and the task that its head is for. UserError where it has none, or one that predicts a number."""
    for task in (name for name, definition in TASKS.items() if definition.answers_from_checkpoint):
        pretrained = load_pretrained(weights, task)
        if pretrained.head is not None:
            break
    else:
        raise UserError(
            "has no head for classification or question answering, so there is nothing it answers; give a fine-tuned checkpoint, or a recipe",
            file=weights,
        )
    if get_task(task).has_classes and len(pretrained.labels) == 1:
        raise UserError(
            "has one output, a regression, and does not say its range of labels; give a recipe of that task",
            file=weights,
        )
    return pretrained, task


def recipe_for(pretrained: Pretrained, task: Task, settings: Sequence[str]) -> Recipe:
    """The recipe that writes the checkpoint's bundle: the settings, and lengths as long as the model goes where they say none."""
    raw: dict = {}
    apply_settings(raw, settings)
    raw |= {"name": re.sub("[^A-Za-z0-9._-]+", "-", Path(pretrained.source).resolve().name), "task": task}
    raw.setdefault("teacher", {}).setdefault("weights", pretrained.source)
    export = raw.setdefault("export", {})
    longest = export.setdefault("max_length", min(LONGEST, pretrained.config.max_positions))
    export["coreml"] = False
    if isinstance(longest, int):
        get_task(task).set_lengths(raw, longest)
    if get_task(task).has_classes:
        raw["data"].setdefault("label_names", list(pretrained.labels))
    return check_recipe(raw, Path(pretrained.source))


def model_of(pretrained: Pretrained, task: Task, separator: int) -> ExitModel:
    """The checkpoint as a model with one exit, after its last layer.

    A BERT's token types stay: its programs tell the second text by the separator before it.
    """
    config = pretrained.config
    model = ExitModel(task, config, len(pretrained.labels) or 2, pretrained.head_kind, [config.layers])
    model.encoder.load_state_dict(pretrained.encoder)
    try:
        model.heads[-1].load_state_dict(pretrained.head)
    except RuntimeError as error:  # torch's line of every tensor that does not fit
        wrong = str(error).splitlines()[-1].strip()
        raise UserError(f"has a head that does not fit its config ({wrong})", file=pretrained.source) from None
    if config.token_types > 1:
        model.separator = separator
    return model.eval()


def texts_for(recipe: Recipe, pretrained: Pretrained) -> tuple[list[Example], tuple[str, ...]]:
    """What the quantized model is compared on, and what the data writes for each class; the latter is empty for question answering.

    Files write a label as the checkpoint names it, or as its number. The embedded texts have labels of their own, which are left out.
    """
    examples = some_of(read_source(recipe, "dev"), recipe.data.dev_limit or ENOUGH, recipe.seed)
    if not get_task(recipe.task).has_classes:
        return examples, ()
    numbers = tuple(str(at) for at in range(len(pretrained.labels)))
    if recipe.data.dev == "demo":
        return [replace(example, label=None) for example in examples], pretrained.labels
    return examples, numbers if {example.label for example in examples} <= {*numbers, None} else pretrained.labels


def texts_to_round_by(recipe: Recipe, compared: Sequence[Example]) -> list[Example]:
    """Training texts where there are some, or what is left of those to compare on, without labels; none where that is too little.

    On texts that it was rounded by, a model would look better than it is.
    """
    if recipe.data.train != "demo" or recipe.data.dev == "demo":
        texts = read_source(recipe, "train")
    else:
        every = recipe.model_copy(update={"data": recipe.data.model_copy(update={"dev_limit": None})})
        texts = read_source(every, "dev")
    without_label = get_task(recipe.task).without_label
    texts, compared = ([without_label(example) for example in some] for some in (texts, compared))
    held = set(compared)
    chosen = some_of([text for text in texts if text not in held], recipe.quantize.rounding_texts, recipe.seed)
    return chosen if len(chosen) >= FEWEST_TO_ROUND_BY else []
