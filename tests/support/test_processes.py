"""A recipe on two processes, started as a user starts it: the single process' result, one voice, one line when it fails."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.recipe import load_recipe
from pipeline.run.engine import Run

ROOT = Path(__file__).resolve().parents[2]
WORDS = "good bad film story plot actor very not but dull bright slow fast the a it was".split()


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    from pipeline.support.quiet import import_quietly

    transformers = import_quietly("transformers")
    folder = tmp_path_factory.mktemp("recipe")
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *map(str, range(10)),
        *(f"##{digit}" for digit in range(10)),
        *WORDS,
    ]
    shape = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
    }
    config = transformers.BertConfig(vocab_size=len(vocabulary), **shape)
    transformers.set_seed(0)
    transformers.BertModel(config).save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    chance = random.Random(0)
    rows = [
        f"{('bad', 'good')[at % 2]} {' '.join(chance.choices(WORDS[2:], k=chance.randint(4, 20)))} {at}\t{at % 2}"
        for at in range(161)
    ]
    (folder / "data.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    recipe = folder / "tiny.toml"
    recipe.write_text(
        f"""
name = "tiny"
task = "classification"
precision = "fp32"
data = {{ train = "{folder}/data.tsv", dev = "{folder}/data.tsv", dev_limit = 40, calibration = 60, max_length = 32 }}
teacher = {{ weights = "{folder}/bert", training = {{ epochs = 1, batch_size = 8 }} }}
distill = {{ keep_targets = true, training = {{ epochs = 1, batch_size = 8 }} }}
exits = {{ exact = 0.2, balanced = 0.3, fast = 0.4 }}
export = {{ max_length = 32, coreml_buckets = [32] }}
"""
    )
    return recipe


def environment(**more: object) -> dict[str, str]:
    return (
        os.environ
        | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        | {name: str(value) for name, value in more.items()}
    )


def test_accelerate_launch_ends_in_the_single_process_student(recipe_file, tmp_path):
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0".split()
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options]
    done = subprocess.run(
        [*launch, "-m", "pipeline.cli", "distill", str(recipe_file), "--out", str(tmp_path / "two")],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for stage in ("prepare", "finetune", "distill"):
        assert done.stderr.count(f"{stage:<9} ...") == 1
    run = Run(load_recipe(recipe_file), tmp_path / "one")
    run.run_up_to("distill")
    assert not list((tmp_path / "two" / ".work").iterdir())
    for stage in ("teacher", "student"):
        one, two = (
            json.loads((tmp_path / out / stage / "losses.json").read_text())["losses"] for out in ("one", "two")
        )
        assert len(one) == 13  # 101 examples: the last batch holds 5
        assert two == pytest.approx(one, abs=1e-4)
        one, two = (load_file(tmp_path / out / stage / "model.safetensors") for out in ("one", "two"))
        # Adam takes whole steps, of the learning rate, along gradients that are rounding alone: a softmax does not change with what is added to
        # all of its scores, as the key's bias is and that of a pooling query.
        assert all(
            (one[name] - two[name]).abs().mean() < 1e-5 for name in one if not name.endswith(("qkv.bias", "score.bias"))
        )
    # What the two made stands for one process, too: nothing is trained again.
    again = Run(load_recipe(recipe_file), tmp_path / "two")
    assert all(
        again.workspace.is_done(folder, again.stage_key(name))
        for name, folder in (("finetune", "teacher"), ("distill", "student"))
    )


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("data.train=none.tsv", "none.tsv"),  # fails on the main process, which alone reads data
        ("teacher.training.head_learning_rate=1e38", "the last good checkpoint|no checkpoint"),  # fails on both
    ],
)
def test_a_failure_is_one_line_of_one_process(recipe_file, tmp_path, setting, line):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "finetune", str(recipe_file), "--out", str(tmp_path / "out"), "--set", setting],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env=environment(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=200)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [2, 2]
    errors = [text for text in "".join(said).splitlines() if text.startswith("error: ")]
    assert len(errors) == 1 and any(part in errors[0] for part in line.split("|")), said
    assert "Traceback" not in "".join(said)
    assert not said[1]


def test_answering_does_not_load_the_engine(tiny_classifier):
    """accelerate is for training; a prediction is not to wait for its import."""
    code = """
import sys
from pipeline import cli
sys.argv = sys.argv[1:]
try:
    cli.main()
except SystemExit as stopped:
    assert not stopped.code
print("accelerate" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "pocketbert", "predict", str(tiny_classifier.path), "--text", "bada dela."],
        cwd=ROOT, env=environment(PYTHONPATH=ROOT), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
