"""The stages of a run: what goes into each, and what it leaves behind. Order and dependence stand in `STAGES`, nowhere else."""

from __future__ import annotations

import json
import platform
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pipeline.bundle.manifest import Speed, read_manifest
from pipeline.data.corpus import corpus_digest, open_corpus, write_corpus
from pipeline.data.examples import Example
from pipeline.data.files import read_examples
from pipeline.data.items import Item
from pipeline.data.labels import LabelRange
from pipeline.data.splits import split_off
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.names import APPLE_BACKENDS
from pipeline.recipe import Recipe
from pipeline.support import processes
from pipeline.support.digests import sha256_of
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, console, progress
from pipeline.support.workspace import Place, Workspace, fingerprint, write_text
from pipeline.tasks import AnyTask, Labels, get_task

SPEEDS = ("exact", "balanced", "fast")  # the names that are calibrated, each with its largest loss in the recipe
MIX = "mix.json"  # of a mixed scheme: what each matrix got, and why
ROUNDED = "rounded"  # where int4 is asked for: the student, its matrices in whole steps
CURVE = "losses.json"  # beside what a training left: its mean loss at every step


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: the command, and the key of its record.
        folder: where its result lies in the output folder.
        after: stages whose results it reads.
        sections: parts of the recipe that it reads; a change in any other leaves its result standing.
        build: does the work.
        wanted: whether a recipe has this stage at all; one that has not runs as if the stage did not exist.
        trains: whether all processes of a run take part; what does not train is the main one's alone.
        version: raised when the code of a stage changes what it produces, so that older results are made anew.
    """

    name: str
    folder: str
    after: tuple[str, ...]
    sections: tuple[str, ...]
    build: Callable[[Run, Place, OnStep], None]
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    trains: bool = False
    version: int = 1


class Run:
    """A recipe on its way through the stages, in one output folder.

    Args:
        base: a run whose results stand in for this one's wherever they were made from exactly the same.
    """

    def __init__(self, recipe: Recipe, out: str | Path, base: Run | None = None):
        self.recipe, self.base = recipe, base
        self.workspace = Workspace(out)
        self._shared: dict[str, bool] = {}

    def has(self, stage: str) -> bool:
        """Whether the recipe has this stage."""
        return STAGES[stage].wanted(self.recipe)

    def shares(self, name: str) -> bool:
        """Whether the base run finished exactly this stage."""
        if self.base is None:
            return False
        if name not in self._shared:  # answered once: it reads the whole result
            self._shared[name] = self.base.has(name) and self.base.workspace.is_done(
                STAGES[name].folder, self.mark(name)
            )
        return self._shared[name]

    def path(self, stage: str) -> Path:
        """The folder that a finished stage left."""
        workspace = self.base.workspace if self.shares(stage) else self.workspace
        return workspace.folder(STAGES[stage].folder)

    def mark(self, name: str) -> str:
        """The fingerprint of everything that goes into a stage, its predecessors' included."""
        stage = STAGES[name]
        sections = [getattr(self.recipe, section) for section in stage.sections]
        values = [section.model_dump() if hasattr(section, "model_dump") else section for section in sections]
        inputs = INPUTS[name](self) if name in INPUTS else None
        return fingerprint(
            name, stage.version, values, inputs, [self.mark(before) for before in stage.after if self.has(before)]
        )

    def input_digests(self) -> list[str]:
        """What identifies the data: a file's digest, or the name of a set."""
        sources = (self.recipe.data.train, self.recipe.data.dev)
        return [sha256_of(Path(source)) if Path(source).is_file() else source for source in sources]

    def weights_digest(self, weights: str | None = None) -> list[str]:
        """What identifies a teacher's weights, those of teacher.weights if none are named: a local folder's files' digests, or the name."""
        folder = Path(weights or self.recipe.teacher.weights)
        names = ("config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt")
        return [sha256_of(folder / name) for name in names if (folder / name).is_file()] or [str(folder)]

    def unlabelled_digest(self) -> str | None:
        """What identifies the texts without labels: the file's digest, or the name of a set."""
        source = self.recipe.distill.unlabelled
        return sha256_of(Path(source)) if source and Path(source).is_file() else source

    def corpus_inputs(self) -> list:
        """What identifies the text, the teacher and the shape of a student that is pre-trained; not where its exits are."""
        student = self.recipe.student
        teachers = [
            self.weights_digest(weights) for weights in (self.recipe.pretrain.teacher, self.recipe.teacher.weights)
        ]
        return [corpus_digest(self.recipe.pretrain.corpus), teachers, student.layers, student.initialise]

    def upto(self, last: str) -> None:
        """Runs a stage and everything it needs, skipping what is done; prints the time of each.

        Several processes go together as far as the last training; after it the main one goes on alone.
        """
        order = order_upto(last, self.recipe)
        common = max((at + 1 for at, name in enumerate(order) if STAGES[name].trains), default=0)
        with self.workspace.locked():
            for at, name in enumerate(order):
                if at == common:  # processes that wait keep cores busy, and that would show in what is measured
                    processes.leave()
                if at < common or processes.is_main():
                    self._step(STAGES[name])

    def _step(self, stage: Stage) -> None:
        """One stage, unless it is done."""
        if processes.from_main(lambda: self.shares(stage.name)):
            return
        mark = processes.from_main(lambda: self.mark(stage.name))
        if processes.from_main(lambda: self.workspace.is_done(stage.folder, mark)):
            console.print(f"{stage.name:<9} unchanged")
            return
        console.print(f"{stage.name:<9} ...")
        with progress() as on_step:

            def build(place: Place | None = None) -> None:
                place = processes.from_main(lambda: place)
                if not all(processes.agree(place.scratch.is_dir())):
                    raise UserError(
                        "is not there for every process; give --out on a file system that all hosts share",
                        file=place.scratch,
                    )
                stage.build(self, place, on_step)

            if not stage.trains:
                processes.from_main(
                    lambda: self.workspace.run(stage.folder, mark, partial(stage.build, self, on_step=on_step))
                )
            elif processes.is_main():
                self.workspace.run(stage.folder, mark, build)
            else:
                build()
            processes.wait()  # until the result is in its folder
        console.print(f"{stage.name:<9} {self.seconds(stage.name):.0f} s")

    def seconds(self, name: str) -> float:
        record = self.workspace.record(STAGES[name].folder)
        return record["seconds"] if record else float("nan")

    def stage_seconds(self) -> dict[str, float]:
        """Seconds of every finished stage, in order."""
        return {
            name: self.seconds(name) for name in STAGES if self.has(name) and self.workspace.record(STAGES[name].folder)
        }

    # What stages left, read back.

    def examples(self, part: str) -> list[Example]:
        """ "train", "calibration" or "dev"."""
        return load_examples(self.path("prepare") / f"{part}.jsonl", get_task(self.recipe.task))

    def lessons(self) -> list[Example]:
        """What student and exits learn from: the training examples, then the recipe's texts without labels."""
        return self.examples("train") + read_unlabelled(self.recipe)

    def labels(self) -> tuple[str, ...] | LabelRange:
        """Label values in the order of the logits; the labels' range for regression, ("start", "end") for question answering."""
        raw = json.loads((self.path("prepare") / "labels.json").read_text())
        return LabelRange(**raw) if isinstance(raw, dict) else tuple(raw)

    def tokenizer(self) -> WordPieceTokenizer:
        options = json.loads((self.path("finetune") / "tokenizer.json").read_text())
        return WordPieceTokenizer.from_vocab(self.path("finetune") / "vocab.txt", lowercase=options["lowercase"])

    def model(self, stage: str):
        from pipeline.model.checkpoint import load_model

        return load_model(self.path(stage))

    def metrics(self, stage: str) -> dict[str, float]:
        return json.loads((self.path(stage) / "metrics.json").read_text())


