"""What 8 and 4 bits cost the demo model: cross-entropy of its held-out answers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

import model.demo
from baton.settings import Quantize
from model.cache.pool import KvPool
from model.demo.corpus import held_out_conversations
from model.demo.tokenizer import encode_conversation
from model.nets.attention import PlainAttention, Span
from model.nets.config import load_config
from model.nets.ops import TorchOps
from model.nets.rope import RopeTable
from model.nets.rows import PlainRows
from model.nets.transformer import Transformer
from model.weights.loader import load_weights

CHECKPOINT = Path(model.demo.__file__).parent / "checkpoint"
CPU = torch.device("cpu")
BLOCK = 16


@torch.inference_mode()
def loss(quantize: Quantize | None) -> float:
    """Mean cross-entropy, nats per token that the model writes."""
    config = load_config(CHECKPOINT)
    weights = load_weights(CHECKPOINT, config, dtype=torch.bfloat16, device=CPU, quantize=quantize)
    assert quantize is None or all(part.startswith(quantize) for part in weights.kind.split("+")), (
        "nothing fell back"
    )
    rope = RopeTable(config.rope, config.head_dim, config.max_positions, CPU)
    pool = KvPool(
        layers=config.layers,
        num_blocks=-(-config.max_positions // BLOCK),
        block_size=BLOCK,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        device=CPU,
    )
    ops = TorchOps(config, rope, pool, PlainRows())
    net, attention = Transformer(weights, ops), PlainAttention(torch.bfloat16)
    table = torch.arange(pool.num_blocks)
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    total, count = 0.0, 0
    for messages in held_out_conversations(random.Random(9)):
        ids, written = encode_conversation(tokenizer, messages)
        where = np.arange(len(ids) - 1)
        spans = (Span(0, len(where), 0, table),)

        def attend(layer: int, q: Tensor, spans: tuple[Span, ...] = spans) -> Tensor:
            return attention(layer, q, pool, spans, None)

        ops.begin(
            torch.from_numpy(where), torch.from_numpy(pool.rows_of(where // BLOCK, where % BLOCK))
        )
        hidden = net.forward(torch.tensor(ids[:-1]), attend)
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
