"""Forecasts how long each stage of a run takes on this machine.

What a model computes is counted (`pipeline.model.flops`) and divided by the measured speed of this machine. What
the export tools take does not depend on the data; their times were measured and are scaled by the speed of Python here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.data.examples import Example
from pipeline.recipe import Recipe, Training
from pipeline.run.durations import say_duration
from pipeline.support import processes
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

if TYPE_CHECKING:
    from pipeline.model.encoder import EncoderConfig
    from pipeline.run.machine_speed import MachineSpeed

CHARACTERS_PER_TOKEN = 4.2  # of WordPiece in English texts, punctuation included
SAMPLED_EXAMPLES = 500  # to find the mean length
QUESTION_TOKENS = 15  # of a question and the special tokens, when a passage is cut into windows
LABELS = 3  # of a classifier; the head's cost hardly depends on it
CHARACTERS_PER_BLOCK_TOKEN = 4.2  # of a corpus

# Seconds on two cores of an Intel Xeon with AMX, alone on the machine. Python and the export tools run on one core.
START_SECONDS = 1.0  # of the first use of a library in a stage
READING_SECONDS = 60e-6  # for an example
PARAMETER_SECONDS = 2.5e-9  # of an optimizer step, for a parameter
STEP_SECONDS = 0.01  # of a training step, beside its operations and the optimizer
INPUT_SECONDS = 0.5e-3  # to decode and score an input at all exits
LOWERING_SECONDS = 9.0  # to lower one layer for ExecuTorch, the first time that its structure occurs
WEIGHTS_SECONDS = 2.0  # to put a layer's weights into a structure that is lowered already, and to write it
EMBED_SECONDS = 3.0  # to lower the embeddings
CONVERSION_SECONDS = 1.5  # to convert a program to Core ML at one length
FILLING_SECONDS = 8e-9  # to compress a weight for Core ML, at one length
ROUNDING_SECONDS = 30e-9  # to round a weight to int4 by texts, and for each of the texts the operations of the model
EVALUATION_SECONDS = 0.35  # to evaluate one Core ML program of one length in coremltools' semantics
SEMANTICS_SLOWDOWN = 3.0  # of that evaluation, against a forward pass in float32
LABELLED_SECONDS = 2e-3  # to evaluate a layer's operators for one example, beside their operations
REFERENCE_SECONDS = 45.0  # to export BERT-base, once on a machine
WORKER_SECONDS = 4.0  # to start a measured system
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


@dataclass(frozen=True)
class Workload:
    """What a recipe asks of the machine.

    Attributes:
        teacher: the teacher's shape.
        student: the student's shape.
        exit_layers: the student's layers that an exit follows.
        length: tokens of a mean input.
        windows: inputs of a mean example.
        train, calibration, dev: number of examples.
    """

    recipe: Recipe
    teacher: EncoderConfig
    student: EncoderConfig
    exit_layers: tuple[int, ...]
    length: int
    windows: float
    train: int
    calibration: int
    dev: int

    def operations(self, config: EncoderConfig, length: int | None = None) -> float:
        """Returns the operations of a model's layers for one input."""
        from pipeline.model.flops import layer_flops

        return float(config.layers * layer_flops(config, length or self.length))

    def head_operations(self) -> float:
        """Returns the operations of all exit heads of the student for one input."""
        from pipeline.model.flops import head_flops

        recipe = self.recipe
        head = head_flops(recipe.task, recipe.head, self.student, LABELS, self.length)
        return float(len(self.exit_layers) * head)


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