def items_of(examples: Sequence[Example], tokenizer: WordPieceTokenizer, labels: Labels, recipe: Recipe) -> list[Item]:
    """What a model is trained on, by the recipe's task and lengths."""
    return get_task(recipe.task).items(examples, tokenizer, labels, recipe.input_options)


def save_examples(examples: Sequence[Example], path: Path) -> None:
    """One JSON object a line."""
    with open(path, "w", encoding="utf-8") as stream:
        for example in examples:
            stream.write(json.dumps(asdict(example), ensure_ascii=False) + "\n")


def load_examples(path: Path, task: AnyTask) -> list[Example]:
    """What `save_examples` wrote."""
    # Not splitlines(): texts may hold line separators that JSON does not escape.
    with open(path, encoding="utf-8", newline="\n") as stream:
        return [task.example_from_json(json.loads(line)) for line in stream]


def read_source(recipe: Recipe, part: str) -> list[Example]:
    """The recipe's training or dev examples, from the embedded data, a file, or a hub set."""
    source, limit = getattr(recipe.data, part), getattr(recipe.data, f"{part}_limit")
    if source == "demo":
        return some_of(get_task(recipe.task).load_demo()[0 if part == "train" else 1], limit, recipe.seed)
    data = recipe.data
    examples = read_examples(source, recipe.task, text=data.text, text_pair=data.text_pair, label=data.label)
    return some_of(examples, limit, recipe.seed)


