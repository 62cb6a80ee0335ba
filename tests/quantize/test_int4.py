"""int4 scales lose less than the scale of the largest value, and keep weights that are whole steps already."""

from __future__ import annotations

import pytest
import torch

from pipeline.schemes import INT4_GROUP
from pipeline.support.quiet import import_quietly
from quantize.coreml_schemes import compress
from quantize.int4 import MAX_STEP, best_scales, nearest_steps
from quantize.schemes import int4_steps


def whole_steps(outputs: int, inputs: int, most: int) -> torch.Tensor:
    """Returns a weight in whole steps of random bfloat16 scales; every group has a value of `most` steps."""
    random = torch.Generator().manual_seed(most)
    steps = torch.randint(-most, most + 1, (outputs, inputs // INT4_GROUP, INT4_GROUP), generator=random).float()
    steps[..., 5] = most
    scales = (torch.rand(outputs, inputs // INT4_GROUP, 1, generator=random) * 0.01 + 0.001).bfloat16()
    return (steps * scales.float()).view(outputs, inputs)


@pytest.mark.parametrize("most", [MAX_STEP, 6, 5, 4])
def test_whole_steps_are_kept_on_both_targets(most):
    weight = whole_steps(80, 96, most)
    assert torch.equal(int4_steps(weight).dequantize(), weight)
    assert torch.equal(torch.from_numpy(compress(weight, "int4").dense()), weight)


def test_torchaos_own_scales_do_not_keep_them():
    torchao = import_quietly("torchao.quantization")
    weight = whole_steps(80, 96, MAX_STEP)
    tensor = torchao.IntxUnpackedToInt8Tensor.from_hp(
        weight, (1, INT4_GROUP), torch.int4, activation_quantization="int8_asym_per_token"
    )
    assert (tensor.dequantize() - weight).norm() > 0.02 * weight.norm()


def test_scales_are_close_to_the_best_of_a_fine_search():
    groups = torch.randn(200, INT4_GROUP, generator=torch.Generator().manual_seed(0))
    importance = torch.rand(INT4_GROUP, generator=torch.Generator().manual_seed(1)) ** 4

    def error(scales: torch.Tensor) -> torch.Tensor:
        return ((nearest_steps(groups, scales) * scales.float() - groups).square() * importance).sum(dim=-1)

    peak = groups.abs().amax(dim=-1, keepdim=True) / MAX_STEP
    fine = torch.stack([error((peak * share).bfloat16()) for share in torch.linspace(0.5, 1.2, 141)]).amin(dim=0)
    found = error(best_scales(groups, torch.bfloat16, importance))
    assert (found <= error(peak.bfloat16()) + 1e-6).all()  # no worse than without clipping
    assert float(found.sum()) < 1.25 * float(fine.sum()) and float(found.sum()) < 0.9 * float(
        error(peak.bfloat16()).sum()
    )


def test_zeros_have_a_scale():
    scales = best_scales(torch.zeros(3, INT4_GROUP), torch.float16)
    assert (scales > 0).all() and (nearest_steps(torch.zeros(3, INT4_GROUP), scales) == 0).all()
