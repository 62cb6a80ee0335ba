"""Runs a bundle's programs to full depth over labelled examples once, and studies its exits from their answers."""

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
    """Runs every example through the bundle's ExecuTorch programs to full depth and studies the answers of all exits.

    Args:
        examples, limit, on_progress, threads, source: as in `evaluate`.

    Raises:
        UserError: as in `evaluate`.
    """
    manifest = bundle.manifest
    examples = checked_examples(examples, limit, source)
    targets = get_task(manifest.task).targets(examples, manifest.answer_context, source)
    recipe = bundle_recipe(manifest)
    runner = Runner(bundle, threads)
    labels = manifest.label_range or tuple(manifest.label_values)
    predictions = predict(run_to_full_depth, runner, examples, bundle.tokenizer, labels, recipe, on_progress, targets)
    return study(
        predictions,
        example_costs(bundle, examples, recipe),
        manifest.model.exit_layers,
        recipe.exits.uncertainty,
        manifest.speeds,
    )


def run_to_full_depth(runner: Runner, items: Sequence[Item], on_step: OnStep = silent) -> list[ExitOutputs]:
    """Returns the outputs of all exits for each input at its own length. `predict` calls it like `run_programs`."""
    temperatures = runner.manifest.exits.temperatures or None
    results = []
    for index, item in enumerate(items):
        outputs = runner.run_all(item.ids, item.answer_mask)
        logits = [
            output.logits[0] if len(output.logits) == 1 else np.stack(output.logits, axis=-1) for output in outputs
        ]
        uncertainty = np.array([output.uncertainty for output in outputs])
        results.append(ExitOutputs(np.stack(logits), uncertainty, temperatures))
        on_step("running to full depth", index + 1, len(items))
    return results


def bundle_recipe(manifest: Manifest) -> Recipe:
    """Returns a recipe with those parts that decide how the bundle's inputs are encoded and its answers decoded."""
    qa = QA() if manifest.qa is None else QA(**manifest.qa.model_dump(exclude={"null_threshold"}))
    return Recipe.model_construct(
        name=manifest.name,
        task=manifest.task,
        data=Data.model_construct(max_length=manifest.max_length),
        qa=qa,
        exits=Exits(uncertainty=manifest.exits.uncertainty),
    )


def example_costs(bundle: Bundle, examples: Sequence[Example], recipe: Recipe) -> Costs:
    """Returns the length and the operations of each example.

    The operations of a question are those of all its windows. Its length is that of its passage.
    """
    shape, name = bundle.manifest.model, bundle.manifest.task
    config = EncoderConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        layers=shape.layers,
        heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        max_positions=shape.max_positions or bundle.manifest.max_length,
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
