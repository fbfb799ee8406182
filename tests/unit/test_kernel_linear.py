"""Our kernel for linears, for every instruction set that this CPU has, against float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.kernels.build import INSTRUCTION_SETS, InstructionSet, KernelUnavailable, supported
from model.kernels.library import load_library
from model.kernels.linear_library import LinearLibrary
from model.nets.kernel_linear import KernelLinear, LinearKernel
from model.nets.quantized import GROUP, to_int4, to_int8

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMS = ["kernel", "int8", "int4"]


@pytest.fixture(scope="module", params=INSTRUCTION_SETS, ids=lambda one: one.name)
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> LinearLibrary:
    target: InstructionSet = request.param
    if target not in supported():
        pytest.skip(f"this CPU has no {target.name}")
    try:
        return load_library(LinearLibrary, target, tmp_path_factory.mktemp("kernels"))
    except KernelUnavailable as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class Case:
    form: str
    dtype: torch.dtype
    inputs: int
    outputs: int
    rows: int
    biased: bool
    threads: int
    seed: int

    def random(self, *shape: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + seed)
        return torch.randn(shape, generator=generator).to(self.dtype)

    @property
    def weight(self) -> Tensor:
        return self.random(self.outputs, self.inputs, seed=1)

    @property
    def bias(self) -> Tensor | None:
        return 5 * self.random(self.outputs, seed=2) if self.biased else None

    @property
    def x(self) -> Tensor:
        return self.random(self.rows, self.inputs, seed=3)

    def make(self, library: LinearLibrary) -> KernelLinear:
        form = LinearKernel(library, self.threads).forms()[self.form]
        assert form.refusal(self.weight) is None
        linear = form.make(self.weight, self.bias)
        assert isinstance(linear, KernelLinear)
        return linear

    def rounded(self) -> Tensor:
        """The weights that the form holds, float64."""
        if self.form == "int8":
            q, scale = to_int8(self.weight, torch.float32)
            return q.double() * scale.double()[:, None]
        if self.form == "int4":
            q, scales = to_int4(self.weight, torch.bfloat16)
            scale, zero = scales.double().repeat_interleave(GROUP, 1).unbind(-1)
            return (q.double() - 8) * scale + zero
        return self.weight.double()

    def expected(self) -> tuple[Tensor, Tensor]:
        """The result, float64, and the largest error that float32 sums may have.

        A sum of n products errs by n units in the last place of the sum of their magnitudes; the
        128 that int4 steps are lifted by counts among those.
        """
        weight, x = self.rounded(), self.x.double()
        bias = 0 if self.bias is None else self.bias.double()
        result = F.linear(x, weight) + bias
        lifted = weight.abs()
        if self.form == "int4":
            scale = to_int4(self.weight, torch.bfloat16)[1][..., 0].double()
            lifted = lifted + 300 * scale.repeat_interleave(GROUP, 1)
        sums = F.linear(x.abs(), lifted) * (self.inputs + 4) * 2**-24
        last_place = {torch.float32: 2**-23, torch.bfloat16: 2**-8, torch.float16: 2**-11}
        # Half a place of what is given; of FP16 also its smallest steps.
        return result, sums + result.abs() * last_place[self.dtype] + 2**-24 + sums * 2**-8


@st.composite
def cases(draw: st.DrawFn) -> Case:
    form = draw(st.sampled_from(FORMS))
    dtype = draw(st.sampled_from(DTYPES[:2] if form == "kernel" else DTYPES))
    sizes = st.integers(1, 5) if form == "int4" else st.integers(1, 200)
    inputs = draw(
        sizes | st.sampled_from([576 // GROUP, 1536 // GROUP] if form == "int4" else [576])
    )
    return Case(
        form=form,
        dtype=dtype,
        inputs=inputs * (GROUP if form == "int4" else 1),
        outputs=draw(st.integers(1, 200)),
        rows=draw(st.integers(0, 45)),
        biased=draw(st.booleans()),
        threads=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 1000)),
    )


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_products_err_no_more_than_their_sums(library: LinearLibrary, case: Case) -> None:
    found = case.make(library)(case.x)
    expected, bound = case.expected()
    assert found.dtype == case.dtype and found.shape == expected.shape
    error = (found.double() - expected).abs()
    assert bool((error <= bound).all()), f"{float((error - bound).max())} beyond the bound"


#: More rows, and wider, than are packed at a time.
LONG = [
    Case(form, dtype, inputs, 96, rows, True, 2, 0)
    for form in FORMS
    for dtype in DTYPES[:2]
    for inputs, rows in ((1536, 300), (9216, 40))
]


@pytest.mark.parametrize("case", LONG, ids=lambda c: f"{c.form}-{c.dtype}-{c.inputs}-{c.rows}")
def test_long_products(library: LinearLibrary, case: Case) -> None:
    expected, bound = case.expected()
    assert bool(((case.make(library)(case.x).double() - expected).abs() <= bound).all())


@settings(max_examples=25, deadline=None)
@given(case=cases(), data=st.data())
def test_a_row_is_the_same_bits_in_any_company(
    library: LinearLibrary, case: Case, data: st.DataObject
) -> None:
    """Whatever the rows beside it, its place, the threads, where it lies in memory."""
    if not case.rows:
        return
    whole = case.make(library)(case.x)
    picked = data.draw(st.permutations(range(case.rows)))[: data.draw(st.integers(1, case.rows))]
    threads = data.draw(st.integers(1, 3))
    linear = Case(**{**vars(case), "threads": threads}).make(library)
    room = torch.empty(len(picked) * case.inputs + 1, dtype=case.dtype)
    x = room[1:].view(len(picked), case.inputs).copy_(case.x[picked])
    assert torch.equal(linear(x), whole[picked])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_what_is_not_finite_stays_in_its_row(
    library: LinearLibrary, form: str, value: float, dtype: torch.dtype
) -> None:
    case = Case(form, dtype, 96, 40, 17, False, 1, 0)
    linear, x = case.make(library), case.x
    clean = linear(x)
    x[3, 5] = value
    found = linear(x)
    others = [row for row in range(17) if row != 3]
    assert torch.equal(found[others], clean[others])
    assert not torch.isfinite(found[3]).any()


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("shape", [(100, 64), (33, 7), (1, 1)])
def test_rows_come_back_as_they_were(
    library: LinearLibrary, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    case = Case("kernel", dtype, shape[1], shape[0], 1, False, 1, 0)
    lookup = case.make(library).rows
    assert lookup is not None
    ids = torch.tensor([0, shape[0] - 1, 0, shape[0] // 2])
    assert torch.equal(lookup(ids), case.weight[ids])
    assert lookup(ids).is_contiguous()
    for form in ("int8", "int4"):
        assert Case(form, dtype, 64, 64, 1, False, 1, 0).make(library).rows is None


@pytest.mark.parametrize(("form", "per_weight"), [("kernel", 2), ("int8", 1.01), ("int4", 0.625)])
def test_bytes_held(library: LinearLibrary, form: str, per_weight: float) -> None:
    linear = Case(form, torch.bfloat16, 512, 512, 1, False, 1, 0).make(library)
    assert linear.nbytes <= per_weight * 512 * 512


def test_every_step_is_held_exactly(library: LinearLibrary) -> None:
    """All that 8 and 4 bits can tell apart comes back as it was."""
    forms = LinearKernel(library, 1).forms()
    for dtype in DTYPES[:2]:
        eights = torch.arange(64 * 64).view(64, 64) % 255 - 127
        eights[:, 0] = 127
        fours = torch.arange(64 * 64).view(64, 64) * 7 % 16 - 3
        for form, steps in (("int8", eights), ("int4", fours)):
            linear = forms[form].make(steps.to(dtype), None)
            assert torch.equal(linear(torch.eye(64, dtype=dtype)).T, steps.to(dtype))


def test_rows_of_another_kind_are_refused(library: LinearLibrary) -> None:
    linear = Case("kernel", torch.float32, 8, 8, 1, False, 1, 0).make(library)
    for x in (torch.ones(2, 9), torch.ones(2, 8).bfloat16(), torch.ones(8, 2).T):
        with pytest.raises(ValueError, match=r"not contiguous \[n, 8\] of torch.float32"):
            linear(x)


def test_what_a_form_has_not(library: LinearLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = LinearKernel(library, 1).forms()
    half, brain = torch.ones(4, 4).half(), torch.ones(4, 4).bfloat16()
    assert forms["kernel"].refusal(half) == "the kernel has no torch.float16 weights"
    assert forms["int8"].refusal(half) is None
    assert forms["int8"].refusal(half.double()) == "the kernel has no torch.float64 rows"
    assert forms["int4"].refusal(half) == "4 inputs are no multiple of the 32 that share a scale"
    monkeypatch.setattr("model.nets.kernel_linear.cpu_flags", lambda: {"amx_bf16"})
    assert forms["kernel"].refusal(brain) == "oneDNN multiplies by AMX here"
    assert forms["kernel"].refusal(brain.float()) is None
