"""A bundle's own programs at full depth over labelled examples, once: what the study of its exits is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.bundle.manifest import Manifest
from pipeline.bundle.opening import Bundle
from pipeline.data.examples import Example
from pipeline.data.items import Item
from pipeline.exits.predictions import ExitOutputs, predict
from pipeline.exits.study import Costs, study
from pipeline.exits.study_document import Study
from pipeline.model.encoder import EncoderConfig
from pipeline.model.flops import model_flops
from pipeline.recipe import QA, Data, Exits, Recipe
from pipeline.runtime.evaluate import checked_examples
from pipeline.runtime.runner import Runner
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import get_task


def study_bundle(
    bundle: Bundle,
    examples: Sequence[Example],
    limit: int | None = None,
    on_progress: OnStep = silent,
    threads: int | None = None,
    source: str | Path | None = None,
) -> Study:
    """Runs every example through the bundle's ExecuTorch programs to full depth, and studies what its exits said on the way.

    Args:
        examples, limit, on_progress, threads, source: see `evaluate`.

    Raises:
        UserError: as `evaluate`.
    """
    manifest = bundle.manifest
    examples = checked_examples(examples, limit, source)
    targets = get_task(manifest.task).targets(examples, manifest.answer_context, source)
    recipe = recipe_of(manifest)
    runner = Runner(bundle, threads)
    labels = manifest.label_range or tuple(manifest.label_values)
    predictions = predict(run_bundle, runner, examples, bundle.tokenizer, labels, recipe, on_progress, targets)
    return study(
        predictions,
        costs_of(bundle, examples, recipe),
        manifest.model.exit_layers,
        recipe.exits.uncertainty,
        manifest.speeds,
    )


def run_bundle(runner: Runner, items: Sequence[Item], on_step: OnStep = silent) -> list[ExitOutputs]:
    """All exits of a bundle, input by input at its real length; takes the place of `run_programs` in `predict`."""
    temperatures = runner.manifest.exits.temperatures or None
    results = []
    for at, item in enumerate(items):
        outputs = runner.run_all(item.ids, item.answer_mask)
        logits = [
            output.logits[0] if len(output.logits) == 1 else np.stack(output.logits, axis=-1) for output in outputs
        ]
        results.append(
            ExitOutputs(np.stack(logits), np.array([output.uncertainty for output in outputs]), temperatures)
        )
        on_step("running to full depth", at + 1, len(items))
    return results


def recipe_of(manifest: Manifest) -> Recipe:
    """The parts of a recipe that say how a bundle's inputs are made and its answers read."""
    qa = QA() if manifest.qa is None else QA(**manifest.qa.model_dump(exclude={"null_threshold"}))
    return Recipe.model_construct(
        task=manifest.task,
        data=Data.model_construct(max_length=manifest.max_length),
        qa=qa,
        exits=Exits(uncertainty=manifest.exits.uncertainty),
    )


def costs_of(bundle: Bundle, examples: Sequence[Example], recipe: Recipe) -> Costs:
    """Lengths and operations of the examples; a question's windows count together, its length is the passage's."""
    shape, name = bundle.manifest.model, bundle.manifest.task
    config = EncoderConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        layers=shape.layers,
        heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        max_positions=bundle.manifest.max_length,
    )
    labels = bundle.manifest.head_outputs

    @cache
    def flops(length: int) -> np.ndarray:
        depths = range(1, len(shape.exit_layers) + 1)
        return np.array(
            [model_flops(config, shape.head, name, labels, length, depth, shape.exit_layers) for depth in depths], float
        )

    task = get_task(bundle.manifest.task)
    inputs = task.encode_all(examples, bundle.tokenizer, bundle.manifest.answer_context.options)
    lengths = [task.input_length(example, group, bundle.tokenizer) for example, group in zip(examples, inputs)]
    return Costs(np.array(lengths), np.stack([sum(flops(len(part.ids)) for part in group) for group in inputs]))
