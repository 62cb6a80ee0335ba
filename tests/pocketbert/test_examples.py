"""The examples in the docstrings run, and give what they show, on real bundles."""

from __future__ import annotations

import doctest

import pytest

import pocketbert
from pipeline.runtime import runner
from pocketbert import functions

# Only ends a hang: no test here depends on how fast the machine is.
pytestmark = pytest.mark.timeout(3600)

EXAMPLES = [
    test
    for module in (functions, runner)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs={"pocketbert": pocketbert})
    if test.examples
]
PUBLIC = [getattr(pocketbert, name) for name in ("evaluate", "init", "load", "quantize", "run", "verify")]
METHODS = [
    getattr(runner.Runner, name)
    for name in ("classify", "classify_batch", "answer", "answer_batch", "estimate", "estimate_batch")
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_gives_what_it_shows(example, workplace, monkeypatch):
    monkeypatch.chdir(workplace.folder)
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE).run(
        example, out=said.append
    )
    assert result.attempted and not result.failed, "".join(said)


def test_every_function_has_an_example():
    shown = {example.name.rpartition(".")[2] for example in EXAMPLES}
    assert {function.__name__ for function in (*PUBLIC, *METHODS)} <= shown
