"""The caller owns the outputs of a `.pte` file's methods, and running a method starts no threads of torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.export.executorch import export_program, lower, write_pte
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.runtime.programs import MethodFile
from pipeline.support.quiet import quiet_logging

ROOT = Path(__file__).parents[2]
WIDTH, MAX_LENGTH = 128, 512  # 65,536 numbers: torch copies that many with several threads


@pytest.fixture(scope="module")
def embedding(tmp_path_factory) -> Path:
    config = EncoderConfig(
        vocab_size=100, hidden_size=WIDTH, layers=1, heads=2, intermediate_size=WIDTH, max_positions=MAX_LENGTH
    )
    programs = Programs.of(ExitModel("classification", config, 2, "linear", (1,)).eval())
    path = tmp_path_factory.mktemp("embedding") / "embedding.pte"
    with quiet_logging():
        write_pte({"embed": lower(export_program(programs.embed, programs, MAX_LENGTH))}, path)
    return path


@pytest.mark.parametrize("length", [2, MAX_LENGTH])
def test_outputs_outlive_the_next_run(embedding, length):
    file = MethodFile(embedding, threads=1)
    file.load("embed")
    (first,) = file.run("embed", [torch.full((1, length), 7)])
    before = first.clone()
    (second,) = file.run("embed", [torch.full((1, length), 8)])
    assert torch.equal(first, before) and not torch.equal(first, second)


RUN_AND_COUNT = """
import os, sys, torch
from pathlib import Path
from pipeline.runtime.programs import MethodFile
file, ids = MethodFile(Path(sys.argv[1]), threads=1), torch.full((1, int(sys.argv[2])), 7)
file.load("embed")
before = len(os.listdir("/proc/self/task"))
(hidden,) = file.run("embed", [ids])
print(before, len(os.listdir("/proc/self/task")))
hidden.clone()
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_a_run_starts_no_threads_of_torch(embedding):
    """Such threads would spin on the cores that ExecuTorch's threads need. A copy by torch itself does start some."""
    command = [sys.executable, "-c", RUN_AND_COUNT, str(embedding), str(MAX_LENGTH)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    before, after, copied = (int(number) for number in done.stdout.split())
    assert before == after
    assert copied > after, "torch now copies this much on one thread, so the test proves nothing"
