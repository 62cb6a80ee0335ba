"""Core ML programs by their structure: a module is converted once for each length, and takes the weights of all modules that are built alike.

Converting takes seconds, whatever the weights, and the segments of a model differ in their weights alone. So a structure is converted with
random weights, which tell where in the program each weight went: their values are found again in its constants. Then every module's own
weights take their places, in the form that a scheme stores them in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.bundle import manifest
from pipeline.support.quiet import import_quietly, quiet_logging, quiet_stderr
from quantize.coreml_schemes import Affine, Compressed, Palette
from quantize.int8_inputs import STEP

Weight = Compressed | np.ndarray


@dataclass
class StageFolder:
    """Where a program has a weight; `var` is the variable that holds it now."""

    weight: str
    shape: tuple[int, ...]
    var: object


class Structure:
    """The function of one length, and the places of the weights in it.

    Args:
        module: its parameters and buffers are overwritten.
        inputs: an example of each.
        outputs: in the module's order.
        target: the oldest system that must run it, a name in `coremltools.target` ("iOS18").
        half: compute in float16, not in float32.
        rounded: weights whose products with activations are rounded to int8, see `quantize.int8_inputs`; the module leaves it out.

    Raises:
        RuntimeError: the converter changed a weight, so that it cannot be found again (another version of coremltools, perhaps).
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
        self.target, self.dtype = target, np.float16 if half else np.float32
        names = scatter_marks(module)
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
        self.function = model._mil_program.functions["main"]
        take_out_epsilons(self.function, self.dtype)
        self.places = find_marks(self.function, names)
        round_products(self.function, [place for place in self.places if place.weight in rounded], self.dtype)

    def fill(self, weights: Mapping[str, Weight]) -> None:
        """Puts weights in their places, by the names of the module's parameters and buffers."""
        with quiet_logging():
            for at, place in enumerate(self.places):
                name = f"{place.weight.replace('.', '_')}_in_{at}"
                put(self.function, place, weights[place.weight], name, self.target, self.dtype)


def take_out_epsilons(function, dtype: type) -> None:
    """Makes batch norms that the converter made of a scale and an offset say no more than that.

    It gives them a variance of 1 and its default epsilon, 1e-5, which makes results smaller by 5e-6: nothing to float16, but 106 dB at which a
    program differs from its model, and an altered weight is not much louder. Half precision's least number does not show in a sum with 1.
    """
    from coremltools.converters.mil.mil import Builder

    for operation in [
        each for each in function.operations if each.op_type == "batch_norm" and np.all(each.variance.val == 1)
    ]:
        with function:
            least = dtype(np.finfo(np.float16).smallest_subnormal)
            epsilon = Builder.const(val=least, name=f"{operation.name}_epsilon_least", before_op=operation)
            epsilon.op.scopes.update(operation.scopes)
            before = operation.epsilon
            operation.set_inputs(epsilon=epsilon, type_inference=False)
            if not before.child_ops:
                function.remove_ops([before.op])


