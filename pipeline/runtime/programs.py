"""Runs the methods of a `.pte` file in ExecuTorch on this computer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from pipeline.support.errors import UserError
from pipeline.support.quiet import quiet_stderr

# torch copies this many numbers or more with threads of its own (at::internal::GRAIN_SIZE). They then spin while they
# wait for more work, on the cores that ExecuTorch's threads need next.
MIN_NUMBERS_COPIED_BY_THREADS = 32768


def binding() -> ModuleType:
    """Returns ExecuTorch's C++ runtime, imported on the first call.

    This is not the public module: `executorch.runtime` imports the whole exporter for one warning class, which costs
    3 s and 130 MiB. The library is the same. It links against `torch`, which has to be imported first, as above.

    Raises:
        UserError: the runtime cannot be imported.
    """
    try:
        return importlib.import_module("executorch.extension.pybindings._C")
    except ImportError as error:
        raise UserError(
            f"ExecuTorch's runtime cannot be loaded ({error}); run: pip install executorch==1.5.1"
        ) from None


def installed_executorch() -> str | None:
    """Returns the version of the installed ExecuTorch, or None where the package has no metadata."""
    try:
        return version("executorch")
    except PackageNotFoundError:
        return None


class MethodFile:
    """A `.pte` file whose methods are loaded one by one, each by `load`.

    Args:
        path: the file.
        threads: the size of ExecuTorch's thread pool, which the whole process shares. None keeps the number of physical
            cores.

    Raises:
        UserError: the file is missing, it is not an ExecuTorch program, or `threads` is less than 1.
    """

    def __init__(self, path: Path, threads: int | None = None):
        if threads is not None and threads < 1:
            raise UserError(f"{threads} cannot run anything; give at least 1", field="threads")
        self.path = path
        self._methods: dict[str, Callable[..., Sequence[Tensor]]] = {}
        # The size of a method's largest output as a multiple of the size of its first input.
        self._growth: dict[str, float] = {}
        # The runtime prints what it finds out about the processor on stderr, the first time it looks.
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
        """The names of the methods that are loaded."""
        return frozenset(self._methods)

    def load(self, name: str, inputs: int | None = None, outputs: int | None = None) -> None:
        """Loads a method, unless it is loaded already.

        Args:
            name: the method.
            inputs, outputs: how many the method should have, where the caller knows.

        Raises:
            UserError: the file has no such method, the method has another number of inputs or outputs, or it cannot be
                loaded.
        """
        if name in self._methods:
            return
        if name not in self.method_names:
            raise UserError(
                f"has no method {name!r}; the file belongs to another bundle: export it again", file=self.path
            )
        meta = self._program.method_meta(name)
        for side, expected, actual in (
            ("inputs", inputs, meta.num_inputs()),
            ("outputs", outputs, meta.num_outputs()),
        ):
            if expected is not None and expected != actual:
                raise UserError(
                    f"has {actual} {side}, the manifest says {expected}; "
                    "the file belongs to another bundle: export it again",
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
        """Runs a loaded method. The caller owns the outputs: the next run does not change them."""
        inputs = list(inputs)
        # The binding copies small outputs faster: 4 % of the time of MiniLM's layers at 25 tokens.
        if inputs and inputs[0].numel() * self._growth[name] < MIN_NUMBERS_COPIED_BY_THREADS:
            return list(self._methods[name](inputs))
        outputs = self._methods[name](inputs, clone_outputs=False)
        return [torch.from_numpy(output.numpy().copy()) for output in outputs]

    def _not_loaded(self, error: RuntimeError, method: str | None = None) -> UserError:
        reason = str(error).strip().splitlines()[0][:200]
        return UserError(
            f"ExecuTorch cannot load it ({reason}); export the bundle again with this version",
            file=self.path,
            field=method,
        )


def as_tensor(values: np.ndarray, dtype: str) -> Tensor:
    """Returns an array as a tensor of a dtype that the manifest names."""
    return torch.as_tensor(values, dtype=getattr(torch, dtype))