def describe_work(recipe: Recipe, train_examples: int, dev_examples: int, mean_tokens: float) -> Workload:
    """Returns what a recipe asks of the machine; the arguments are those of `forecast`."""
    from pipeline.distill.student import chosen_exits, chosen_layers

    teacher = teacher_shape(recipe.teacher.weights)
    try:
        student = teacher.with_(layers=len(chosen_layers(teacher.layers, recipe.student.layers)))
        exit_layers = tuple(chosen_exits(student.layers, recipe.student.exit_layers))
    except UserError:  # the stage distill says what is wrong
        student, exit_layers = teacher, (teacher.layers,)
    task = get_task(recipe.task)
    longest = task.longest_input(recipe.input_options)[1]
    windows, length = 1.0, min(mean_tokens, longest)
    if task.cuts_into_windows and mean_tokens > longest:
        step = max(1, longest - QUESTION_TOKENS - recipe.qa.stride)
        windows = 1.0 + math.ceil((mean_tokens - longest) / step)
    train = min(train_examples, recipe.data.train_limit or train_examples)
    calibration = min(recipe.data.calibration, train // 2)
    return Workload(
        recipe=recipe,
        teacher=teacher,
        student=student,
        exit_layers=exit_layers,
        length=max(2, round(length)),
        windows=windows,
        train=train - calibration,
        calibration=calibration,
        dev=min(dev_examples, recipe.data.dev_limit or dev_examples),
    )


def teacher_shape(weights: str) -> EncoderConfig:
    """Returns the shape of a checkpoint from its config.json; that of BERT-base if it is not on this machine yet."""
    from pathlib import Path

    from pipeline.model.locate import locate
    from pipeline.model.pretrained import encoder_config
    from pipeline.model.weights import read_json
    from quantize.size import BERT_BASE

    try:
        if weights == "minilm" or Path(weights).is_dir():
            file = locate(weights) / "config.json"
        else:
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(weights, "config.json")
            if not isinstance(cached, str):
                return BERT_BASE
            file = Path(cached)
        return encoder_config(read_json(file), file)
    except (UserError, ValueError):  # the stage finetune says what is wrong
        return BERT_BASE


def estimate_tokens(examples: Sequence[Example], recipe: Recipe) -> float:
    """Returns about how many tokens an example has, by its characters: no vocabulary is needed."""
    task = get_task(recipe.task)
    sample = examples[:: max(1, len(examples) // SAMPLED_EXAMPLES)]
    total = 0.0
    for example in sample:
        request = task.request_of(example)
        texts = (request.text, request.text_pair, request.question, request.passage)
        total += 1 + sum(1 + len(text) / CHARACTERS_PER_TOKEN for text in texts if text)
    return total / len(sample) if sample else 2.0


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
    seconds["bench"] = bench_seconds(work, speed)
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


def corpus_blocks(recipe: Recipe) -> int | None:
    """Returns about how many blocks of text a recipe pre-trains on; None if the corpus is not on this machine."""
    from pathlib import Path

    options = recipe.pretrain
    corpus = Path(options.corpus or "")
    files = [corpus] if corpus.is_file() else [path for path in corpus.rglob("*") if path.is_file()]
    if not files:
        return options.limit
    blocks = int(sum(path.stat().st_size for path in files) / CHARACTERS_PER_BLOCK_TOKEN / options.length)
    return min(blocks, options.limit or blocks)


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
    options = work.recipe.distill
    epochs = min(1.0, options.training.epochs) if options.keep_targets else options.training.epochs
    asked = work.train * work.windows * epochs * PADDING * work.operations(work.teacher)
    student = training_seconds(work, speed, options.training, work.student, work.train)
    return student + asked / speed.inference / processes.count()


def exits_seconds(work: Workload, speed: MachineSpeed) -> float:
    """Returns the seconds to train the exit heads, for which the student only runs forward."""
    options = work.recipe.exits
    examples = min(work.train, options.train_limit or work.train)
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
    return speed.python * (START_SECONDS + total)


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
    programs = len(recipe.export.coreml_buckets) * (1 + len(work.exit_layers))
    evaluated = programs * EVALUATION_SECONDS * speed.python
    if get_task(recipe.task).has_classes:
        bucket = min((size for size in recipe.export.coreml_buckets if size >= work.length), default=work.length)
        operations = SEMANTICS_SLOWDOWN * work.operations(work.student, bucket) / speed.cpu
        evaluated += work.dev * (operations + speed.python * LABELLED_SECONDS * work.student.layers)
    return total + evaluated


def single_seconds(work: Workload, speed: MachineSpeed, length: int | None = None) -> float:
    """Returns the seconds of an example, or of an input of some length, through all programs for ExecuTorch."""
    calls = (1 + len(work.exit_layers)) * CALL_SECONDS * speed.python
    one = calls + SINGLE_SLOWDOWN * work.operations(work.student, length) / speed.cpu
    return one if length else work.windows * one


def bench_seconds(work: Workload, speed: MachineSpeed) -> float:
    """Returns the seconds of the measurements on this machine. BERT-base is exported once on a machine."""
    options = work.recipe.bench
    dev = min(work.dev, options.evaluate_limit or work.dev)
    total = speed.python * (START_SECONDS + WORKER_SECONDS) + dev * (1 + len(options.speeds)) * single_seconds(
        work, speed
    )
    rounds = options.repeats + 2
    lengths = [length for length in options.lengths if length <= work.recipe.export.max_length]
    total += rounds * len(work.exit_layers) * sum(0.6 * single_seconds(work, speed, length) for length in lengths)
    if options.reference != "none":
        total += speed.python * WORKER_SECONDS + reference_seconds(options.reference_length, rounds, speed)
    return total


def reference_seconds(length: int, rounds: int, speed: MachineSpeed) -> float:
    """Returns the seconds to measure BERT-base, with its export if this machine has not made it yet."""
    from pipeline.bench.cache import cache_folder
    from pipeline.bench.runtimes.bert_base import file_name
    from pipeline.model.flops import layer_flops
    from quantize.size import BERT_BASE

    exported = (cache_folder() / file_name(length, BERT_BASE)).exists()
    running = rounds * BERT_BASE.layers * layer_flops(BERT_BASE, length) * SINGLE_SLOWDOWN / speed.cpu
    return running + (0.0 if exported else speed.python * REFERENCE_SECONDS)
