"""The process that one benchmarked system has to itself: JSON lines in, JSON lines out.

    python -m pipeline.bench.runtimes.worker SYSTEM SOURCE --threads N --bundle BUNDLE

    {"do": "load", "length": L, "depth": D}      -> {"load_ms", "threads"}
    {"do": "answer", "length": L, "depth": D}    -> {"answer": [numbers]}
    {"do": "run", "length": L, "depth": D}       -> {"ms"}
    {"do": "memory"}                             -> {"baseline_bytes", "peak_bytes"}

A process of its own, because load time and peak memory are those of a process. It imports the system's runtime and no more. The bundle's
manifest says what the inputs are: the same ids for every system.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pipeline.bundle.manifest import Manifest, Program, read_manifest
from pipeline.runtime.programs import MethodFile, binding
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

METHOD = "forward"  # of a file that is no bundle
# A core that has waited for its turn is up to 2.4 times slower for its first 20 ms, and weights that others' turns have put out of the caches come
# back over several runs. So whoever has waited runs for a while untimed.
WAITED_SECONDS, WARM_UP_SECONDS = 0.01, 0.1
SEED = 0

# One run; returns the answer: logits, or start and end.
Run = Callable[[], Sequence]


class System(Protocol):
    """What is measured. Making one imports its runtime; `load` opens the program; `prepare` makes the inputs of a run.

    Attributes:
        threads: that a loaded system runs on.
    """

    threads: int

    def __init__(self, source: Path, threads: int, manifest: Manifest): ...

    def load(self) -> None: ...

    def prepare(self, length: int, depth: int) -> Run: ...


def random_ids(vocabulary: int, length: int) -> Tensor:
    """Valid ids, int64 [1, length], the same each time."""
    return torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(SEED))


class BundlePrograms:
    """A bundle's embedding and segments."""

    def __init__(self, bundle: Path, threads: int, manifest: Manifest):
        binding()
        self.bundle, self.threads, self.manifest = bundle, threads, manifest
        self.programs = [manifest.program("embed")]
        self.programs += [manifest.program(f"segment_{index}") for index in range(manifest.segments)]

    def load(self) -> None:
        self.file = MethodFile(self.bundle / self.programs[0].file, self.threads)
        self.threads = self.file.threads
        for program in self.programs:
            self.file.load(program.method)

    def prepare(self, length: int, depth: int) -> Run:
        """A run over `depth` segments on `length` random ids; all of the inputs that are not computed on the way are made here."""
        embed, *segments = self.programs
        fixed = [self.inputs(program, length) for program in (embed, *segments[:depth])]
        answers = len(get_task(self.manifest.task).exit_outputs)

        def run() -> list[Tensor]:
            outputs = self.file.run(embed.method, fixed[0])
            for program, inputs in zip(segments[:depth], fixed[1:]):
                outputs = self.file.run(program.method, [outputs[0] if each is None else each for each in inputs])
            return outputs[1 : 1 + answers]

        return run

    def inputs(self, program: Program, length: int) -> list[Tensor | None]:
        """An input for each that the manifest lists; None for the hidden states of the program before. A bias of 0 keeps a token."""
        made: list[Tensor | None] = []
        for tensor in program.inputs:
            shape = [length if size == "length" else size for size in tensor.shape]
            if tensor.name == "hidden":
                made.append(None)
            elif tensor.name == "input_ids":
                made.append(random_ids(self.manifest.model.vocab_size, length).to(getattr(torch, tensor.dtype)))
            else:
                made.append(torch.zeros(shape, dtype=getattr(torch, tensor.dtype)))
        return made


class Monolithic:
    """The bundle's programs as one, see `pipeline.model.segments.Monolith`. It always runs to its end."""

    def __init__(self, source: Path, threads: int, manifest: Manifest):
        binding()
        self.source, self.threads, self.manifest = source, threads, manifest

    def load(self) -> None:
        self.file = MethodFile(self.source, self.threads)
        self.threads = self.file.threads
        self.file.load(METHOD)

    def prepare(self, length: int, depth: int) -> Run:
        task = get_task(self.manifest.task)
        inputs = [random_ids(self.manifest.model.vocab_size, length), torch.zeros(1, 1, length)]
        if task.uses_answer_mask:
            inputs.append(torch.zeros(1, length))
        answers, unsure = len(task.exit_outputs), int(task.measures_uncertainty)

        def run() -> list[Tensor]:
            outputs = self.file.run(METHOD, inputs)
            end = len(outputs) - unsure
            return outputs[end - answers : end]

        return run


class PlainProgram:
    """A `.pte` with one method that takes ids and a mask."""

    def __init__(self, source: Path, threads: int, manifest: Manifest):
        binding()
        self.source, self.threads, self.vocabulary = source, threads, manifest.model.vocab_size

    def load(self) -> None:
        self.file = MethodFile(self.source, self.threads)
        self.threads = self.file.threads
        self.file.load(METHOD)

    def prepare(self, length: int, depth: int) -> Run:
        """One run, at a length that the program takes; there is only one depth."""
        inputs = [random_ids(self.vocabulary, length), torch.ones(1, length, dtype=torch.int64)]
        return lambda: self.file.run(METHOD, inputs)


class Reference(PlainProgram):
    """A model of another vocabulary than the bundle's, see `pipeline.bench.reference`."""

    VOCABULARY = (
        1000  # ids below it are valid in every vocabulary of BERT's; which ids they are does not change the work
    )

    def __init__(self, source: Path, threads: int, manifest: Manifest):
        super().__init__(source, threads, manifest)
        self.vocabulary = self.VOCABULARY


