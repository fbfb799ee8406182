"""Writes a trained net as a Hugging Face checkpoint, and reads it back for evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from model.demo.net import Llama, NetConfig
from model.demo.tokenizer import END, PAD, save_tokenizer, token_id

WEIGHTS = "model.safetensors"


def save_checkpoint(net: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights (bfloat16), configurations and tokenizer into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in net.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors writes for the owner alone, which a checkpoint that is shared must not keep.
    (folder / WEIGHTS).chmod(0o644)
    end, pad = token_id(tokenizer, END), token_id(tokenizer, PAD)
    _write_json(folder / "config.json", _model_config(net.config, end, pad))
    _write_json(
        folder / "generation_config.json",
        {"eos_token_id": end, "pad_token_id": pad},
    )
    save_tokenizer(tokenizer, folder, net.config.max_positions)


def load_weights(folder: Path, config: NetConfig) -> Llama:
    """The net with the weights as saved: float32 in memory, but rounded to bfloat16."""
    net = Llama(config)
    weights = load_file(folder / WEIGHTS)
    net.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return net.eval()


def _model_config(config: NetConfig, end: int, pad: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": pad,
        "torch_dtype": "bfloat16",
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
