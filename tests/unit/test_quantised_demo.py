"""What 8 and 4 bits cost the demo model: cross-entropy of its held-out answers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

import model.demo
from baton.settings import Quantize
from model.demo.corpus import held_out_conversations
from model.demo.tokenizer import encode_conversation
from model.nets.config import load_config
from model.nets.rope import RopeTable
from model.nets.rows import PlainRows
from model.nets.transformer import Transformer
from model.weights.loader import load_weights

CHECKPOINT = Path(model.demo.__file__).parent / "checkpoint"
CPU = torch.device("cpu")


def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of one whole sequence, over K and V as FP16 holds them."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k.half().to(k), v.half().to(v)))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return mixed[0].transpose(0, 1).flatten(1)


@torch.inference_mode()
def loss(quantize: Quantize | None) -> float:
    """Mean cross-entropy, nats per token that the model writes."""
    config = load_config(CHECKPOINT)
    weights = load_weights(CHECKPOINT, config, dtype=torch.bfloat16, device=CPU, quantize=quantize)
    assert quantize is None or all(part.startswith(quantize) for part in weights.kind.split("+")), (
        "nothing fell back"
    )
    rope = RopeTable(config.rope, config.head_dim, config.max_positions, CPU)
    net = Transformer(config, weights, rope, PlainRows())
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    total, count = 0.0, 0
    for messages in held_out_conversations(random.Random(9)):
        ids, written = encode_conversation(tokenizer, messages)
        hidden = net.forward(torch.tensor(ids[:-1]), torch.arange(len(ids) - 1), attend)
        mask = torch.tensor(written[1:])
        logits = net.logits(hidden[mask]).float()
        total += float(F.cross_entropy(logits, torch.tensor(ids[1:])[mask], reduction="sum"))
        count += int(mask.sum())
    return total / count


@pytest.fixture(scope="module")
def unrounded() -> float:
    return loss(None)


@pytest.mark.parametrize(("quantize", "share"), [("int8", 0.01), ("int4", 0.05)])
def test_rounded_weights_cost_little(unrounded: float, quantize: Quantize, share: float) -> None:
    """Below one nat a token, so bounds on the loss are stricter than the same on perplexity."""
    assert 0 < unrounded < 1
    assert abs(loss(quantize) - unrounded) < share * unrounded