class OnnxModel:
    """An `.onnx` in ONNX Runtime's CPU provider, at its default optimization level."""

    def __init__(self, source: Path, threads: int, manifest: Manifest):
        import onnxruntime

        self.runtime = onnxruntime
        self.source, self.threads, self.vocabulary = source, threads, manifest.model.vocab_size

    def load(self) -> None:
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        self.session = self.runtime.InferenceSession(str(self.source), options, providers=["CPUExecutionProvider"])

    def prepare(self, length: int, depth: int) -> Run:
        ids = random_ids(self.vocabulary, length)
        inputs = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
        return lambda: self.session.run(None, inputs)


class LiteRtModel:
    """A `.tflite` of one length in LiteRT's interpreter, with its XNNPACK delegate."""

    def __init__(self, source: Path, threads: int, manifest: Manifest):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter
        self.source, self.threads, self.vocabulary = source, threads, manifest.model.vocab_size

    def load(self) -> None:
        self.runner = self.interpreter(str(self.source), num_threads=self.threads).get_signature_runner()

    def prepare(self, length: int, depth: int) -> Run:
        ids = random_ids(self.vocabulary, length).to(torch.int32)
        inputs = {"args_0": ids.numpy(), "args_1": torch.ones_like(ids).numpy()}
        return lambda: [output for _, output in sorted(self.runner(**inputs).items())]


class TorchModel:
    """A `PlainModel` from the weights' folder, in PyTorch as it is."""

    def __init__(self, source: Path, threads: int, manifest: Manifest):
        from pipeline.bench.runtimes.plain import PlainModel
        from pipeline.support.quiet import import_quietly

        import_quietly("transformers").DistilBertModel  # noqa: B018 - transformers imports a model's code when it is first asked for
        self.model_class = PlainModel
        self.source, self.threads, self.vocabulary = source, threads, manifest.model.vocab_size

    def load(self) -> None:
        torch.set_num_threads(self.threads)
        self.model = self.model_class.load(self.source)

    def prepare(self, length: int, depth: int) -> Run:
        ids = random_ids(self.vocabulary, length)
        mask = torch.ones_like(ids)

        def run() -> Sequence[Tensor]:
            with torch.inference_mode():
                return self.model(ids, mask)

        return run


class CompiledModel(TorchModel):
    """The same, compiled once for every length. Its load is a compilation, unless PyTorch has the kernels from an earlier one."""

    BACKEND = "inductor"

    def load(self) -> None:
        super().load()
        self.model = torch.compile(self.model, dynamic=True, backend=self.BACKEND)


SYSTEMS: dict[str, type[System]] = {
    "pocketbert": BundlePrograms,
    "pocketbert-monolithic": Monolithic,
    "bert-base": Reference,
    "executorch-plain": PlainProgram,
    "onnxruntime-fp32": OnnxModel,
    "onnxruntime-int8": OnnxModel,
    "litert-int8": LiteRtModel,
    "torch-eager": TorchModel,
    "torch-compile": CompiledModel,
}


def peak_memory() -> int:
    """Bytes: the greatest resident set of this process so far, or since `forget_peak` where that is known."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Lets the peak start from what is held now: imports need more for a moment than they keep. Only Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


class Worker:
    """Answers requests. The program is loaded on the one that asks for it."""

    def __init__(self, system: System):
        self.system = system
        self.runs: dict[tuple[int, int], Run] = {}
        self.baseline = 0
        self.ended = float("-inf")  # the last timed run

    def work(self, length: int, depth: int) -> Run:
        """The run at that length and depth, its inputs made once."""
        if (length, depth) not in self.runs:
            self.runs[length, depth] = self.system.prepare(length, depth)
        return self.runs[length, depth]

    def load(self, length: int, depth: int) -> dict:
        """Opens the program and runs it once: what an app waits for before its first answer."""
        forget_peak()
        self.baseline = peak_memory()
        started = time.perf_counter()
        self.system.load()
        self.work(length, depth)()
        return {"load_ms": (time.perf_counter() - started) * 1000.0, "threads": self.system.threads}

    def answer(self, length: int, depth: int) -> dict:
        outputs = self.work(length, depth)()
        return {"answer": [value for output in outputs for value in torch.as_tensor(output).flatten().tolist()]}

    def run(self, length: int, depth: int) -> dict:
        """One timed run, after one that is not, or after `WARM_UP_SECONDS` of them if others have had their turns since the last."""
        work = self.work(length, depth)
        began = time.perf_counter()
        until = began + (WARM_UP_SECONDS if began - self.ended > WAITED_SECONDS else 0.0)
        work()
        while time.perf_counter() < until:
            work()
        started = time.perf_counter()
        work()
        self.ended = time.perf_counter()
        return {"ms": (self.ended - started) * 1000.0}

    def memory(self) -> dict:
        return {"baseline_bytes": self.baseline, "peak_bytes": peak_memory()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("source", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    arguments = parser.parse_args()
    # Native libraries print to the process' standard output, which is the channel: keep it, and give them stderr instead.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    gc.disable()  # as timeit does: an app has no collector, and going through all of torch's objects takes longer than a short run
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if worker is None:
                manifest = read_manifest(arguments.bundle, check_files=False)
                worker = Worker(SYSTEMS[arguments.system](arguments.source, arguments.threads, manifest))
            answer = getattr(worker, request.pop("do"))(**request)
        except UserError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=channel)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
