"""config.json of every family, in the words of old and new transformers, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model.nets.config import Llama3Scaling, RopeConfig, load_config, parse_config
from model.nets.rope import RopeTable, frequencies
from model.weights.errors import CheckpointError
from tests.reference import FAMILIES, make_checkpoint

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


def parse(architecture: str = "LlamaForCausalLM", **over: Any) -> Any:
    return parse_config(LLAMA | {"architectures": [architecture]} | over)


def test_llama_with_the_least_said() -> None:
    config = parse()
    assert (config.heads, config.kv_heads, config.group, config.head_dim) == (4, 2, 2, 16)
    assert config.rope == RopeConfig(10_000.0)
    assert config.windows == (None, None, None)
    assert config.kv_bytes_per_token == 2 * 2 * 16 * 2
    assert not (config.tied or config.qkv_bias or config.out_bias or config.mlp_bias)
    assert parse(num_key_value_heads=None).kv_heads == 4


def test_llama_biases_are_honoured() -> None:
    config = parse(attention_bias=True, mlp_bias=True)
    assert config.qkv_bias and config.out_bias and config.mlp_bias


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3_ROPE}},
        {"rope_theta": 500000, "rope_scaling": {"type": "llama3", **LLAMA3_ROPE}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3_ROPE}},
    ],
    ids=["old", "older", "new"],
)
def test_llama3_rope_in_old_and_new_words(fields: dict[str, Any]) -> None:
    assert parse(**fields).rope == RopeConfig(500_000.0, Llama3Scaling(8.0, 1.0, 4.0, 512))


def test_default_rope_in_old_and_new_words() -> None:
    assert parse(rope_theta=7.0, rope_scaling=None).rope == RopeConfig(7.0)
    new = {"rope_type": "default", "rope_theta": 7.0}
    assert parse(rope_parameters=new).rope == RopeConfig(7.0)


def test_mistral_window() -> None:
    assert parse("MistralForCausalLM", sliding_window=32).windows == (32,) * 3
    assert parse("MistralForCausalLM", sliding_window=None).windows == (None,) * 3
    assert parse("MistralForCausalLM").windows == (4096,) * 3, "transformers' default"


def test_qwen_windows() -> None:
    for name in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        assert parse(name, sliding_window=32).windows == (None,) * 3
        on = {"use_sliding_window": True, "sliding_window": 32}
        assert parse(name, **on, max_window_layers=2).windows == (None, None, 32)
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        assert parse(name, **on, layer_types=kinds).windows == (32, None, 32)
        with pytest.raises(CheckpointError, match="layer_types"):
            parse(name, **on, layer_types=["linear_attention"] * 3)


def test_qwen_biases_and_norms() -> None:
    two, three = parse("Qwen2ForCausalLM"), parse("Qwen3ForCausalLM", head_dim=24)
    assert two.qkv_bias and not two.out_bias and not two.qk_norm
    assert three.qk_norm and not three.qkv_bias and three.head_dim == 24


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "GPT2LMHeadModel is not supp.*Llama.*Qwen3",
        ),
        ({"architectures": []}, "architecture none"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "64"}, "'hidden_size' should be int, found '64'"),
        ({"hidden_size": True}, "'hidden_size' should be int, found True"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' should be positive, found 0"),
        ({"num_key_value_heads": 3}, "4 heads are no multiple of 3"),
        ({"head_dim": 15}, "head_dim should be even for rope, found 15"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope type 'yarn'.*default, llama3"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling: field 'factor' is missing"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": [1]}, "'rope_scaling' should be an object"),
        ({"architectures": ["MistralForCausalLM"], "attention_bias": True}, "attention_bias"),
    ],
)
def test_refusals_name_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json.*{message}"):
        parse(**fields)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="should hold an object, found list"):
        load_config(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_is_read(family: str, tmp_path: Path) -> None:
    path = make_checkpoint(family, tmp_path)
    written = json.loads((path / "config.json").read_text())
    assert load_config(path).architecture == written["architectures"][0]


def test_llama3_frequencies_are_those_of_transformers() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3_ROPE}
    theirs = LlamaConfig(**{**LLAMA, "head_dim": 128}, rope_parameters=rope)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    found = frequencies(parse(rope_parameters=rope).rope, 128)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_rope_table_does_not_depend_on_its_length() -> None:
    cpu, positions = torch.device("cpu"), torch.arange(100)
    short = RopeTable(RopeConfig(10_000.0), 18, 100, cpu).at(positions)
    long = RopeTable(RopeConfig(10_000.0), 18, 5000, cpu).at(positions)
    assert torch.equal(short[0], long[0]) and torch.equal(short[1], long[1])
