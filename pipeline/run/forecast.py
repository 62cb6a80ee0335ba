"""Forecasts how long each stage of a run takes on this machine.

What a model computes is counted (`pipeline.model.flops`) and divided by the measured speed of this machine. What
the export tools take does not depend on the data; their times were measured and are scaled by the speed of Python here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.recipe import Recipe, Training
from pipeline.run.workload import Workload, corpus_blocks, describe_work
from pipeline.support import processes
from pipeline.support.durations import say_duration
from pipeline.tasks import get_task

if TYPE_CHECKING:
    from pipeline.model.encoder import EncoderConfig
    from pipeline.run.machine_speed import MachineSpeed


# Seconds on two cores of an Intel Xeon with AMX, alone on the machine. Python and the export tools run on one core.
START_SECONDS = 1.0  # of the first use of a library in a stage
READING_SECONDS = 60e-6  # for an example
PARAMETER_SECONDS = 2.5e-9  # of an optimizer step, for a parameter
STEP_SECONDS = 0.01  # of a training step, beside its operations and the optimizer
INPUT_SECONDS = 0.5e-3  # to decode and score an input at all exits
EXPORT_START_SECONDS = 4.0  # to import the export tools, and for the conformance vectors
LOWERING_SECONDS = 11.0  # to lower one layer for ExecuTorch, the first time that its structure occurs
WEIGHTS_SECONDS = 2.0  # to put a layer's weights into a structure that is lowered already, and to write it
EMBED_SECONDS = 3.5  # to lower the embeddings
CONVERSION_SECONDS = 1.5  # to convert a program to Core ML at one length
FILLING_SECONDS = 8e-9  # to compress a weight for Core ML, at one length
ROUNDING_SECONDS = 30e-9  # to round a weight to int4 by texts, and for each of the texts the operations of the model
SEMANTICS_SLOWDOWN = 22.0  # of a Core ML program in coremltools' semantics, against a forward pass in float32
EVALUATED_INPUTS = 18  # of each Core ML program and length
LABELLED_TEXTS, LABELLED_TOKENS = 200, 10_000  # at most, that Core ML answers, see `pipeline.verify.agreement`
REFERENCE_SECONDS = 26.0  # to export BERT-base, once on a machine
WORKER_SECONDS = 3.0  # to start a measured system
CALL_SECONDS = 0.25e-3  # of a program's call, beside its operations
SINGLE_SLOWDOWN = 1.5  # of a single short input, against a batch
SLOWDOWN_OF_INT8_IN_PYTORCH = 2.5  # against a forward pass in float32
PADDING = 1.1  # tokens of a batch, per real token
REPORT_SECONDS = 1.5
SHOWN_SHARE = 0.12  # a stage below this share of the total is not named in the sentence
UNCERTAINTY = 1.5  # a forecast may be off by this factor


@dataclass(frozen=True)
class Forecast:
    """How long the stages of a run take.

    Attributes:
        seconds: by stage, in the order in which they run.
        device: in words what computes them, for example "2 cores".
        unknown: the stages of `seconds` whose work is not known, such as a corpus that is streamed. They count as 0.
    """

    seconds: Mapping[str, float]
    device: str
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """The seconds of all stages."""
        return sum(self.seconds.values())

    def of(self, stages: Iterable[str]) -> Forecast:
        """Returns the forecast of some stages alone, for example those that are not done."""
        chosen = set(stages)
        return Forecast(
            {name: seconds for name, seconds in self.seconds.items() if name in chosen},
            self.device,
            tuple(name for name in self.unknown if name in chosen),
        )

    def sentence(self) -> str:
        """Returns the forecast in words, with the stages that take most of the time."""
        longest = sorted(self.seconds.items(), key=lambda item: -item[1])
        named = [f"{name} {say_duration(value)}" for name, value in longest if value >= SHOWN_SHARE * self.total]
        text = f"about {say_duration(self.total)} on {self.device}"
        if len(self.seconds) > 1 and named:
            text += f": {', '.join(named[:4])}"
        if self.total >= 60:
            text += f"; perhaps up to {say_duration(UNCERTAINTY * self.total)}"
        for name in self.unknown:
            text += f"; {name} not counted, since the size of its text is not known"
        return text


def forecast(recipe: Recipe, train_examples: int, dev_examples: int, mean_tokens: float) -> Forecast:
    """Forecasts the seconds of every stage that a recipe has, on this machine.

    The first call for a model's shape measures the machine, which takes about a second.

    Args:
        train_examples: the examples of `data.train`, before limit and calibration split.
        dev_examples: the examples of `data.dev`.
        mean_tokens: tokens of an example, see `estimate_tokens`; for question answering those of question and passage.
    """
    from pipeline.run.machine_speed import measure_speed

    work = describe_work(recipe, train_examples, dev_examples, mean_tokens)
    speed = measure_speed(work.teacher, recipe.precision, recipe.teacher.training.batch_size, work.length)
    return add_up(work, speed)


def add_up(work: Workload, speed: MachineSpeed) -> Forecast:
    """Returns the seconds of each stage for this work on a machine of this speed."""
    recipe, unknown = work.recipe, []
    seconds = {"prepare": speed.python * (START_SECONDS + READING_SECONDS * (work.train + work.calibration + work.dev))}
    seconds["finetune"] = training_seconds(
        work, speed, recipe.teacher.training, work.teacher, work.train
    ) + measuring_seconds(work, speed, work.teacher, work.dev)
    if recipe.pretrain.corpus is not None:
        blocks = corpus_blocks(recipe)
        seconds["pretrain"] = pretraining_seconds(work, speed, blocks or 0)
        if blocks is None:
            unknown.append("pretrain")
    seconds["distill"] = distilling_seconds(work, speed)
    seconds["exits"] = exits_seconds(work, speed)
    seconds["quantize"] = quantizing_seconds(work, speed)
    seconds["export"] = export_seconds(work, speed)
    seconds["verify"] = verify_seconds(work, speed)
    seconds["bench"] = bench_seconds(work, speed, seconds["export"] + seconds["verify"])
    seconds["report"] = speed.python * REPORT_SECONDS
    return Forecast(seconds, speed.device, tuple(unknown))


def training_seconds(
    work: Workload, speed: MachineSpeed, training: Training, config: EncoderConfig, examples: int
) -> float:
    """Returns the seconds of a training without what its loss asks of a teacher. Several processes share the work."""
    inputs = examples * work.windows * training.epochs
    steps = inputs / (training.batch_size * training.accumulate)
    operations = 3 * inputs * PADDING * work.operations(config)
    computing = operations / speed.training / processes.count()
    return computing + steps * (STEP_SECONDS + PARAMETER_SECONDS * trained_parameters(config, training))


def trained_parameters(config: EncoderConfig, training: Training) -> int:
    """Returns how many weights a training changes."""
    layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    words = 0 if training.freeze_embeddings else config.vocab_size * config.hidden_size
    return config.layers * layer + words


def measuring_seconds(work: Workload, speed: MachineSpeed, config: EncoderConfig, examples: int) -> float:
    """Returns the seconds to measure a model in float32 on some examples."""
    inputs = examples * work.windows
    return inputs * (work.operations(config) / speed.measuring + speed.python * INPUT_SECONDS)


def pretraining_seconds(work: Workload, speed: MachineSpeed, blocks: int) -> float:
    """Returns the seconds of a pre-training; for a sixth of the tokens the whole vocabulary is predicted."""
    options = work.recipe.pretrain
    inputs = blocks * options.training.epochs
    words = 2 * work.student.vocab_size * work.student.hidden_size * options.length / 6
    student = 3 * (work.operations(work.student, options.length) + words) / speed.training
    teacher = (work.operations(work.teacher, options.length) + words) / speed.inference
    steps = inputs / (options.training.batch_size * options.training.accumulate)
    optimizer = STEP_SECONDS + PARAMETER_SECONDS * trained_parameters(work.student, options.training)
    return inputs * (student + teacher) / processes.count() + steps * optimizer


def distilling_seconds(work: Workload, speed: MachineSpeed) -> float:
    """Returns the seconds of the distillation: the student's training, and the teacher's answers to its inputs."""
    options, lessons = work.recipe.distill, work.train + work.unlabelled
    epochs = min(1.0, options.training.epochs) if options.keep_targets else options.training.epochs
    asked = lessons * work.windows * epochs * PADDING * work.operations(work.teacher)
    student = training_seconds(work, speed, options.training, work.student, lessons)
    return student + asked / speed.inference / processes.count()


def exits_seconds(work: Workload, speed: MachineSpeed) -> float:
    """Returns the seconds to train the exit heads, for which the student only runs forward."""
    options = work.recipe.exits
    lessons = work.train + work.unlabelled
    examples = min(lessons, options.train_limit or lessons)
    inputs = examples * work.windows * options.training.epochs
    forward = inputs * PADDING * work.operations(work.student) / speed.inference
    heads = 3 * inputs * PADDING * work.head_operations() / speed.training
    steps = inputs / (options.training.batch_size * options.training.accumulate)
    measured = measuring_seconds(work, speed, work.student, work.dev)
    return (forward + heads) / processes.count() + steps * STEP_SECONDS + measured


def quantizing_seconds(work: Workload, speed: MachineSpeed) -> float:
    """Returns the seconds to quantize, and to run the quantized model on the calibration and the dev examples."""
    from pipeline.run.precision import is_mixed, rounds_by_texts

    recipe, weights = work.recipe, trained_parameters(work.student, Training(freeze_embeddings=True))
    operations = work.windows * work.operations(work.student)
    one = operations * SLOWDOWN_OF_INT8_IN_PYTORCH / speed.cpu + speed.python * INPUT_SECONDS * len(work.exit_layers)
    total = speed.python * START_SECONDS + (work.calibration + work.dev) * one
    if rounds_by_texts(recipe):
        total += weights * ROUNDING_SECONDS + recipe.quantize.rounding_texts * operations / speed.cpu
    if is_mixed(recipe):
        matrices, schemes = 6 * work.student.layers + 1, 4
        total += matrices * schemes * recipe.quantize.sensitivity_examples * operations / speed.cpu
    return total


def export_seconds(work: Workload, speed: MachineSpeed) -> float:
    """Returns the seconds of the export. Only the first segment of each structure is lowered and converted."""
    sizes = segment_sizes(work.exit_layers)
    weights = trained_parameters(work.student, Training())
    total = EMBED_SECONDS + sum(LOWERING_SECONDS * size for size in set(sizes)) + sum(sizes) * WEIGHTS_SECONDS
    if work.recipe.export.coreml:
        total += coreml_seconds(work, sizes, weights)
    if work.recipe.export.executorch_coreml:
        total += 2 * coreml_seconds(work, sizes, weights)
    return speed.python * (EXPORT_START_SECONDS + total)


def coreml_seconds(work: Workload, sizes: Sequence[int], weights: int) -> float:
    """Returns the seconds to write the Core ML programs."""
    conversions = 1 + sum(set(sizes))
    return len(work.recipe.export.coreml_buckets) * (conversions * CONVERSION_SECONDS + weights * FILLING_SECONDS)


def segment_sizes(exit_layers: Sequence[int]) -> list[int]:
    """Returns the number of layers of each segment."""
    return [last - before for before, last in zip((0, *exit_layers), exit_layers)]


def verify_seconds(work: Workload, speed: MachineSpeed) -> float:
    """Returns the seconds to verify the bundle: its programs, and the answers to the dev examples."""
    recipe = work.recipe
    total = speed.python * 3 * START_SECONDS + work.dev * single_seconds(work, speed)
    if not recipe.export.coreml:
        return total
    buckets = recipe.export.coreml_buckets
    evaluated = EVALUATED_INPUTS * sum(work.operations(work.student, bucket) for bucket in buckets)
    if get_task(recipe.task).has_classes:
        bucket = min((size for size in buckets if size >= work.length), default=max(buckets))
        evaluated += min(work.dev, LABELLED_TEXTS, LABELLED_TOKENS // bucket) * work.operations(work.student, bucket)
    return total + SEMANTICS_SLOWDOWN * evaluated / speed.cpu


def single_seconds(work: Workload, speed: MachineSpeed, length: int | None = None) -> float:
    """Returns the seconds of an example, or of an input of some length, through all programs for ExecuTorch."""
    calls = (1 + len(work.exit_layers)) * CALL_SECONDS * speed.python
    one = calls + SINGLE_SLOWDOWN * work.operations(work.student, length) / speed.cpu
    return one if length else work.windows * one


def bench_seconds(work: Workload, speed: MachineSpeed, meanwhile: float = 0.0) -> float:
    """Returns the seconds of the measurements on this machine.

    Args:
        work, speed: the recipe's and the machine's.
        meanwhile: the seconds of the stages during which BERT-base is exported on another core.
    """
    options = work.recipe.bench
    dev = min(work.dev, options.evaluate_limit or work.dev)
    total = speed.python * (START_SECONDS + WORKER_SECONDS) + dev * (1 + len(options.speeds)) * single_seconds(
        work, speed
    )
    rounds = options.repeats + 2
    lengths = [length for length in options.lengths if length <= work.recipe.export.max_length]
    total += rounds * len(work.exit_layers) * sum(0.6 * single_seconds(work, speed, length) for length in lengths)
    if options.reference != "none":
        total += speed.python * WORKER_SECONDS + reference_seconds(options.reference_length, rounds, speed, meanwhile)
    return total


def reference_seconds(length: int, rounds: int, speed: MachineSpeed, meanwhile: float) -> float:
    """Returns the seconds to measure BERT-base, with what its export takes longer than the stages meanwhile."""
    from pipeline.bench.cache import cache_folder
    from pipeline.bench.runtimes.bert_base import file_name
    from pipeline.model.flops import layer_flops
    from quantize.size import BERT_BASE

    exported = (cache_folder() / file_name(length, BERT_BASE)).exists()
    running = rounds * BERT_BASE.layers * layer_flops(BERT_BASE, length) * SINGLE_SLOWDOWN / speed.cpu
    return running + (0.0 if exported else max(0.0, speed.python * REFERENCE_SECONDS - meanwhile))