def read_unlabelled(recipe: Recipe) -> list[Example]:
    """The texts of `distill.unlabelled`, without a label whatever the file has; none if the recipe names none."""
    source, data = recipe.distill.unlabelled, recipe.data
    return (
        [] if source is None else read_examples(source, recipe.task, text=data.text, text_pair=data.text_pair, label="")
    )


def prepare(run: Run, place: Place, on_step: OnStep) -> None:
    """Reads and checks the data, cuts the calibration split off, and keeps all in one form."""
    recipe = run.recipe
    on_step("reading the data", 0, 2)
    train = read_source(recipe, "train")
    on_step("reading the data", 1, 2)
    dev = read_source(recipe, "dev")
    on_step("reading the data", 2, 2)
    read_unlabelled(recipe)  # what is wrong with it is to be said now, not after the teacher's hours
    task = get_task(recipe.task)
    labels = task.labels_of(train, dev, recipe.data.dev, recipe.data.label_names, recipe.input_options)
    if len(train) < 2 * recipe.data.calibration:
        raise UserError(
            f"{recipe.data.calibration} of {len(train)} training examples would go to calibration, more than half; "
            "give more data or set it lower",
            file=recipe.data.train,
            field="data.calibration",
        )
    check_calibration(recipe)
    train, calibration = split_off(train, task.group(train), recipe.data.calibration, recipe.seed)
    for name, part in (("train", train), ("calibration", calibration), ("dev", dev)):
        save_examples(part, place.out / f"{name}.jsonl")
    write_text(place.out / "labels.json", json.dumps(labels.model_dump() if isinstance(labels, LabelRange) else labels))


def check_calibration(recipe: Recipe) -> None:
    """UserError if no calibration split of the recipe's size could show what a named speed promises, or if its mix could not be chosen."""
    from pipeline.exits.calibrate import examples_needed

    if recipe.quantize.scheme == "mixed":
        check_draft(recipe)
    check_ranges(recipe)
    for name in SPEEDS:
        needed = examples_needed(getattr(recipe.exits, name), recipe.exits.delta, get_task(recipe.task).speed_metric)
        if recipe.data.calibration < needed:
            raise UserError(
                f"{recipe.data.calibration} examples cannot show that the speed {name!r} loses at most {getattr(recipe.exits, name):g} with "
                f"confidence {1 - recipe.exits.delta:g}; that takes at least {needed} (better three times as many); or raise exits.{name}",
                field="data.calibration",
            )


def check_draft(recipe: Recipe) -> None:
    """UserError if the part of the calibration split that drafts thresholds is too small to compare matrices on."""
    from pipeline.exits.calibrate import DRAFT_SHARE, split_rows
    from quantize.sensitivity import FEWEST

    left = len(split_rows(recipe.data.calibration, recipe.seed)[0])
    if left < FEWEST:
        raise UserError(
            f"{recipe.data.calibration} examples leave {left} to compare matrices on, at least {FEWEST} are needed; "
            f"set it to {round(FEWEST / DRAFT_SHARE)} or more",
            field="data.calibration",
        )


def check_ranges(recipe: Recipe) -> None:
    """UserError if Core ML's programs are to have int8 inputs, and that part of the calibration split is too small to find their ranges on."""
    from pipeline.exits.calibrate import DRAFT_SHARE, split_rows
    from quantize.coreml_schemes import COREML_SCHEMES
    from quantize.int8_inputs import FEWEST

    left, options = len(split_rows(recipe.data.calibration, recipe.seed)[0]), recipe.export
    if options.coreml and COREML_SCHEMES[options.coreml_precision].int8_inputs and left < FEWEST:
        raise UserError(
            f"{recipe.data.calibration} examples leave {left} to find the activations' ranges on for export.coreml_precision="
            f"{options.coreml_precision}, at least {FEWEST} are needed; set it to {round(FEWEST / DRAFT_SHARE)} or more",
            field="data.calibration",
        )


