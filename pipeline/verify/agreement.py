"""The bundle against the quantized model in PyTorch, on many real examples at full depth: do users get the same answers?"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.data.examples import Example, QAExample
from pipeline.progress import OnStep, silent
from pipeline.runtime.bundle import BACKEND, Bundle
from pipeline.runtime.runner import Runner
from pipeline.verify.checks import Check

# Two answers within rounding of one another may change places; fewer than these shares would be another model. Rounding to int8 at run
# time amplifies the last bit from layer to layer until it is as large as the quantization error itself, so that two correct
# implementations differ where int8 and float32 do. Measured: SST-2 1.0; SQuAD 0.978 and 0.986 for two trainings, with the first layer in
# float32 0.978; an int8 model whose embeddings move by a millionth agrees with itself on 0.970 to 0.976.
FLOOR = {"classification": 0.995, "qa": 0.97}
ENOUGH = {"classification": 2000, "qa": 500}


def check_agreement(bundle: Bundle, examples: Sequence[Example], expected: Sequence[int | str], on_step: OnStep = silent) -> Check:
    """The share of examples that get the same label, or the same answer text.

    Args:
        examples: what to run; the first 2,000, or 500 questions, are.
        expected: label indices, or answer texts, of the quantized model in PyTorch, in the same order.
    """
    task = bundle.manifest.task
    runner = Runner(bundle)
    runner.prewarm()
    examples = list(examples[: ENOUGH[task]])
    same = 0
    for at, example in enumerate(examples):
        if isinstance(example, QAExample):
            got: int | str = runner.answer(example.question, example.passage, "0").answer
        else:
            got = runner.classify(example.text, example.text_pair, "0").label_index
        same += got == expected[at]
        on_step("same answers as in PyTorch", at + 1, len(examples))
    value = same / len(examples)
    return Check(f"all, {len(examples)} dev examples", BACKEND, "same_answer_as_quantized_torch", value, FLOOR[task], value >= FLOOR[task])
