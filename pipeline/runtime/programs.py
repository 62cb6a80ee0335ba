"""The methods of a `.pte` file, run by ExecuTorch on this computer."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from pipeline.support.errors import UserError
from pipeline.support.quiet import quiet_stderr

# From so many numbers on torch copies with threads of its own (at::internal::GRAIN_SIZE). They then wait for more work in a loop, on the cores
# that ExecuTorch's threads need next.
COPIED_BY_THREADS = 32768


def binding() -> ModuleType:
    """ExecuTorch's C++ runtime, imported on the first call. Raises UserError where it cannot be.

    Not by its public door: `executorch.runtime` imports the whole exporter for the sake of one warning class, 3 s and 130 MiB that a
    runner has no use for. It is the same library; `torch`, which it links against, has to be loaded before it, as it is above.
    """
    try:
        return importlib.import_module("executorch.extension.pybindings._portable_lib")
    except ImportError as error:
        raise UserError(
            f"ExecuTorch's runtime cannot be loaded ({error}); run: pip install executorch==1.4.1"
        ) from None


class MethodFile:
    """A `.pte` whose methods are loaded one by one, each by `load`.

    Args:
        path: the file.
        threads: of ExecuTorch's thread pool, which the whole process shares; None leaves it at the number of physical cores.

    Raises:
        UserError: the file is missing or no ExecuTorch program, or `threads` is less than 1.
    """

    def __init__(self, path: Path, threads: int | None = None):
        if threads is not None and threads < 1:
            raise UserError(f"{threads} cannot run anything; give at least 1", field="threads")
        self.path = path
        self._methods: dict[str, object] = {}
        self._growth: dict[str, float] = {}  # of a method's largest output, in numbers, with the first input
        # The first look at the processor prints what it found on stderr.
        with quiet_stderr():
            runtime = binding()
            if threads is not None:
                runtime._unsafe_reset_threadpool(threads)
            self.threads = int(runtime._threadpool_get_thread_count())
            try:
                self._program = runtime._load_program(str(path))
            except RuntimeError as error:
                raise self._not_loaded(error) from None
        names = (self._program.get_method_name(index) for index in range(self._program.num_methods()))
        self.method_names = frozenset(names)

    @property
    def loaded(self) -> frozenset[str]:
        """The methods that are loaded."""
        return frozenset(self._methods)

    def load(self, name: str, inputs: int | None = None, outputs: int | None = None) -> None:
        """Loads a method, if it is not loaded.

        Args:
            inputs, outputs: how many the method should have, where the caller knows.

        Raises:
            UserError: the file has no such method, the method other numbers of inputs or outputs, or it cannot be loaded.
        """
        if name in self._methods:
            return
        if name not in self.method_names:
            raise UserError(
                f"has no method {name!r}; the file belongs to another bundle: export it again", file=self.path
            )
        meta = self._program.method_meta(name)
        for side, wanted, given in (("inputs", inputs, meta.num_inputs()), ("outputs", outputs, meta.num_outputs())):
            if wanted is not None and wanted != given:
                raise UserError(
                    f"has {given} {side}, the manifest says {wanted}; the file belongs to another bundle: export it again",
                    file=self.path,
                    field=name,
                )
        largest = max((prod(meta.output_tensor_meta(index).sizes()) for index in range(meta.num_outputs())), default=0)
        self._growth[name] = largest / prod(meta.input_tensor_meta(0).sizes()) if meta.num_inputs() else float("inf")
        with quiet_stderr():
            try:
                self._methods[name] = self._program.load_method(name)
            except RuntimeError as error:
                raise self._not_loaded(error, name) from None

    def run(self, name: str, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs a loaded method. The outputs are the caller's own, the next run leaves them alone."""
        inputs = list(inputs)
        # The binding's own copies are quicker where they are small: 4 % of MiniLM's layers at 25 tokens.
        if inputs and inputs[0].numel() * self._growth[name] < COPIED_BY_THREADS:
            return self._methods[name](inputs)
        outputs = self._methods[name](inputs, clone_outputs=False)
        return [torch.from_numpy(output.numpy().copy()) for output in outputs]

    def _not_loaded(self, error: RuntimeError, method: str | None = None) -> UserError:
        reason = str(error).strip().splitlines()[0][:200]
        return UserError(
            f"ExecuTorch cannot load it ({reason}); export the bundle again with this version",
            file=self.path,
            field=method,
        )


def as_tensor(values, dtype: str) -> Tensor:
    """An array as a tensor of the manifest's dtype."""
    return torch.as_tensor(values, dtype=getattr(torch, dtype))
