"""The bundle against the quantized model in PyTorch, on many real examples at full depth: do users get the same answers?"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.data.examples import Example, QAExample
from pipeline.progress import OnStep, silent
from pipeline.runtime.bundle import BACKEND, Bundle
from pipeline.runtime.runner import Runner
from pipeline.verify.checks import Check

# Two answers within rounding of one another may change places; fewer than these shares would be another model.
FLOOR = {"classification": 0.995, "regression": 0.995, "qa": 0.99}
# Rounding inputs to int8 at run time amplifies the last bit from layer to layer until it is as large as the quantization error itself, so
# that two correct implementations differ where int8 and float32 do. Measured on SQuAD: 0.978 and 0.986 for two trainings; an int8 model
# whose embeddings move by a millionth agrees with itself on 0.95 to 0.976. Schemes with finer inputs do not have that.
FLOOR_INT8_SPANS = 0.97
INT8_INPUTS = ("int8", "int4", "mixed")
ENOUGH = {"classification": 2000, "regression": 2000, "qa": 500}
CLOSE = 0.02  # as a share of the label range: predictions that are nearer to each other are the same; measured on STS-B, 0.01


def check_agreement(bundle: Bundle, examples: Sequence[Example], expected: Sequence[int | float | str], on_step: OnStep = silent) -> Check:
    """The share of examples that get the same label, the same number up to `CLOSE`, or the same answer text.

    Args:
        examples: what to run; the first 2,000, or 500 questions, are.
        expected: label indices, numbers in the data's unit, or answer texts, of the quantized model in PyTorch, in the same order.
    """
    task = bundle.manifest.task
    runner = Runner(bundle)
    runner.prewarm()
    examples = list(examples[: ENOUGH[task]])
    same = 0
    for at, example in enumerate(examples):
        if isinstance(example, QAExample):
            same += runner.answer(example.question, example.passage, "0").answer == expected[at]
        elif task == "regression":
            difference = runner.estimate(example.text, example.text_pair, "0").value - expected[at]
            same += abs(difference) <= CLOSE * bundle.manifest.label_range.width
        else:
            same += runner.classify(example.text, example.text_pair, "0").label_index == expected[at]
        on_step("same answers as in PyTorch", at + 1, len(examples))
    value = same / len(examples)
    floor = FLOOR_INT8_SPANS if task == "qa" and bundle.manifest.scheme in INT8_INPUTS else FLOOR[task]
    return Check(f"all, {len(examples)} dev examples", BACKEND, "same_answer_as_quantized_torch", value, floor, value >= floor)
