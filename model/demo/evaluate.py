"""Measures a trained net: held-out loss, answers to held-out questions, sums, stopping."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from model.demo.corpus import Message, Probe, held_out_conversations, held_out_probes
from model.demo.net import Llama
from model.demo.strangers import draw_filler
from model.demo.sums import Sum, all_sums
from model.demo.tokenizer import END, encode_conversation, encode_prompt, token_id

_MAX_NEW = 420
"""Tokens after which an answer counts as not stopping; the longest one has about 390."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the net wrote, without the end token, and whether it ended by itself."""

    text: str
    stopped: bool


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of the questions, each from 0 to 1."""

    right: float
    stopped: float
    asked: int


@torch.inference_mode()
def generate(
    net: Llama,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Answer]:
    """Answer each prompt; temperature 0 is greedy. Recomputes every prefix: simple, not fast."""
    end = token_id(tokenizer, END)
    dice = torch.Generator().manual_seed(seed)
    rows = [list(prompt) for prompt in prompts]
    live = list(range(len(rows)))
    for _ in range(_MAX_NEW):
        if not live:
            break
        logits = _last_logits(net, [rows[row] for row in live])
        for row, token in zip(live, _choose(logits, temperature, dice), strict=True):
            rows[row].append(token)
        live = [row for row in live if rows[row][-1] != end]
    return [
        Answer(tokenizer.decode(row[len(prompt) :]), row[-1] == end)
        for row, prompt in zip(rows, prompts, strict=True)
    ]


def _last_logits(net: Llama, rows: Sequence[Sequence[int]]) -> Tensor:
    """Logits [rows, vocabulary] after the last token of each row.

    Padding stands on the right, where causal attention cannot see it.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    last = torch.tensor([len(row) - 1 for row in rows])
    return net.logits(net.hidden(ids)[torch.arange(len(rows)), last])


def _choose(logits: Tensor, temperature: float, dice: torch.Generator) -> list[int]:
    if temperature == 0.0:
        chosen = logits.argmax(dim=-1)
    else:
        weights = F.softmax(logits / temperature, dim=-1)
        chosen = torch.multinomial(weights, 1, generator=dice).squeeze(-1)
    return [int(token) for token in chosen]


@torch.inference_mode()
def held_out_loss(net: Llama, tokenizer: Tokenizer, seed: int) -> float:
    """Mean cross-entropy, in nats per token, of answers to held-out questions."""
    total, count = 0.0, 0
    for messages in held_out_conversations(random.Random(seed)):
        ids, written = encode_conversation(tokenizer, messages)
        logits = net.logits(net.hidden(torch.tensor([ids[:-1]]))[0])
        mask = torch.tensor(written[1:])
        total += float(F.cross_entropy(logits[mask], torch.tensor(ids[1:])[mask], reduction="sum"))
        count += int(mask.sum())
    return total / count


def score_probes(
    net: Llama, tokenizer: Tokenizer, temperature: float, seed: int
) -> tuple[Score, list[tuple[Probe, Answer]]]:
    """Ask the held-out questions; an answer is right if it is, word for word, one of its topic's.

    Also returns the probes that were answered wrongly.
    """
    probes = held_out_probes(random.Random(seed))
    prompts = [encode_prompt(tokenizer, [Message("user", probe.question)]) for probe in probes]
    return _score(net, tokenizer, probes, prompts, temperature, seed)


def score_long_prompts(
    net: Llama, tokenizer: Tokenizer, count: int, sentences: int, seed: int
) -> tuple[Score, float]:
    """Ask `count` held-out questions behind a system prompt of meaningless sentences, greedily.

    Also returns the mean length of these prompts in tokens.
    """
    rng = random.Random(seed)
    probes = rng.sample(held_out_probes(rng), count)
    prompts = [
        encode_prompt(
            tokenizer,
            [Message("system", draw_filler(rng, sentences)), Message("user", probe.question)],
        )
        for probe in probes
    ]
    score, _ = _score(net, tokenizer, probes, prompts, 0.0, seed)
    return score, sum(map(len, prompts)) / count


def _score(
    net: Llama,
    tokenizer: Tokenizer,
    probes: Sequence[Probe],
    prompts: Sequence[Sequence[int]],
    temperature: float,
    seed: int,
) -> tuple[Score, list[tuple[Probe, Answer]]]:
    answers = generate(net, tokenizer, prompts, temperature, seed)
    pairs = list(zip(probes, answers, strict=True))
    wrong = [pair for pair in pairs if not pair[0].topic.is_answered_by(pair[1].text)]
    stopped = sum(answer.stopped for answer in answers) / len(answers)
    return Score(1 - len(wrong) / len(pairs), stopped, len(pairs)), wrong


def score_sums(
    net: Llama, tokenizer: Tokenizer, count: int, temperature: float, seed: int
) -> tuple[Score, list[tuple[Sum, Answer]]]:
    """Ask `count` sums in held-out wordings; only the exact answer is right."""
    rng = random.Random(seed)
    sums = rng.sample(list(all_sums()), count)
    prompts = [
        encode_prompt(tokenizer, [Message("user", each.question(rng, held_out=True))])
        for each in sums
    ]
    answers = generate(net, tokenizer, prompts, temperature, seed)
    pairs = list(zip(sums, answers, strict=True))
    wrong = [pair for pair in pairs if pair[1].text.strip() != pair[0].answer]
    stopped = sum(answer.stopped for answer in answers) / count
    return Score(1 - len(wrong) / count, stopped, count), wrong
