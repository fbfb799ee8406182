"""Trains the demo model from scratch and measures it.

    python -m model.demo.train --out model/demo/checkpoint

The same seed, thread count and kind of machine give the same weights.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from model.demo.checkpoint import load_weights, save_checkpoint
from model.demo.corpus import Message, write_conversation
from model.demo.evaluate import (
    generate,
    held_out_loss,
    score_long_prompts,
    score_probes,
    score_sums,
)
from model.demo.net import Llama, NetConfig
from model.demo.tokenizer import encode_conversation, encode_prompt, train_tokenizer

_LOG = logging.getLogger(__name__)

_IGNORED = -100
"""The target that cross-entropy skips: what users and systems say is read, not learnt."""

_SAMPLES = (
    "hi",
    "who are you?",
    "explain the kv cache",
    "why disaggregate prefill and decode?",
    "what happens when a worker dies?",
    "how do I start Baton?",
    "what is 7 + 12?",
    "count down from 20",
    "what is the capital of France?",
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train. `tokens_per_step` counts all tokens, read or learnt."""

    steps: int = 1800
    tokens_per_step: int = 4096
    rows: tuple[int, ...] = (256, 512, 2048)
    """Row lengths in tokens; the long ones make late positions known too."""
    shares: tuple[float, ...] = (0.8, 0.15, 0.05)
    """The share of the steps that each row length gets."""
    peak_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.1

    def rate(self, step: int) -> float:
        """The learning rate: a linear rise, then a cosine fall to nearly nothing."""
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def make_tokenizer(seed: int, vocab_size: int, conversations: int = 6000) -> Tokenizer:
    """The tokenizer, trained on conversations of its own."""
    rng = random.Random(seed)
    texts = (message.content for _ in range(conversations) for message in write_conversation(rng))
    return train_tokenizer(texts, vocab_size)


def pack_row(tokenizer: Tokenizer, rng: random.Random, length: int) -> tuple[list[int], list[int]]:
    """`length` input ids and their targets: conversations one after another, the last one cut.

    No mask keeps them apart: together they read as one long conversation that changes its subject,
    which is what the model should be able to follow.
    """
    ids: list[int] = []
    written: list[bool] = []
    while len(ids) <= length:
        more, by_model = encode_conversation(tokenizer, write_conversation(rng))
        ids += more
        written += by_model
    targets = [
        token if by_model else _IGNORED
        for token, by_model in zip(ids[1:], written[1:], strict=True)
    ]
    return ids[:length], targets[:length]


def batches(tokenizer: Tokenizer, schedule: Schedule, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, each [B, T], for every step of the schedule."""
    rng = random.Random(seed)
    for _ in range(schedule.steps):
        length = rng.choices(schedule.rows, schedule.shares)[0]
        rows = [pack_row(tokenizer, rng, length) for _ in range(schedule.tokens_per_step // length)]
        yield torch.tensor([ids for ids, _ in rows]), torch.tensor([goal for _, goal in rows])


def make_optimizers(net: Llama, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms.

    In trials of 400 steps Muon answered 79 % of the held-out questions rightly, AdamW alone 68 %.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        in_layer = parameter.dim() == 2 and "embed_tokens" not in name
        (matrices if in_layer else others).append(parameter)
    rate, decay = schedule.peak_rate, schedule.weight_decay
    # The adjusted rate gives both optimizers updates of the same size, so that they share one.
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=rate, weight_decay=0.0, betas=(0.9, 0.97), fused=True)
    return [muon, adam]


def loss_of(net: Llama, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the learnt tokens of inputs and targets [B, T].

    The matrix products run in bfloat16, which CPUs with the units for it do several times faster;
    weights, norms and the loss stay in float32.
    """
    learnt = targets != _IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        logits = net.logits(net.hidden(inputs)[learnt])
    return F.cross_entropy(logits.float(), targets[learnt])


def train(net: Llama, tokenizer: Tokenizer, schedule: Schedule, seed: int) -> None:
    """Train in place, printing the loss now and then."""
    optimizers = make_optimizers(net, schedule)
    start, recent = time.monotonic(), 0.0
    for step, (inputs, targets) in enumerate(batches(tokenizer, schedule, seed)):
        loss = loss_of(net, inputs, targets)
        net.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
            optimizer.step()
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        if step % 50 == 49 or step == schedule.steps - 1:
            seconds = time.monotonic() - start
            rate = (step + 1) * schedule.tokens_per_step / seconds
            _LOG.info("step %d loss %.3f %.0f s %.0f tokens/s", step + 1, recent, seconds, rate)
        if step % 400 == 399:
            _LOG.info("  held-out loss %.3f", held_out_loss(net, tokenizer, seed))


def report(net: Llama, tokenizer: Tokenizer, seed: int) -> None:
    """Print the figures that the README quotes, the mistakes and some answers."""
    _LOG.info("held-out loss %.3f nats per token", held_out_loss(net, tokenizer, seed))
    for temperature in (0.0, 0.7):
        score, wrong = score_probes(net, tokenizer, temperature, seed)
        _LOG.info("held-out questions, temperature %.1f: %s", temperature, score)
        for probe, answer in wrong[:30]:
            _LOG.info("  %s: %r -> %r", probe.topic.name, probe.question, answer.text)
        score, mistakes = score_sums(net, tokenizer, 1000, temperature, seed)
        _LOG.info("sums, temperature %.1f: %s", temperature, score)
        for each, answer in mistakes[:10]:
            _LOG.info("  %r -> %r", each.answer, answer.text)
    score, length = score_long_prompts(net, tokenizer, count=20, sentences=60, seed=seed)
    _LOG.info("held-out questions, prompts of %.0f tokens: %s", length, score)
    prompts = [encode_prompt(tokenizer, [Message("user", question)]) for question in _SAMPLES]
    for temperature in (0.0, 0.7):
        answers = generate(net, tokenizer, prompts, temperature, seed)
        for question, answer in zip(_SAMPLES, answers, strict=True):
            _LOG.info("[%.1f] %s -> %s", temperature, question, answer.text)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m model.demo.train", description="Train Baton's demo model from scratch."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=1800, help="optimizer steps")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for torch")
    parser.add_argument("--measure", action="store_true", help="only measure what is in --out")
    parser.add_argument("--seed", type=int, default=7, help="seed of text, weights and samples")
    return parser.parse_args()


def main() -> None:
    """Train, save, load what was saved, and measure that."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    config = NetConfig()
    if not arguments.measure:
        tokenizer = make_tokenizer(arguments.seed, config.vocab_size)
        net = Llama(config)
        size = sum(parameter.numel() for parameter in net.parameters())
        _LOG.info("%d parameters, %d tokens", size, tokenizer.get_vocab_size())
        train(net, tokenizer, Schedule(steps=arguments.steps), arguments.seed + 1)
        save_checkpoint(net, tokenizer, arguments.out)
    saved = Tokenizer.from_file(str(arguments.out / "tokenizer.json"))
    report(load_weights(arguments.out, config), saved, arguments.seed + 2)


if __name__ == "__main__":
    main()