def finetune(run: Run, place: Place, on_step: OnStep) -> None:
    """The teacher, and its score on dev."""
    from pipeline.distill.finetune import build_teacher, finetune
    from pipeline.exits.predictions import predict, run_model
    from pipeline.model.checkpoint import save_model
    from pipeline.model.pretrained import load_pretrained

    recipe, labels = run.recipe, run.labels()
    pretrained = load_pretrained(recipe.teacher.weights, recipe.task)
    tokenizer = WordPieceTokenizer.from_vocab(pretrained.vocab, lowercase=pretrained.lowercase)
    teacher = build_teacher(pretrained, recipe, labels)
    check_window(recipe, teacher.config.max_positions)
    if recipe.teacher.training.epochs:
        items = items_of(run.examples("train"), tokenizer, labels, recipe)
        finetune(teacher, items, recipe, place.scratch / "checkpoint.pt", on_step, curve=place.out / CURVE)
    if not processes.is_main():
        return
    shutil.copyfile(pretrained.vocab, place.out / "vocab.txt")
    write_text(place.out / "tokenizer.json", json.dumps({"lowercase": pretrained.lowercase}))
    save_model(teacher, place.out)
    predictions = predict(run_model, teacher, run.examples("dev"), tokenizer, labels, recipe, on_step)
    write_text(place.out / "metrics.json", json.dumps(predictions.metrics()))


def check_window(recipe: Recipe, positions: int) -> None:
    """UserError if the recipe asks for longer inputs than the weights have positions."""
    longest = get_task(recipe.task).longest_input(recipe.input_options)
    for field, length in (longest, ("export.max_length", recipe.export.max_length)):
        if length > positions:
            raise UserError(f"{length} is more than the {positions} positions of {recipe.teacher.weights}", field=field)


