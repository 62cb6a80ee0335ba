"""Converts the structure of a program to Core ML once, and fills in the weights of every module like it.

Converting takes seconds, whatever the weights are, and the segments of a model differ only in their weights. So a
structure is converted with random weights. They are found again in the program's constants, which tells where each
weight went. Then every module's own weights take their places, in the form in which a scheme stores them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.bundle import manifest
from pipeline.support.quiet import import_quietly, quiet_logging, quiet_stderr
from quantize.coreml_schemes import Affine, Compressed
from quantize.int8_inputs import STEP

Weight = Compressed | np.ndarray

# coremltools has no types.
MilFunction = Any  # coremltools.converters.mil.mil.Function
Operation = Any  # coremltools.converters.mil.mil.Operation
Variable = Any  # coremltools.converters.mil.mil.Var
FloatType = type[np.float16] | type[np.float32]


@dataclass
class Place:
    """A place of a weight in a program; `variable` holds it at the moment."""

    weight: str
    shape: tuple[int, ...]
    variable: Variable


class Structure:
    """The Core ML function of one length, and the places of the weights in it.

    Args:
        module: its parameters and buffers are overwritten.
        inputs: an example of each.
        outputs: in the module's order.
        target: the oldest system that must run it, a name in `coremltools.target` ("iOS18").
        half: whether to compute in float16, otherwise in float32.
        rounded: the weights whose products with activations are rounded to int8, see `quantize.int8_inputs`. The module
            must not round them itself.

    Raises:
        RuntimeError: the converter changed a weight, so that it cannot be found again (perhaps a newer coremltools).
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        outputs: Sequence[manifest.TensorSpec],
        target: str,
        half: bool,
        rounded: Collection[str] = (),
    ):
        ct = import_quietly("coremltools")
        self.target = target
        self.dtype: FloatType = np.float16 if half else np.float32
        names = fill_with_marks(module)
        with quiet_stderr(), quiet_logging():
            exported = torch.export.export(module.eval(), inputs).run_decompositions({})
            model = ct.convert(
                exported,
                outputs=[ct.TensorType(name=output.name, dtype=np.dtype(output.dtype).type) for output in outputs],
                convert_to="mlprogram",
                minimum_deployment_target=ct.target[target],
                compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
                skip_model_load=True,
            )
        self.function: MilFunction = model._mil_program.functions["main"]
        minimize_epsilons(self.function, self.dtype)
        self.places = find_marks(self.function, names)
        round_products(self.function, [place for place in self.places if place.weight in rounded], self.dtype)

    def fill(self, weights: Mapping[str, Weight]) -> None:
        """Puts weights in their places. They are named as the module's parameters and buffers."""
        with quiet_logging():
            for index, place in enumerate(self.places):
                name = f"{place.weight.replace('.', '_')}_in_{index}"
                put_weight(self.function, place, weights[place.weight], name, self.target, self.dtype)


def minimize_epsilons(function: MilFunction, dtype: FloatType) -> None:
    """Lowers the epsilon of batch norms that stand for a scale and an offset.

    The converter gives these a variance of 1 and its default epsilon, 1e-5, so the results are 5e-6 too small. That is
    nothing to float16. But the program then differs from its model by 106 dB, and an altered weight makes hardly more
    noise. Half precision's smallest number vanishes in a sum with 1.
    """
    from coremltools.converters.mil.mil import Builder

    norms = [
        operation
        for operation in function.operations
        if operation.op_type == "batch_norm" and np.all(operation.variance.val == 1)
    ]
    for norm in norms:
        with function:
            smallest = dtype(np.finfo(np.float16).smallest_subnormal)
            epsilon = Builder.const(val=smallest, name=f"{norm.name}_epsilon_least", before_op=norm)
            epsilon.op.scopes.update(norm.scopes)
            replaced = norm.epsilon
            norm.set_inputs(epsilon=epsilon, type_inference=False)
            if not replaced.child_ops:
                function.remove_ops([replaced.op])


