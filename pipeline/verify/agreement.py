"""Compares a bundle's answers to many real examples, at full depth, with the answers of the model in PyTorch.

ExecuTorch programs are compared with the quantized model. Core ML programs, which only a Mac can run, are computed by
the evaluator and compared with the float32 model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.bundle.opening import BACKEND, Bundle
from pipeline.data.examples import ClassificationExample, Example
from pipeline.data.features import encode_text
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.names import Backend
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import get_task
from pipeline.verify.checks import Check
from pipeline.verify.coreml_programs import (
    BACKEND_NAMES,
    CoreMLPrograms,
    bundle_buckets,
    padded_inputs,
    program_runner,
)
from pipeline.verify.evaluator.files import SavedFiles
from pipeline.verify.floors import agreement_floor, module_floors, shown_share_floor
from pipeline.verify.threads import one_thread

# The evaluator takes some 3 ms per token of MiniLM, so it gets fewer texts: this many, or as many as fill this many
# tokens of buckets.
MAX_COREML_TEXTS, MAX_COREML_TOKENS = 200, 10_000


def check_agreement(
    bundle: Bundle, examples: Sequence[Example], expected: Sequence[Any], on_step: OnStep = silent
) -> Check:
    """Measures the share of examples to which the ExecuTorch programs give the expected answer.

    Args:
        bundle: the bundle to run.
        examples: of these the first `agreement_examples` of the task are run.
        expected: what the quantized model in PyTorch answers, see `AnsweredExamples`.
        on_step: is told of the progress.
    """
    manifest, task = bundle.manifest, get_task(bundle.manifest.task)
    runner = Runner(bundle)
    runner.prewarm()
    examples = list(examples[: task.agreement_examples])
    same = 0
    for index, example in enumerate(examples):
        same += task.same_answer(runner.predict(example, "0"), expected[index], manifest.answer_context)
        on_step("same answers as in PyTorch", index + 1, len(examples))
    value = same / len(examples)
    floor = shown_share_floor(agreement_floor(manifest), len(examples))
    return Check.at_least(f"all, {len(examples)} dev examples", BACKEND, "same_answer_as_quantized_torch", value, floor)


@one_thread()
@torch.no_grad()
def check_coreml_labels(
    bundle: Bundle,
    model: ExitModel,
    examples: Sequence[ClassificationExample],
    on_step: OnStep = silent,
    backend: Backend = "coreml",
    files: SavedFiles | None = None,
) -> Check:
    """Measures the share of texts that get the float32 model's label from the Core ML programs in simulated float16.

    The difference includes the error of the weights' scheme. So the floor depends on the scheme (`pipeline.schemes`):
    it catches a broken program, not one that lost a point.

    Args:
        bundle: the bundle of a classifier.
        model: the model that it was exported from.
        examples: of these the first that fit a bucket are run, up to `MAX_COREML_TEXTS` and about `MAX_COREML_TOKENS`.
        on_step: is told of the progress.
        backend: which of the bundle's Core ML programs to run.
        files: the bundle's files, where other checks have read some of them.

    Raises:
        UserError: a file cannot be read or evaluated, or no example fits a bucket.
    """
    manifest, lengths = bundle.manifest, bundle_buckets(bundle.manifest, backend)
    texts = texts_in_buckets(bundle, examples, lengths)
    if not texts:
        raise UserError(
            "no example fits a Core ML bucket; add a longer bucket to export.coreml_buckets", file=bundle.path
        )
    run_program, reference = program_runner(bundle.path, backend, files), Programs.of(model)
    buckets: dict[int, CoreMLPrograms] = {}
    same = 0
    for index, ids in enumerate(texts):
        length = bucket_of(ids, lengths)
        if length not in buckets:
            buckets[length] = CoreMLPrograms(bundle.path, manifest, length, run_program, backend)
        expected = reference(torch.from_numpy(np.asarray(ids, np.int64))[None], torch.zeros(1, 1, len(ids)))[-1][1]
        inputs = padded_inputs(ids.tolist(), None, length, manifest.tokenizer.pad_id)
        actual = buckets[length].run_all(inputs, "float16")[-1]["logits"]
        same += bool(np.isfinite(actual).all()) and int(expected.argmax()) == int(actual.argmax())
        on_step(f"{BACKEND_NAMES[backend]}'s labels against float32's", index + 1, len(texts))
    floors = module_floors(next(iter(buckets.values())).segments[-1], manifest)
    value, floor = same / len(texts), shown_share_floor(floors.same_answer, len(texts))
    return Check.at_least(f"all, {len(texts)} dev examples", backend, "same_label_as_float32", value, floor)


def texts_in_buckets(
    bundle: Bundle, examples: Sequence[ClassificationExample], lengths: Sequence[int]
) -> list[np.ndarray]:
    """Returns the token ids of the first examples that fit a bucket, as many as `check_coreml_labels` runs."""
    texts: list[np.ndarray] = []
    tokens = 0
    for example in examples:
        if len(texts) == MAX_COREML_TEXTS or tokens >= MAX_COREML_TOKENS:
            break
        ids = encode_text(bundle.tokenizer, example.text, example.text_pair, bundle.manifest.max_length).ids
        if len(ids) <= lengths[-1]:
            texts.append(ids)
            tokens += bucket_of(ids, lengths)
    return texts


def bucket_of(ids: np.ndarray, lengths: Sequence[int]) -> int:
    """Returns the shortest of the bucket lengths, in tokens, that the ids fit."""
    return next(length for length in lengths if len(ids) <= length)