def pretrain(run: Run, place: Place, on_step: OnStep) -> None:
    """The student's encoder, and how well it finds hidden words before and after."""
    import torch
    from safetensors.torch import load_file, save_file

    from pipeline.distill.pretrain import fit_head, measure, pretrain, student_of, teacher_of
    from pipeline.distill.student import check_same_shape
    from pipeline.model.checkpoint import save_encoder
    from pipeline.model.pretrained import load_pretrained

    recipe, options = run.recipe, run.recipe.pretrain
    pretrained = load_pretrained(options.teacher or recipe.teacher.weights, recipe.task)
    tokenizer = WordPieceTokenizer.from_vocab(pretrained.vocab, lowercase=pretrained.lowercase)
    if options.teacher:  # hours before the task's teacher and this student would meet
        later = load_pretrained(recipe.teacher.weights, recipe.task)
        check_same_shape(pretrained.config, later.config, "pretrain.teacher")
        if (
            tokenizer.tokens != WordPieceTokenizer.from_vocab(later.vocab).tokens
            or pretrained.lowercase != later.lowercase
        ):
            raise UserError(
                f"its vocabulary is not that of {recipe.teacher.weights}; take a teacher with the same",
                field="pretrain.teacher",
            )
    torch.manual_seed(recipe.seed + 3)
    teacher = teacher_of(pretrained)
    corpus = place.scratch / "corpus.ids"
    processes.from_main(lambda: write_corpus(options.corpus, tokenizer, corpus, options, on_step))
    blocks = open_corpus(corpus, tokenizer, options)
    blocks, held_out = blocks.split(min(options.held_out, max(1, len(blocks) // 10)), recipe.seed)
    fitted = place.scratch / "teacher_head.safetensors"
    if pretrained.mlm_head is None:
        if not fitted.is_file():
            console.print(f"  {pretrained.source} comes without a masked-LM head; fitting one on its frozen encoder")
            fit_head(teacher, blocks, recipe, place.scratch / "head_checkpoint.pt", on_step)
            if processes.is_main():
                save_file(teacher.head.state_dict(), partial := fitted.with_suffix(".partial"))
                partial.replace(fitted)
            processes.wait()
        teacher.head.load_state_dict(load_file(fitted))
    torch.manual_seed(recipe.seed + 4)
    student = student_of(teacher, recipe)
    metrics = {
        "blocks": len(blocks),
        "held_out": len(held_out),
        "teacher": measure(teacher, teacher, held_out, recipe, on_step).to_json(),
        "before": measure(student, teacher, held_out, recipe, on_step).to_json(),
    }
    pretrain(student, teacher, blocks, recipe, place.scratch / "checkpoint.pt", on_step, curve=place.out / CURVE)
    if not processes.is_main():
        return
    metrics["after"] = measure(student, teacher, held_out, recipe, on_step).to_json()
    save_encoder(student.encoder, place.out)
    shutil.copyfile(pretrained.vocab, place.out / "vocab.txt")
    write_text(place.out / "metrics.json", json.dumps(metrics))


def distill(run: Run, place: Place, on_step: OnStep) -> None:
    """The student's backbone and last head."""
    import torch

    from pipeline.distill.student import initialise_student
    from pipeline.distill.task import distill
    from pipeline.model.checkpoint import load_encoder, save_model

    recipe = run.recipe
    teacher = run.model("finetune")
    torch.manual_seed(recipe.seed + 1)
    student = initialise_student(
        teacher,
        recipe.student.layers,
        recipe.student.exit_layers,
        recipe.head,
        initialise=recipe.student.initialise,
        encoder=load_encoder(run.path("pretrain")) if run.has("pretrain") else None,
    )
    items = items_of(run.lessons(), run.tokenizer(), run.labels(), recipe)
    distill(student, teacher, items, recipe, place.scratch / "checkpoint.pt", on_step, curve=place.out / CURVE)
    if processes.is_main():
        save_model(student, place.out)


def exits(run: Run, place: Place, on_step: OnStep) -> None:
    """The student with its exit heads trained, and every exit's score on dev."""
    from pipeline.exits.predictions import predict, run_model
    from pipeline.exits.self_distill import self_distill
    from pipeline.exits.temperature import calibrate_heads
    from pipeline.model.checkpoint import save_model

    recipe = run.recipe
    student, tokenizer, labels = run.model("distill"), run.tokenizer(), run.labels()
    if recipe.exits.training.epochs:
        items = items_of(some_of(run.lessons(), recipe.exits.train_limit, recipe.seed), tokenizer, labels, recipe)
        student = self_distill(
            student, items, recipe, place.scratch / "checkpoint.pt", on_step, curve=place.out / CURVE
        )
    if not processes.is_main():
        return
    student.uncertainty = recipe.exits.uncertainty
    if recipe.exits.temperature_scaling:
        report = calibrate_heads(student, items_of(draft_examples(run), tokenizer, labels, recipe), on_step)
        write_text(place.out / "temperatures.json", json.dumps(report, indent=2))
    save_model(student, place.out)
    predictions = predict(run_model, student, run.examples("dev"), tokenizer, labels, recipe, on_step)
    metrics = predictions.metrics() | {"exits": [predictions.metrics(at) for at in range(predictions.exits)]}
    write_text(place.out / "metrics.json", json.dumps(metrics))


def draft_examples(run: Run, limit: int | None = None) -> list[Example]:
    """The part of the calibration split that no threshold is tested on: what else is fitted to examples is fitted to these."""
    from pipeline.exits.calibrate import split_rows

    calibration = run.examples("calibration")
    return [calibration[row] for row in split_rows(len(calibration), run.recipe.seed)[0][:limit]]


def some_of(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` examples from all over the file: files are often sorted, by label or by article."""
    if limit is None or len(examples) <= limit:
        return examples
    return random.Random(seed).sample(examples, limit)


def quantize(run: Run, place: Place, on_step: OnStep) -> None:
    """What the quantized model scores, and the thresholds of the named speeds, calibrated on what it says."""
    from pipeline.exits.calibrate import calibrate
    from pipeline.exits.predictions import predict, run_programs
    from pipeline.model.checkpoint import save_model

    recipe = run.recipe
    check_calibration(recipe)  # again: the split stands, and this runs, when only the speeds have changed
    if rounds(recipe):
        (place.out / ROUNDED).mkdir()
        save_model(round_student(run, on_step), place.out / ROUNDED)
    if recipe.quantize.scheme == "mixed":
        write_text(place.out / MIX, chosen_mix(run, place.out, on_step).model_dump_json(indent=2))
    programs = quantized_programs(run, place.out)
    tokenizer, labels = run.tokenizer(), run.labels()
    calibration = predict(run_programs, programs, run.examples("calibration"), tokenizer, labels, recipe, on_step)
    speeds = {
        name: calibrate(
            calibration,
            getattr(recipe.exits, name),
            recipe.exits.delta,
            get_task(recipe.task).speed_metric,
            recipe.seed,
        ).model_dump()
        for name in SPEEDS
    }
    write_text(place.out / "speeds.json", json.dumps(speeds, indent=2))
    dev = predict(run_programs, programs, run.examples("dev"), tokenizer, labels, recipe, on_step)
    write_text(place.out / "metrics.json", json.dumps(dev.metrics()))
    write_text(place.out / "answers.json", json.dumps([answers[-1] for answers in dev.answers]))


def quantized_programs(run: Run, folder: Path | None = None):
    """The quantized model in PyTorch: made from the student again, since quantizing takes a second and saving it more code.

    `folder` holds the stage's result where it is not finished yet.
    """
    from pipeline.model.segments import Programs
    from quantize.schemes import apply_scheme, apply_schemes

    programs, options = Programs.of(run.model("exits")), run.recipe.quantize
    rounded = Programs.of(rounded_student(run, folder)) if rounds(run.recipe) else None
    if options.scheme == "mixed":
        return apply_schemes(programs, mixed_schemes(run, folder), rounded)
    return apply_scheme(programs, options.scheme, options.embeddings, rounded)


def rounds(recipe: Recipe) -> bool:
    """Whether a target has int4 matrices, and the recipe texts to round them by (`quantize.rounding`)."""
    four_bits = recipe.quantize.scheme in ("int4", "mixed") or (
        recipe.export.coreml and recipe.export.coreml_precision == "int4"
    )
    return four_bits and recipe.quantize.rounding_texts > 0


def round_student(run: Run, on_step: OnStep):
    """The student with its matrices in whole steps of int4."""
    from quantize.rounding import round_model

    recipe = run.recipe
    texts = some_of(run.examples("train"), recipe.quantize.rounding_texts, recipe.seed)
    items = items_of(texts, run.tokenizer(), run.labels(), recipe)
    return round_model(run.model("exits"), items, on_step)


def rounded_student(run: Run, folder: Path | None = None):
    """What `round_student` made; `folder` as of `quantized_programs`."""
    from pipeline.model.checkpoint import load_model

    return load_model((folder or run.path("quantize")) / ROUNDED)


def coreml_model(run: Run):
    """The student whose weights Core ML's programs store: where their precision has int4 matrices, those are rounded for it."""
    from quantize.rounding import with_rounded

    precision = run.recipe.export.coreml_precision
    if not rounds(run.recipe) or precision not in ("int4", "mixed"):
        return run.model("exits")
    rounded = rounded_student(run)
    return rounded if precision == "int4" else with_rounded(run.model("exits"), rounded, mixed_schemes(run))


def mixed_schemes(run: Run, folder: Path | None = None) -> dict[str, str]:
    """Which scheme each matrix got, see `quantized_programs`; empty unless the recipe's scheme is mixed."""
    if run.recipe.quantize.scheme != "mixed":
        return {}
    return json.loads(((folder or run.path("quantize")) / MIX).read_text())["schemes"]


def chosen_mix(run: Run, folder: Path, on_step: OnStep):
    """The scheme of each matrix by the recipe's budget; `folder` as of `quantized_programs`."""
    from pipeline.model.segments import Programs
    from quantize.mixed import choose

    examples = draft_examples(run, run.recipe.quantize.sensitivity_examples)
    rounded = Programs.of(rounded_student(run, folder)) if rounds(run.recipe) else None
    return choose(
        Programs.of(run.model("exits")), examples, run.tokenizer(), run.labels(), run.recipe, on_step, rounded
    )


def sensitivity(run: Run, schemes: Sequence[str], on_step: OnStep):
    """How much the trained student minds each matrix in fewer bits, on the recipe's calibration split; and the judge of it."""
    from pipeline.model.segments import Programs
    from quantize.sensitivity import measure_sensitivity

    recipe = run.recipe
    check_draft(recipe)
    examples = draft_examples(run, recipe.quantize.sensitivity_examples)
    by_texts = "int4" in schemes and recipe.quantize.rounding_texts > 0
    rounded = Programs.of(round_student(run, on_step)) if by_texts else None
    return measure_sensitivity(
        Programs.of(run.model("exits")), examples, run.tokenizer(), run.labels(), recipe, schemes, on_step, rounded
    )


def export(run: Run, place: Place, on_step: OnStep) -> None:
    """The bundle."""
    from pipeline.export.bundle import write_bundle

    recipe = run.recipe
    speeds = json.loads((run.path("quantize") / "speeds.json").read_text())
    options = json.loads((run.path("finetune") / "tokenizer.json").read_text())
    write_bundle(
        place.out,
        model=run.model("exits"),
        coreml_model=coreml_model(run),
        quantized=quantized_programs(run),
        matrix_schemes=mixed_schemes(run),
        input_gains=input_gains_of(run, on_step),
        recipe=recipe,
        tokenizer_vocab=run.path("finetune") / "vocab.txt",
        lowercase=options["lowercase"],
        label_values=() if isinstance(run.labels(), LabelRange) else run.labels(),
        label_range=run.labels() if isinstance(run.labels(), LabelRange) else None,
        speeds={name: Speed(**speed) for name, speed in speeds.items()},
        conformance_examples=conformance_examples(run),
        provenance={
            "recipe": recipe.name,
            "teacher": recipe.teacher.weights,
            "train": Path(recipe.data.train).name,
            "dev": Path(recipe.data.dev).name,
        },
        on_step=on_step,
    )


def input_gains_of(run: Run, on_step: OnStep):
    """The gains of int8 inputs of Core ML programs, None where the recipe has none of those."""
    from pipeline.model.segments import Programs
    from quantize.coreml_schemes import COREML_SCHEMES
    from quantize.int8_inputs import input_gains

    options = run.recipe.export
    if not (options.coreml and COREML_SCHEMES[options.coreml_precision].int8_inputs):
        return None
    items = items_of(draft_examples(run, options.coreml_calibration), run.tokenizer(), run.labels(), run.recipe)
    return input_gains(Programs.of(run.model("exits")), items, on_step)


def conformance_examples(run: Run, count: int = 16) -> list[Example]:
    """Dev examples spread over all lengths, the shortest and the longest among them."""
    examples = run.examples("dev")

    examples.sort(key=get_task(run.recipe.task).text_length)
    if len(examples) <= count:
        return examples
    return [examples[round(at * (len(examples) - 1) / (count - 1))] for at in range(count)]


def verify(run: Run, place: Place, on_step: OnStep) -> None:
    """Every program of the bundle against the model it came from; fails when one is out of tolerance."""
    from pipeline.bundle.opening import Bundle
    from pipeline.verify.agreement import check_agreement, check_coreml_labels
    from pipeline.verify.checks import to_json
    from pipeline.verify.neural_engine import lint_bundle
    from pipeline.verify.on_mac import verify_on_mac
    from pipeline.verify.verify import require, verify_bundle

    bundle = run.path("export")
    checks = verify_bundle(bundle, on_step)
    of_mac, mac = verify_on_mac(bundle, on_step)
    checks += of_mac
    manifest = read_manifest(bundle, check_files=False)
    backends = {program.backend for program in manifest.programs}
    for backend in (each for each in APPLE_BACKENDS if each in backends):
        from pipeline.verify.coreml_parity import check_against_model

        checks += check_against_model(run.model("exits"), bundle, manifest, on_step, backend=backend)
        if get_task(manifest.task).has_classes:
            checks.append(
                check_coreml_labels(Bundle.open(bundle), run.model("exits"), run.examples("dev"), on_step, backend)
            )
    answers = json.loads((run.path("quantize") / "answers.json").read_text())
    checks.append(check_agreement(Bundle.open(bundle), run.examples("dev"), answers, on_step))
    report = json.dumps(to_json(checks, lint_bundle(bundle), mac), indent=2)
    write_text(place.scratch / "failed.json", report)
    require(checks, place.scratch / "failed.json")
    write_text(place.out / "checks.json", report)


def bench(run: Run, place: Place, on_step: OnStep) -> None:
    """The bundle on this machine: accuracy and latency at every speed on dev, the study of its exits, and latency against BERT-base."""
    from pipeline.bench.host import bench_host
    from pipeline.bench.study import study_bundle
    from pipeline.bundle.opening import Bundle
    from pipeline.runtime.evaluate import evaluate

    recipe = run.recipe
    bundle = run.path("export")
    evaluation = evaluate(
        Bundle.open(bundle),
        run.examples("dev"),
        recipe.bench.speeds,
        limit=recipe.bench.evaluate_limit,
        on_progress=on_step,
    )
    write_text(place.out / "evaluation.json", evaluation.model_dump_json(indent=2))
    study = study_bundle(Bundle.open(bundle), run.examples("dev"), recipe.bench.evaluate_limit, on_step)
    write_text(place.out / "study.json", study.model_dump_json(indent=2))
    report = bench_host(
        bundle,
        recipe.bench.lengths,
        recipe.bench.repeats,
        recipe.bench.threads,
        recipe.bench.reference,
        on_step,
        reference_length=recipe.bench.reference_length,
    )
    write_text(place.out / "bench.json", report.model_dump_json(indent=2))


def report(run: Run, place: Place, on_step: OnStep) -> None:
    """The page."""
    from pipeline.report.report import write_report

    write_report(run_results(run), place.out)


def run_results(run: Run):
    """Everything that the stages before the report measured."""
    from pipeline.bench.documents import BenchReport
    from pipeline.exits.study_document import Study
    from pipeline.report.results import RunResults
    from pipeline.runtime.evaluate import Evaluation
    from quantize.size import size_of

    bundle = run.path("export")
    seconds = run.stage_seconds()
    seconds.pop("report", None)
    verified = json.loads((run.path("verify") / "checks.json").read_text())
    return RunResults(
        name=run.recipe.name,
        task=run.recipe.task,
        metrics={
            "teacher": run.metrics("finetune"),
            "student": {key: value for key, value in run.metrics("exits").items() if key != "exits"},
            "quantized": run.metrics("quantize"),
        },
        evaluation=Evaluation.model_validate_json((run.path("bench") / "evaluation.json").read_text()),
        study=Study.model_validate_json((run.path("bench") / "study.json").read_text()),
        bench=BenchReport.model_validate_json((run.path("bench") / "bench.json").read_text()),
        size=size_of(bundle),
        checks=verified["checks"],
        warnings=verified["warnings"],
        mac=verified["mac"],
        stage_seconds=seconds,
        provenance=read_manifest(bundle, check_files=False).provenance | {"machine": platform.platform()},
    )


def names_corpus(recipe: Recipe) -> bool:
    """Whether there is text to pre-train on."""
    return recipe.pretrain.corpus is not None


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("prepare", "data", (), ("task", "seed", "data", "qa"), prepare, version=2),
        Stage("finetune", "teacher", ("prepare",), ("teacher", "precision", "qa"), finetune, trains=True),
        Stage(
            "pretrain", "pretrained", (), ("seed", "precision", "pretrain"), pretrain, wanted=names_corpus, trains=True
        ),
        Stage("distill", "student", ("finetune", "pretrain"), ("student", "distill"), distill, trains=True),
        Stage("exits", "exits", ("distill",), ("exits",), exits, trains=True),
        Stage("quantize", "quantized", ("exits",), ("quantize",), quantize, version=4),
        Stage("export", "bundle", ("quantize",), ("name", "export"), export, version=3),
        Stage("verify", "verification", ("export",), (), verify, version=5),
        Stage("bench", "measurements", ("export",), ("bench",), bench, version=2),
        Stage("report", "report", ("verify", "bench"), (), report),
    )
}


# What else than the recipe's words goes into a stage: the contents of files that it names, and what a later section asks of it.
INPUTS: dict[str, Callable[[Run], object]] = {
    "quantize": lambda run: rounds(run.recipe) or None,
    "prepare": Run.input_digests,
    "finetune": Run.weights_digest,
    "pretrain": Run.corpus_inputs,
    "distill": Run.unlabelled_digest,
}


def order_upto(last: str, recipe: Recipe) -> list[str]:
    """A stage and all it needs of those that the recipe has, in the order to run them. UserError if it has not the stage itself."""
    if not STAGES[last].wanted(recipe):
        raise UserError(
            "the recipe names none, so there is nothing to pre-train on; set it to a text file, a folder or a hub set",
            field="pretrain.corpus",
        )
    needed: set[str] = set()

    def visit(name: str) -> None:
        needed.add(name)
        for before in STAGES[name].after:
            if STAGES[before].wanted(recipe):
                visit(before)

    visit(last)
    return [name for name in STAGES if name in needed]
