"""A forecast grows with the work, counts only the stages that are asked for, and says so in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.data.examples import ClassificationExample, QAExample
from pipeline.recipe import Recipe
from pipeline.run.clock import RunClock
from pipeline.run.forecast import Forecast, add_up, forecast
from pipeline.run.machine_speed import MachineSpeed
from pipeline.run.table import stages_up_to
from pipeline.run.workload import describe_work, estimate_tokens
from pipeline.support.durations import say_duration
from pipeline.tasks import get_task

SPEED = MachineSpeed("2 cores", training=2e11, inference=3e11, measuring=2e11, cpu=2e11, python=1.0)
TRAINING = {"epochs": 2, "batch_size": 16}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint that has no weights: a forecast reads its sizes only."""
    config = {
        "model_type": "bert",
        "vocab_size": 1000,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def recipe_of(folder: Path, task: str = "classification", **changes) -> Recipe:
    sections = {
        "teacher": {"weights": str(folder), "training": TRAINING},
        "distill": {"training": TRAINING},
        "exits": {"training": TRAINING},
        "bench": {"reference": "none"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name == "epochs":
            sections[section] = sections[section] | {"training": TRAINING | {"epochs": value}}
        else:
            sections[section] = sections.get(section, {}) | {name: value}
    return Recipe(name="some", task=task, **sections)


def seconds(recipe: Recipe, train: int = 4000, dev: int = 300, tokens: float = 30.0, speed=SPEED) -> dict[str, float]:
    return dict(add_up(describe_work(recipe, train, dev, tokens), speed).seconds)


def test_every_stage_of_the_recipe_is_forecast_in_its_order(folder):
    recipe = recipe_of(folder)
    assert list(seconds(recipe)) == stages_up_to("report", recipe)
    text = folder / "text.txt"
    text.write_text("a line of plain text\n" * 1000)
    with_corpus = recipe_of(folder, pretrain__corpus=str(text))
    assert list(seconds(with_corpus)) == [
        *("prepare", "finetune", "pretrain", "distill", "exits", "quantize", "export", "verify", "bench", "report")
    ]
    assert seconds(with_corpus)["pretrain"] > 0


@pytest.mark.parametrize(
    "stage, changes",
    [
        ("finetune", {"teacher__epochs": 4}),
        ("distill", {"distill__epochs": 4}),
        ("exits", {"exits__epochs": 4}),
        ("quantize", {"quantize__scheme": "int4"}),
        ("export", {"export__coreml_buckets": [16, 32, 64, 128]}),
        ("bench", {"bench__repeats": 60}),
    ],
)
def test_more_work_in_a_stage_takes_longer_there_and_nowhere_before(stage, changes, folder):
    before, after = seconds(recipe_of(folder)), seconds(recipe_of(folder, **changes))
    names = list(before)
    assert after[stage] > before[stage]
    earlier = names[: names.index(stage)]
    assert [after[name] for name in earlier] == [before[name] for name in earlier]


@pytest.mark.parametrize("task, tokens", [("classification", 30.0), ("qa", 900.0)])
def test_more_examples_longer_texts_and_a_slower_machine_take_longer(task, tokens, folder):
    recipe = recipe_of(folder, task)
    base = seconds(recipe, tokens=tokens)
    more, more_dev, longer = (
        seconds(recipe, train=8000, tokens=tokens),
        seconds(recipe, dev=3000, tokens=tokens),
        seconds(recipe, tokens=2 * tokens),
    )
    for stage in ("finetune", "distill", "exits"):
        assert more[stage] > 1.5 * base[stage] and longer[stage] > base[stage]
    assert more_dev["verify"] > base["verify"] and more_dev["bench"] > base["bench"]
    slower = MachineSpeed("2 cores", *(value / 2 for value in (2e11, 3e11, 2e11, 2e11)), python=2.0)
    assert sum(seconds(recipe, tokens=tokens, speed=slower).values()) > 1.7 * sum(base.values())


def test_limits_and_kept_targets_are_taken_into_account(folder):
    base = seconds(recipe_of(folder))
    limited = recipe_of(folder, data__calibration=500, data__train_limit=3000)
    assert seconds(limited)["finetune"] < seconds(recipe_of(folder, data__calibration=500))["finetune"]
    assert seconds(recipe_of(folder, exits__train_limit=500))["exits"] < base["exits"]
    assert seconds(recipe_of(folder, distill__keep_targets=True))["distill"] < base["distill"]
    assert seconds(recipe_of(folder, export__coreml=False))["verify"] < base["verify"]


def test_texts_without_labels_cost_the_student_alone(folder):
    texts = folder / "texts.jsonl"
    texts.write_text("{}\n" * 5000)
    base, more = seconds(recipe_of(folder)), seconds(recipe_of(folder, distill__unlabelled=str(texts)))
    assert more["finetune"] == base["finetune"]
    assert more["distill"] > 2 * base["distill"] and more["exits"] > base["exits"]


def test_only_the_stages_that_are_asked_for_count(folder):
    whole = add_up(describe_work(recipe_of(folder), 4000, 300, 30.0), SPEED)
    part = whole.of(["export", "verify"])
    assert list(part.seconds) == ["export", "verify"]
    assert part.total == whole.seconds["export"] + whole.seconds["verify"] < whole.total


def test_the_sentence_names_the_long_stages_and_the_machine():
    text = Forecast({"prepare": 1.0, "finetune": 200.0, "distill": 120.0, "export": 40.0}, "2 cores").sentence()
    assert text == "about 6 minutes on 2 cores: finetune 3.5 minutes, distill 2 minutes; perhaps up to 9 minutes"
    assert Forecast({"export": 31.0}, "4 cores").sentence() == "about 30 seconds on 4 cores"
    unknown = Forecast({"pretrain": 0.0, "finetune": 90.0}, "2 cores", ("pretrain",)).sentence()
    assert "pretrain not counted" in unknown


@pytest.mark.parametrize(
    "value, words",
    [
        (0.2, "5 seconds"),
        (38, "40 seconds"),
        (55, "1 minute"),
        (100, "1.5 minutes"),
        (400, "7 minutes"),
        (3590, "1 hour"),
        (9100, "2.5 hours"),
    ],
)
def test_a_duration_is_said_no_more_exactly_than_it_is_known(value, words):
    assert say_duration(value) == words


def test_this_machine_is_measured_and_a_missing_checkpoint_forecasts_a_bert_base(folder):
    small = forecast(recipe_of(folder), 2000, 200, 30.0)
    large = forecast(recipe_of(folder, teacher__weights="nobody/has-this"), 2000, 200, 30.0)
    assert 0 < small.total < large.total and "core" in small.device


def test_tokens_are_estimated_as_the_tokenizer_counts_them(demo_tokens):
    for task, counted, estimated in demo_tokens:
        assert estimated == pytest.approx(counted, rel=0.25), task


@pytest.fixture
def demo_tokens() -> list[tuple[str, float, float]]:
    """Returns for each task with demo data the mean number of tokens, counted and estimated."""
    from pipeline.data.tokenizer import WordPieceTokenizer
    from pipeline.model.locate import minilm_folder

    tokenizer = WordPieceTokenizer.from_vocab(minilm_folder() / "vocab.txt")
    found = []
    for name in ("classification", "qa"):
        task, recipe = get_task(name), Recipe(name="demo", task=name)
        examples = task.load_demo()[1]
        inputs = task.encode_all(examples, tokenizer, recipe.input_options)
        counted = sum(len(part.ids) for group in inputs for part in group) / len(examples)
        found.append((name, counted, estimate_tokens(examples, recipe)))
    return found


def test_no_examples_have_no_length():
    recipe = Recipe(name="some", task="classification")
    assert estimate_tokens([], recipe) > 0
    longer = [ClassificationExample("a word " * 30)]
    assert estimate_tokens(longer, recipe) > estimate_tokens([ClassificationExample("a word")], recipe)
    question = QAExample("q", "Who came?", "Somebody came. " * 20, ())
    assert estimate_tokens([question], Recipe(name="some", task="qa")) > 60


def test_a_clock_counts_down_and_corrects_itself(capsys):
    clock = RunClock()
    assert clock.start("finetune") == "" and clock.expected("finetune") is None
    clock.announce(Forecast({"finetune": 60.0, "distill": 60.0, "export": 60.0}, "2 cores"))
    assert capsys.readouterr().err.startswith("this run takes about 3 minutes on 2 cores")
    assert clock.start("finetune") == " about 1 minute, 3 minutes to the end of the run"
    clock.finish("finetune", 120.0)
    assert clock.start("distill") == " about 2 minutes, 4 minutes to the end of the run"
    clock.finish("distill", 120.0)
    assert clock.start("export") == " about 2 minutes"


def test_a_short_run_is_not_announced(capsys):
    clock = RunClock()
    clock.announce(Forecast({"finetune": 2.0, "distill": 1.0}, "2 cores"))
    assert clock.start("finetune") == "" and capsys.readouterr().err == ""


def test_one_odd_stage_does_not_turn_a_forecast_upside_down():
    clock = RunClock()
    clock.announce(Forecast({"finetune": 20.0, "distill": 20.0}, "2 cores"))
    clock.finish("finetune", 2000.0)
    assert clock.expected("distill") == 80.0
