"""Loading a checkpoint: shards, dtypes, and one clear error for everything that can be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from model.nets.config import load_config
from model.nets.linear import Linear
from model.nets.transformer import ModelWeights
from model.weights.errors import CheckpointError
from model.weights.files import read_checkpoint
from model.weights.hub import resolve_model
from model.weights.loader import load_weights
from model.weights.revision import model_revision
from tests.reference import make_checkpoint

CPU = torch.device("cpu")
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen2", tmp_path_factory.mktemp("qwen2"))


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


@pytest.fixture
def sharded(original: Path, tmp_path: Path) -> Path:
    """The same model in several files with an index."""
    path = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(original).save_pretrained(path, max_shard_size="200KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def load(path: Path, dtype: torch.dtype = torch.float32, **options: object) -> ModelWeights:
    return load_weights(path, load_config(path), dtype=dtype, device=CPU, **options)


def matrix(linear: Linear) -> Tensor:
    """The float32 matrix behind a linear: products with ones and zeros are exact."""
    ones = torch.eye(linear.shape[1])
    return (linear(ones) - linear(torch.zeros_like(ones))).T


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path / SINGLE)
    change(tensors)
    save_file(tensors, path / SINGLE)


def test_fused_matrices_hold_their_parts(original: Path) -> None:
    weights, tensors = load(original), load_file(original / SINGLE)
    parts = [tensors[f"model.layers.2.self_attn.{p}_proj.bias"] for p in "qkv"]
    assert torch.equal(weights.layers[2].qkv(torch.zeros(1, 60))[0], torch.cat(parts))
    parts = [tensors[f"model.layers.0.mlp.{p}_proj.weight"] for p in ("gate", "up")]
    assert torch.equal(matrix(weights.layers[0].gate_up), torch.cat(parts))


def test_shards_hold_the_same_weights(original: Path, sharded: Path) -> None:
    for one, other in zip(load(original).linears(), load(sharded).linears(), strict=True):
        assert torch.equal(matrix(one), matrix(other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(original: Path, dtype: torch.dtype) -> None:
    weights = load(original, dtype)
    x = weights.embedding(torch.arange(2))
    assert {linear(x).dtype for linear in weights.linears() if linear.shape[1] == 60} == {dtype}


def test_tied_head_is_the_embedding(tmp_path: Path) -> None:
    weights = load(make_checkpoint("llama3", tmp_path))
    ids = torch.arange(weights.head.shape[0])
    assert torch.equal(matrix(weights.head), weights.embedding(ids))


def test_tensors_are_read_in_parts(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(original)
    monkeypatch.setattr("model.weights.data._STEP", 1000)
    for one, other in zip(whole.linears(), load(original).linears(), strict=True):
        assert torch.equal(matrix(one), matrix(other))


def test_progress_rises_to_one(original: Path) -> None:
    heard: list[float] = []
    load(original, progress=heard.append)
    assert heard == sorted(heard) and heard[-1] == 1.0 and len(heard) > 10


def test_known_leftovers_are_ignored(copy: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(copy, lambda tensors: tensors.update({name: torch.ones(5)}))
    load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), rf"copy: tensor '{NORM}' of shape \[60\] is missing"),
        (
            lambda t: t.update({NORM: torch.ones(61)}),
            rf"model\.safetensors: tensor '{NORM}' should have shape \[60\], found \[61\]",
        ),
        (
            lambda t: t.update({"model.layers.3.x": torch.ones(1)}),
            r"model\.safetensors: unexpected tensor 'model\.layers\.3\.x'",
        ),
        (
            lambda t: t.update({NORM: torch.ones(60, dtype=torch.int8)}),
            rf"tensor '{NORM}' should be one of F32, F16, BF16, found I8",
        ),
        (
            lambda t: t.update({NORM: torch.full((60,), float("nan"))}),
            rf"tensor '{NORM}' \(F32\) has values that are not finite in float32",
        ),
    ],
    ids=["missing", "shape", "extra", "dtype", "nan"],
)
def test_wrong_tensors_are_named(
    copy: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    rewrite(copy, change)
    with pytest.raises(CheckpointError, match=message):
        load(copy)


def test_a_weight_beyond_float16_is_refused(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors.update({NORM: torch.full((60,), 1e6)}))
    load(copy, torch.bfloat16)
    with pytest.raises(CheckpointError, match=rf"'{NORM}' .* not finite in float16"):
        load(copy, torch.float16)


def test_a_file_cut_short_while_it_is_read_is_named(copy: Path) -> None:
    heard: list[float] = []

    def cut(done: float) -> None:
        if not heard:
            (copy / SINGLE).write_bytes(b"")
        heard.append(done)

    with pytest.raises(CheckpointError, match=rf"{SINGLE}: ends at byte \d+, in the middle"):
        load(copy, progress=cut)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_named(copy: Path, keep: int) -> None:
    file = copy / SINGLE
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{SINGLE}: truncated.* {file.stat().st_size}"):
        read_checkpoint(copy)


def test_a_damaged_header_is_named(copy: Path) -> None:
    file = copy / SINGLE
    data = bytearray(file.read_bytes())
    data[8] = ord("x")
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{SINGLE}: the safetensors header is damaged"):
        read_checkpoint(copy)
    file.write_bytes(data + b"more")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(copy)


def test_no_weights_at_all(copy: Path) -> None:
    (copy / SINGLE).unlink()
    with pytest.raises(CheckpointError, match=f"has neither {SINGLE} nor {INDEX}"):
        load(copy)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}: this shard is missing"):
        load(sharded)


def test_a_tensor_the_index_misplaces_is_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"][NORM] = next(f for f in files if f != index["weight_map"][NORM])
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{index['weight_map'][NORM]}: tensor '{NORM}'"):
        load(sharded)


def test_an_unreadable_index_is_named(sharded: Path) -> None:
    for broken in ("{", "{}", '{"weight_map": 3}'):
        (sharded / INDEX).write_text(broken)
        with pytest.raises(CheckpointError, match=f"{INDEX}: has no readable weight_map"):
            load(sharded)


def test_revision_tells_fine_tunes_apart(original: Path, copy: Path) -> None:
    before = model_revision(copy)
    assert before == model_revision(original), "the place does not matter"
    rewrite(copy, lambda tensors: [tensor.mul_(1.001) for tensor in tensors.values()])
    tuned = model_revision(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert len({before, tuned, model_revision(copy)}) == 3


def test_resolving_a_directory_and_what_is_none(copy: Path) -> None:
    assert resolve_model(str(copy)) == copy
    with pytest.raises(CheckpointError, match="no such directory, and not a hub id"):
        resolve_model(str(copy / "absent"))


def test_resolving_a_hub_id_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    def absent(*_: object, **__: object) -> str:
        raise errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)
    with pytest.raises(CheckpointError, match=r"org/name: .*the hub says: offline"):
        resolve_model("org/name")


_PEAK = """
import sys, torch
from pathlib import Path
from model.nets.config import load_config
from model.weights.loader import load_weights

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

torch.set_num_threads(1)
torch.ops.mkldnn._reorder_linear_weight(torch.eye(64, dtype=torch.bfloat16), 32)
path, quantize, before = Path(sys.argv[1]), sys.argv[2] or None, peak()
options = {"dtype": torch.bfloat16, "device": torch.device("cpu"), "quantize": quantize}
weights = load_weights(path, load_config(path), **options)
held = sum(linear.nbytes for linear in weights.linears())
if weights.head.rows is None:
    held += 2 * weights.head.shape[0] * weights.head.shape[1]
print(held, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_peak_memory_is_little_above_what_is_held(tmp_path: Path) -> None:
    """A matrix as it was read is gone as soon as it is in its form."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 16384}
    path = make_checkpoint("llama3", tmp_path, **sizes, **heads)
    for quantize in ("", "int8", "int4"):
        command = [sys.executable, "-c", _PEAK, str(path), quantize]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        held, peak = (int(number) for number in found.splitlines()[-1].split())
        assert held > 30e6
        allowed = 1.05 * held + 32e6  # buffers, and code that is used for the first time
        assert peak < allowed, f"{quantize}: {peak} bytes for {held}"