@torch.no_grad()
def scatter_marks(module: nn.Module) -> dict[bytes, str]:
    """Fills a module with random weights that float16 holds, no two alike, and gives the name of each by its value."""
    random, names = torch.Generator().manual_seed(0), {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            tensor.copy_((torch.rand(tensor.shape, generator=random) + 0.5).to(torch.float16))
            names[key_of(tensor.numpy())] = name
    return names


def key_of(value: np.ndarray) -> bytes:
    """What tells one weight from another, whatever its dimensions and its precision."""
    return value.astype(np.float16).tobytes()


def find_marks(function, names: Mapping[bytes, str]) -> list[StageFolder]:
    """The places of the marked weights in a converted function.

    An array that is no mark and has more than one value must be the converter's own, as a batch norm's mean of zeros is: else it was
    made from a weight, and would stay as it is when that weight changes.
    """
    places = []
    for operation in function.operations:
        value = operation.outputs[0].val if operation.op_type == "const" else None
        if not isinstance(value, (np.ndarray, np.floating)) or np.asarray(value).dtype.kind != "f":
            continue
        name = names.get(key_of(np.asarray(value)))
        if name is not None:
            places.append(StageFolder(name, np.shape(value), operation.outputs[0]))
        elif np.size(value) > 1 and np.ptp(value) > 0:
            raise RuntimeError(
                f"the converter made {operation.name} of a weight; this version of coremltools is not supported"
            )
    return places


def round_products(function, places: Sequence[StageFolder], dtype: type) -> None:
    """Puts `quantize` and `dequantize`, operators of iOS 17, behind the products with the weights in these places.

    After the converter's passes, which would move them or join them with others. The scale is `STEP`, and there is no zero point.
    """
    from coremltools.converters.mil.mil import Builder

    for place in places:
        (product,) = place.var.child_ops
        operations = list(function.operations)
        following = operations[operations.index(product) + 1]
        with function:
            whole = Builder.quantize(
                input=product.outputs[0],
                scale=dtype(STEP),
                output_dtype="int8",
                name=f"{product.name}_int8",
                before_op=following,
            )
            back = Builder.dequantize(
                input=whole, scale=dtype(STEP), name=f"{product.name}_from_int8", before_op=following
            )
            function.replace_uses_of_var_after_op(anchor_op=back.op, old_var=product.outputs[0], new_var=back)
            for operation in (whole.op, back.op, *parts_of(whole.op).values(), *parts_of(back.op).values()):
                operation.scopes.update(product.scopes)


def put(function, place: StageFolder, weight: Weight, name: str, target: str, dtype: type) -> None:
    """Replaces what is in a place, by an operator of that name."""
    old = place.var.op
    with function:
        place.var = build(weight, place, name, target, dtype, old)
        function.replace_uses_of_var_after_op(
            anchor_op=old, old_var=old.outputs[0], new_var=place.var, no_check_var_types=True, force_replace=True
        )
        for operation in (place.var.op, *parts_of(place.var.op).values()):
            operation.scopes.update(
                old.scopes
            )  # where in the module it came from, which coremltools asks every operator
        parts = parts_of(old).values()
        function.remove_ops([old])
        function.remove_ops(list(parts))


def parts_of(operation) -> dict[str, object]:
    """The constants that a weight is decompressed from, by their names in its operator; none of a constant itself."""
    return {name: var.op for name, var in operation.inputs.items() if var is not None and var.op is not None}


def build(weight: Weight, place: StageFolder, name: str, target: str, dtype: type, before):
    """A variable with the weight, made by the operator that the target decompresses it with, in front of another operator.

    Of constants with the same `weight_id`, a package holds one.
    """
    from coremltools.converters.mil.mil import Builder, types
    from coremltools.optimize._utils import pack_elements_into_bits

    old = target != "iOS18"  # operators that iOS 18 replaced by more general ones
    shared = f"{place.weight} {place.shape}"  # a bucket has as many positions as it is long, other weights have one shape in all
    if isinstance(weight, np.ndarray):
        var = Builder.const(val=weight.astype(dtype).reshape(place.shape), name=name, before_op=before)
        var.op.weight_id = shared
        return var
    if isinstance(weight, Affine):
        if old:
            options = {
                "quantized_data": weight.data,
                "scale": weight.scale.ravel(),
                "zero_point": np.int8(0),
                "axis": np.int32(0),
            }
            var = Builder.constexpr_affine_dequantize(**options, name=name, before_op=before)
        else:
            data = weight.data.astype(types.nptype_from_builtin(types.string_to_builtin(f"int{weight.bits}")))
            var = Builder.constexpr_blockwise_shift_scale(data=data, scale=weight.scale, name=name, before_op=before)
    elif isinstance(weight, Palette):
        if old:
            packed = pack_elements_into_bits(weight.indices.ravel(), weight.bits)
            options = {"indices": packed, "lut": weight.table.ravel(), "shape": np.uint32(weight.indices.shape)}
            var = Builder.constexpr_lut_to_dense(**options, name=name, before_op=before)
        else:
            groups, values = weight.table.shape
            indices = weight.indices.astype(types.nptype_from_builtin(types.string_to_builtin(f"uint{weight.bits}")))
            table = weight.table.reshape(groups, *[1] * (weight.indices.ndim - 1), values, 1)
            var = Builder.constexpr_lut_to_dense(indices=indices, lut=table, name=name, before_op=before)
    for name_of_part, part in parts_of(var.op).items():
        part.weight_id = f"{shared} {name_of_part}"
    return var


def save(functions: Mapping[str, Structure], package: Path) -> None:
    """Writes functions as one package, the weights that they share once; more than one, or one that is not `main`, needs iOS 18."""
    ct = import_quietly("coremltools")
    from coremltools.converters.mil.converter import mil_convert
    from coremltools.converters.mil.mil import Program

    program = Program()
    program.skip_all_passes = True  # conversion has run them
    for name, structure in functions.items():
        program.add_function(name, structure.function)
    program.default_function_name = next(iter(functions))
    program.export_as_multifunction = list(functions) != ["main"]
    (target,) = {structure.target for structure in functions.values()}
    with quiet_stderr(), quiet_logging():
        model = mil_convert(
            program,
            convert_from="milinternal",
            convert_to="mlprogram",
            compute_units=ct.ComputeUnit.ALL,
            specification_version=ct.target[target].value,
            skip_model_load=True,
        )
        model.save(str(package))
