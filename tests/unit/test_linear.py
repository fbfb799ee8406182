"""Every form of torch's against F.linear of the same matrix in float64; which form is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from baton.settings import Quantize
from model.kernels.build import PORTABLE, supported
from model.nets.linear import PACKED, PLAIN, Form
from model.nets.quantized import INT4, INT8, Int4, Int8
from model.weights.linears import LinearMaker, forms

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = (1, 2, 15, Int8.few, Int8.few + 1, Int4.few, Int4.few + 1)

#: Largest error, as a share of the largest result, that the form itself may add.
ROUNDING = {"plain": 0.0, "packed": 0.0, "int8": 0.012, "int4": 0.12}
#: And what sums in the dtype may add; float32 in order of its sums.
SUMS = {torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make(form: Form, weight: Tensor, bias: Tensor | None):
    reason = form.refusal(weight)
    if reason is not None:
        pytest.skip(reason)
    return form.make(weight, bias)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", [PLAIN, PACKED, INT8, INT4], ids=lambda form: form.name)
# The last has more weights than are widened at a time, and outputs left over.
@pytest.mark.parametrize("shape", [(64, 32), (192, 160), (96, 64), (4112, 576)])
def test_products(form: Form, dtype: torch.dtype, shape: tuple[int, int], biased: bool) -> None:
    weight = random(*shape, dtype=dtype)
    bias = 5 * random(shape[0], dtype=dtype, seed=1) if biased else None
    linear = make(form, weight.clone(), bias)
    assert linear.shape == shape
    for rows in ROWS:
        x = random(rows, shape[1], dtype=dtype, seed=rows)
        wide = None if bias is None else bias.double()
        expected = F.linear(x.double(), weight.double(), wide)
        found = linear(x)
        assert found.dtype == dtype and found.shape == expected.shape
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < ROUNDING[form.name] + SUMS[dtype], f"{rows} rows"


@pytest.mark.parametrize("form", [INT8, INT4], ids=lambda form: form.name)
def test_few_and_many_rows_are_one_function(form: Form) -> None:
    """The two ways to multiply see the same rounded weights: a prompt and its answer agree."""
    linear = make(form, random(192, 160), random(192))
    x = random(Int4.few + 1, 160, seed=3)
    few = Int8.few
    torch.testing.assert_close(linear(x)[:few], linear(x[:few]), rtol=0, atol=1e-4)


def test_making_one_leaves_the_matrix_alone() -> None:
    weight = random(64, 64)
    for form in (PACKED, INT8, INT4):
        make(form, weight, None)
        assert torch.equal(weight, random(64, 64))


@pytest.mark.parametrize(("form", "per_weight"), [(PACKED, 2), (INT8, 1.01), (INT4, 0.625)])
def test_bytes_held(form: Form, per_weight: float) -> None:
    weight = random(512, 512, dtype=torch.bfloat16)
    assert make(form, weight, None).nbytes <= per_weight * weight.numel()


def test_steps_are_exact_where_weights_are_multiples() -> None:
    """Weights that 8 or 4 bits can hold come back as they were."""
    eye = torch.eye(Int4.few + 1, 64)
    eights = torch.arange(64 * 64).view(64, 64) % 255 - 127.0
    eights[:, 0] = 127
    torch.testing.assert_close(make(INT8, eights, None)(eye)[:64].T, eights, rtol=1e-6, atol=0)
    fours = torch.arange(64 * 64).view(64, 64) * 7 % 16 - 3.0
    torch.testing.assert_close(make(INT4, fours, None)(eye)[:64].T, fours, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(make(INT4, fours, None)(eye[:16]).T, fours[:, :16])


def test_constant_and_zero_weights() -> None:
    for form in (INT8, INT4):
        for value in (0.0, -0.5):
            linear = make(form, torch.full((64, 64), value), None)
            for rows in (1, Int4.few + 1):
                expected = torch.full((rows, 64), 64 * value)
                found = linear(torch.ones(rows, 64))
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing that one built before."""
    if supported()[0] is PORTABLE:
        pytest.skip("the kernel is not chosen here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(
    ("quantize", "shape", "kind", "reason"),
    [
        ("int4", (64, 64), "int4", None),
        ("int4", (60, 64), "int8", "60 outputs are no multiple of the 16"),
        ("int4", (64, 48), "int8", "48 inputs are no multiple of the 32"),
        ("int8", (64, 60), "packed", "60 inputs are no multiple of the 16"),
        (None, (61, 37), "packed", None),
    ],
)
def test_a_shape_that_a_form_has_not_goes_to_the_next(
    quantize: Quantize | None,
    shape: tuple[int, int],
    kind: str,
    reason: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if PACKED.refusal(random(2, 2)) is not None:
        pytest.skip("packed weights are not possible here")
    maker = LinearMaker(forms(quantize, CPU), deterministic=False)
    kinds = {maker(random(*shape), None, keep=True).kind for _ in range(2)}
    assert kinds == {kind}
    logged = capsys.readouterr().out
    assert logged.count("linears by torch") == logged.count("no C compiler") == 1
    assert logged.count("held in another form") == (0 if reason is None else 1)
    assert reason is None or reason in logged


@pytest.mark.parametrize(
    ("quantize", "shape", "dtype", "kind"),
    [
        ("int4", (60, 64), torch.float16, "int4"),
        ("int4", (64, 48), torch.float32, "int8"),
        ("int8", (64, 60), torch.bfloat16, "int8"),
        (None, (61, 37), torch.float32, "float32"),
    ],
)
def test_our_kernel_comes_first(
    quantize: Quantize | None,
    shape: tuple[int, int],
    dtype: torch.dtype,
    kind: str,
    attention: str,
) -> None:
    """``attention`` skips this where there is no compiler."""
    if attention != "kernel":
        return
    if supported()[0] is PORTABLE:
        pytest.skip("the kernel is not chosen here")
    for deterministic in (False, True):
        maker = LinearMaker(forms(quantize, CPU), deterministic=deterministic)
        linear = maker(random(*shape, dtype=dtype), None, keep=True)
        assert linear.kind.startswith(f"{kind} by kernel {supported()[0].name}")
        assert linear.independent


@pytest.mark.usefixtures("no_compiler")
def test_an_operator_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise RuntimeError("no such operator\nand a long trace")

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", gone)
    maker = LinearMaker(forms(None, CPU), deterministic=False)
    assert maker(random(8, 8), None, keep=True).kind == "plain"
    assert f"torch {torch.__version__} says: no such operator" == PACKED.refusal(random(8, 8))


def test_no_device_but_a_cpu_has_weights_of_4_bits() -> None:
    with pytest.raises(ValueError, match="--quantize int4 is implemented for cpu, not for cuda:1"):
        forms("int4", torch.device("cuda:1"))
    assert forms(None, torch.device("cuda")) == (PLAIN,)
