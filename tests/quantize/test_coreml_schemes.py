"""Core ML's schemes take the bytes that are accounted, and round no worse than coremltools' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.schemes import COREML_SCHEMES, palette_count
from pipeline.support.quiet import import_quietly
from quantize.coreml_schemes import Affine, Palette, compress, decompressed, stored_bytes

SHAPES = [(64, 96), (48, 64, 1, 1), (30, 128), (37, 96), (50, 100), (96, 32, 1, 4)]
SMALL = [(2, 512), (2048,), (1, 4096), (1, 2100, 1, 1)]


def random_weight(*shape: int) -> torch.Tensor:
    """Returns normally distributed values with a few outliers, as in trained weights."""
    random = torch.Generator().manual_seed(len(shape) + shape[0])
    return torch.randn(shape, generator=random).pow(3) * 0.05


def squared_error(weight: torch.Tensor, value) -> float:
    return float(np.square(decompressed(value) - weight.numpy()).mean())


@pytest.mark.parametrize("scheme", COREML_SCHEMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_matrix_takes_the_bytes_that_are_accounted(scheme, shape):
    value = compress(random_weight(*shape), scheme)
    assert (value.nbytes if isinstance(value, np.ndarray) else value.bytes) == stored_bytes(shape, scheme)
    assert decompressed(value).shape == shape and decompressed(value).dtype == np.float32


@pytest.mark.parametrize("scheme", [*COREML_SCHEMES, "fp32"])
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_small_weights_and_vectors_stay_floats(scheme, shape):
    weight = random_weight(*shape)
    expected = weight.numpy().astype(np.float32 if scheme == "fp32" else np.float16)
    np.testing.assert_array_equal(compress(weight, scheme), expected)
    assert compress(weight, scheme).nbytes == stored_bytes(shape, scheme)


def test_float16_of_a_matrix_is_numpys():
    weight = random_weight(64, 96)
    np.testing.assert_array_equal(
        decompressed(compress(weight, "fp16")), weight.numpy().astype(np.float16).astype(np.float32)
    )


@pytest.mark.parametrize(("scheme", "bits", "block"), [("int8", 8, 96), ("int4", 4, 32)])
def test_integers_are_no_worse_than_coremltools(scheme, bits, block):
    import_quietly("coremltools")
    from coremltools.optimize._utils import compute_qparams

    weight = random_weight(64, 96).half().float()
    value = compress(weight, scheme)
    assert isinstance(value, Affine) and value.bits == bits and value.scale.shape == (64, 96 // block)
    assert value.data.dtype == np.int8 and np.abs(value.data.astype(int)).max() <= 2 ** (bits - 1) - 1
    np.testing.assert_allclose(  # computed block by block
        decompressed(value).reshape(64, -1, block),
        value.data.reshape(64, -1, block) * value.scale[..., None].astype(np.float32),
        rtol=1e-3,
        atol=1e-7,
    )
    data, scale, _ = compute_qparams(weight.numpy(), bits, True, "LINEAR_SYMMETRIC", np.int8, [1, block])
    coremltools_weight = (data.reshape(64, -1, block) * scale[..., None]).reshape(64, 96)
    assert squared_error(weight, value) <= 1.01 * float(np.square(coremltools_weight - weight.numpy()).mean())


def test_inputs_that_are_not_whole_blocks_become_int8():
    value = compress(random_weight(50, 100), "int4")
    assert value.bits == 8 and value.scale.shape == (50, 1)


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize(
    ("spread", "times"), [("normal", 1.05), ("uniform", 1.05), ("half zeros", 1.2), ("heavy", 1.4)]
)
def test_a_palette_is_close_to_the_best_possible(bits, spread, times):
    """Against coremltools' k-means, which finds the optimum in one dimension."""
    import_quietly("coremltools")
    from coremltools.models.neural_network.quantization_utils import _get_kmeans_lookup_table_and_weight

    random = torch.Generator().manual_seed(1)
    weight = torch.randn((64, 96), generator=random) * 0.05
    weight = {
        "normal": weight,
        "uniform": torch.rand((64, 96), generator=random),
        "heavy": weight.pow(3),
        "half zeros": weight.relu(),
    }[spread]
    weight = weight.half().float()
    value = compress(weight, f"palette{bits}-per-tensor")
    assert (
        isinstance(value, Palette)
        and value.table.shape == (1, 2**bits)
        and (np.diff(value.table.astype(float)) >= 0).all()
    )
    table, indices = _get_kmeans_lookup_table_and_weight(bits, weight.numpy().ravel(), force_kmeans1d=True)
    best = float(np.square(table[indices].ravel() - weight.numpy().ravel()).mean())
    assert squared_error(weight, value) <= times * best


def test_every_group_of_outputs_has_its_own_palette():
    weight = random_weight(64, 96) * torch.logspace(-2, 2, 4).repeat_interleave(16)[:, None]
    value = compress(weight, "palette4")
    assert value.table.shape == (4, 16)
    rows = value.table[np.repeat(np.arange(4), 16)[:, None], value.indices].astype(np.float32)
    np.testing.assert_array_equal(decompressed(value), rows)
    assert squared_error(weight[:16], rows[:16]) < 0.1 * squared_error(
        weight[:16], decompressed(compress(weight, "palette4-per-tensor"))[:16]
    )
    nearest = np.abs(
        weight.half().float().numpy()[..., None] - value.table.astype(np.float32)[np.repeat(np.arange(4), 16)][:, None]
    ).min(-1)
    np.testing.assert_allclose(np.abs(rows - weight.half().float().numpy()), nearest, atol=1e-6)


def test_palettes_divide_the_outputs_evenly():
    assert [palette_count(outputs) for outputs in (768, 30522, 7, 8, 30529)] == [48, 5087, 1, 1, 1]


@pytest.mark.parametrize("scheme", COREML_SCHEMES)
def test_zeros_stay_zeros(scheme):
    weight = random_weight(64, 96)
    weight[3], weight[5, 32:64], weight[16:32] = 0.0, 0.0, 0.0
    stored = decompressed(compress(weight, scheme))
    assert np.isfinite(stored).all()
    if not scheme.endswith("per-tensor"):
        np.testing.assert_array_equal(stored[16:32], 0.0)