@torch.no_grad()
def fill_with_marks(module: nn.Module) -> dict[bytes, str]:
    """Fills a module with random weights, no two alike and exact in float16, and returns their names by value."""
    random, names = torch.Generator().manual_seed(0), {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            tensor.copy_((torch.rand(tensor.shape, generator=random) + 0.5).to(torch.float16))
            names[mark_of(tensor.numpy())] = name
    return names


def mark_of(value: np.ndarray) -> bytes:
    """Returns what identifies a weight, whatever its shape and precision."""
    with np.errstate(over="ignore"):  # a number beyond float16 is no mark, since marks lie between 0.5 and 1.5
        return value.astype(np.float16).tobytes()


def find_marks(function: MilFunction, names: Mapping[bytes, str]) -> list[Place]:
    """Returns the places of the marked weights in a converted function.

    An array that is not a mark and has different values was made from a weight, and would be wrong when that weight
    changes. The converter's own arrays, such as a batch norm's mean of zeros, have equal values.

    Raises:
        RuntimeError: there is such an array.
    """
    places = []
    for operation in function.operations:
        value = operation.outputs[0].val if operation.op_type == "const" else None
        if not isinstance(value, (np.ndarray, np.floating)) or np.asarray(value).dtype.kind != "f":
            continue
        name = names.get(mark_of(np.asarray(value)))
        if name is not None:
            places.append(Place(name, np.shape(value), operation.outputs[0]))
        elif np.size(value) > 1 and np.ptp(value) > 0:
            raise RuntimeError(
                f"the converter made {operation.name} of a weight; this version of coremltools is not supported"
            )
    return places


def round_products(function: MilFunction, places: Sequence[Place], dtype: FloatType) -> None:
    """Adds `quantize` and `dequantize`, operators of iOS 17, after the products with the weights in these places.

    This follows the converter's passes, which would move or merge them. The scale is `STEP`, and there is no zero
    point.
    """
    from coremltools.converters.mil.mil import Builder

    for place in places:
        (product,) = place.variable.child_ops
        operations = list(function.operations)
        following = operations[operations.index(product) + 1]
        with function:
            quantized = Builder.quantize(
                input=product.outputs[0],
                scale=dtype(STEP),
                output_dtype="int8",
                name=f"{product.name}_int8",
                before_op=following,
            )
            dequantized = Builder.dequantize(
                input=quantized, scale=dtype(STEP), name=f"{product.name}_from_int8", before_op=following
            )
            function.replace_uses_of_var_after_op(
                anchor_op=dequantized.op, old_var=product.outputs[0], new_var=dequantized
            )
            for variable in (quantized, dequantized):
                copy_scopes(product, variable.op)


def put_weight(function: MilFunction, place: Place, weight: Weight, name: str, target: str, dtype: FloatType) -> None:
    """Replaces the weight in a place, by an operator of that name."""
    old = place.variable.op
    with function:
        place.variable = build_weight(weight, place, name, target, dtype, old)
        function.replace_uses_of_var_after_op(
            anchor_op=old, old_var=old.outputs[0], new_var=place.variable, no_check_var_types=True, force_replace=True
        )
        copy_scopes(old, place.variable.op)
        parts = parts_of(old).values()
        function.remove_ops([old])
        function.remove_ops(list(parts))


def copy_scopes(source: Operation, operation: Operation) -> None:
    """Copies where in the module an operation came from, which coremltools wants to know of every operation."""
    for target in (operation, *parts_of(operation).values()):
        target.scopes.update(source.scopes)


def parts_of(operation: Operation) -> dict[str, Operation]:
    """Returns the constants that an operation reads, by the names of its inputs; a constant itself reads none."""
    return {
        name: variable.op
        for name, variable in operation.inputs.items()
        if variable is not None and variable.op is not None
    }


def build_weight(weight: Weight, place: Place, name: str, target: str, dtype: FloatType, before: Operation) -> Variable:
    """Adds a weight in front of another operation, by the operator with which the target decompresses it.

    A package stores constants of the same `weight_id` only once.
    """
    from coremltools.converters.mil.mil import Builder, types
    from coremltools.optimize._utils import pack_elements_into_bits

    def integer_type(kind: str) -> Any:
        return types.nptype_from_builtin(types.string_to_builtin(kind))

    # A bucket has as many positions as its length; other weights have one shape in all buckets.
    shared = f"{place.weight} {place.shape}"
    if isinstance(weight, np.ndarray):
        variable = Builder.const(val=weight.astype(dtype).reshape(place.shape), name=name, before_op=before)
        variable.op.weight_id = shared
        return variable
    before_ios18 = target != "iOS18"  # iOS 18 replaced these operators by more general ones
    if isinstance(weight, Affine) and before_ios18:
        variable = Builder.constexpr_affine_dequantize(
            quantized_data=weight.data,
            scale=weight.scale.ravel(),
            zero_point=np.int8(0),
            axis=np.int32(0),
            name=name,
            before_op=before,
        )
    elif isinstance(weight, Affine):
        data = weight.data.astype(integer_type(f"int{weight.bits}"))
        variable = Builder.constexpr_blockwise_shift_scale(data=data, scale=weight.scale, name=name, before_op=before)
    elif before_ios18:
        variable = Builder.constexpr_lut_to_dense(
            indices=pack_elements_into_bits(weight.indices.ravel(), weight.bits),
            lut=weight.table.ravel(),
            shape=np.array(weight.indices.shape, dtype=np.uint32),
            name=name,
            before_op=before,
        )
    else:
        groups, values = weight.table.shape
        indices = weight.indices.astype(integer_type(f"uint{weight.bits}"))
        table = weight.table.reshape(groups, *[1] * (weight.indices.ndim - 1), values, 1)
        variable = Builder.constexpr_lut_to_dense(indices=indices, lut=table, name=name, before_op=before)
    for part_name, part in parts_of(variable.op).items():
        part.weight_id = f"{shared} {part_name}"
    return variable
