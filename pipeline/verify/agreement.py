"""The bundle on many real examples at full depth: do users get the answers of the model in PyTorch?

Its ExecuTorch programs are held against the quantized model, its Core ML programs, which only a Mac can run, against the float one, in the
evaluator.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from pipeline.verify.coreml_parity import NAMES, CoreMLPrograms, floors_of, lengths_of, padded_inputs, runner

INT8_INPUTS = ("int8", "int4", "mixed")
# Through the evaluator: so many texts, or as many as fill so many tokens of buckets, at some 3 ms a token of MiniLM.
ENOUGH_LABELS, ENOUGH_TOKENS = 200, 10_000


def check_agreement(
    bundle: Bundle, examples: Sequence[Example], expected: Sequence[int | float | str], on_step: OnStep = silent
) -> Check:
    """The share of examples that get the same label, the same number up to rounding, or the same answer text.

    Args:
        examples: what to run; the first 2,000, or 500 questions, are.
        expected: label indices, numbers in the data's unit, or answer texts, of the quantized model in PyTorch, in the same order.
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
    floor = task.agreement_floor_rounded if manifest.scheme in INT8_INPUTS else task.agreement_floor
    return Check(
        f"all, {len(examples)} dev examples", BACKEND, "same_answer_as_quantized_torch", value, floor, value >= floor
    )


@torch.no_grad()
def check_coreml_labels(
    bundle: Bundle,
    model: ExitModel,
    examples: Sequence[ClassificationExample],
    on_step: OnStep = silent,
    backend: Backend = "coreml",
) -> Check:
    """The share of texts that get float32's label from programs that Core ML computes, in simulated float16, each text in its bucket.

    The weights' scheme is in it: the floor is the scheme's (`FLOORS` in `pipeline.verify.coreml_parity`) and finds a broken program, not one
    that lost a point.

    Args:
        bundle: of a classifier.
        model: that it was exported from.
        examples: the first that fit a bucket are run, up to `ENOUGH_LABELS` and about `ENOUGH_TOKENS`.

    Raises:
        UserError: a file cannot be read or evaluated, or no example fits a bucket.
    """
    manifest, lengths, run = bundle.manifest, lengths_of(bundle.manifest, backend), runner(bundle.path, backend)
    encoded = (encode_text(bundle.tokenizer, each.text, each.text_pair, manifest.max_length).ids for each in examples)
    texts, tokens = [], 0
    for ids in encoded:
        if len(texts) == ENOUGH_LABELS or tokens >= ENOUGH_TOKENS:
            break
        if len(ids) <= lengths[-1]:
            texts.append(ids)
            tokens += next(each for each in lengths if len(ids) <= each)
    if not texts:
        raise UserError(
            "no example fits a Core ML bucket; add a longer bucket to export.coreml_buckets", file=bundle.path
        )
    reference, buckets, same = Programs.of(model), {}, 0
    for at, ids in enumerate(texts):
        length = next(each for each in lengths if len(ids) <= each)
        if length not in buckets:
            buckets[length] = CoreMLPrograms(bundle.path, manifest, length, run, backend)
        expected = reference(torch.from_numpy(np.asarray(ids, np.int64))[None], torch.zeros(1, 1, len(ids)))[-1][1]
        got = buckets[length].run_all(padded_inputs(ids, None, length, manifest.tokenizer.pad_id), "float16")[-1][
            "logits"
        ]
        same += bool(np.isfinite(got).all()) and int(expected.argmax()) == int(got.argmax())
        on_step(f"{NAMES[backend]}'s labels against float32's", at + 1, len(texts))
    value, floor = same / len(texts), floors_of(next(iter(buckets.values())).segments[-1]).same_answer
    return Check(f"all, {len(texts)} dev examples", backend, "same_label_as_float32", value, floor, value >= floor)
