"""The demo's tokenizer, training loop and measure: plain, short, and the same on every run."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hybridize.text.built_in import DOMAINS, Corpus

VOCABULARY = 1024
END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"
SEQUENCE, BATCH = 128, 4  # tokens, sequences
WINDOW = 256  # tokens of context while measuring
CLIP = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Schedule:
    """How a donor is trained.

    Attributes:
        mix: domain -> share of the sequences.
        steps: of BATCH sequences of SEQUENCE tokens.
        learning_rate: at its peak, after a tenth of the steps; then down to a tenth of it.
        seed: of the initial weights and of the order of the text.
    """

    mix: dict[str, float]
    steps: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Loss:
    """Mean loss on a text: nats per token, and nats per byte, which no tokenizer can flatter."""

    per_token: float
    per_byte: float


def train_tokenizer(
    corpus: Corpus, *, vocabulary: int = VOCABULARY, domains: Sequence[str] = DOMAINS
) -> PreTrainedTokenizerBase:
    """Byte-level BPE with `vocabulary` entries, of some domains; every text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((t for d in domains for t in corpus.train[d]), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=PADDING
    )


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """Token ids of all texts in one row, each text with an end-of-text token before it."""
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return torch.tensor([i for ids in encoded for i in (tokenizer.eos_token_id, *ids)])


def train(
    model: PreTrainedModel, tokens: dict[str, Tensor], schedule: Schedule, *, name: str, say: Say
) -> None:
    """Train `model` in place on random windows of each domain's row of token ids."""
    generator = torch.Generator().manual_seed(schedule.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    model.train()
    started = time.monotonic()
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * _warm_up_and_decay(step / schedule.steps)
        batch = _sample(tokens, schedule.mix, generator)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == schedule.steps:
            seconds = time.monotonic() - started
            say(
                f"  {name}: step {step + 1}/{schedule.steps}, "
                f"loss {loss.item():.3f} nats per token, {seconds:.0f} s"
            )
    model.train(False)


@torch.no_grad()
def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Loss:
    """Loss of `model` on `texts`: every token is predicted once, from at most WINDOW before it."""
    tokens = encode(tokenizer, texts)
    model.train(False)
    nats = 0.0
    for start in range(0, len(tokens) - 1, WINDOW * BATCH):
        rows = tokens[start : start + WINDOW * BATCH + 1]
        nats += _nats_of_rows(model, rows)
    num_bytes = sum(len(text.encode()) for text in texts)
    return Loss(per_token=nats / (len(tokens) - 1), per_byte=nats / num_bytes)


def measure_unigram(tokens: Tensor, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Loss:
    """Loss of a model that knows only how often each token stands in `tokens`."""
    counts = torch.bincount(tokens, minlength=VOCABULARY).double() + 1  # none has probability 0
    nats = counts.sum().log() - counts.log()
    held_out = encode(tokenizer, texts)[1:]
    total = nats[held_out].sum().item()
    num_bytes = sum(len(text.encode()) for text in texts)
    return Loss(per_token=total / len(held_out), per_byte=total / num_bytes)


def _warm_up_and_decay(done: float) -> float:
    if done < 0.1:
        return max(done / 0.1, 0.02)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))


def _sample(tokens: dict[str, Tensor], mix: dict[str, float], generator: torch.Generator) -> Tensor:
    """One batch, (BATCH, SEQUENCE)."""
    domains = list(mix)
    shares = torch.tensor([mix[domain] for domain in domains])
    chosen = torch.multinomial(shares, BATCH, replacement=True, generator=generator)
    rows = []
    for index in chosen.tolist():
        row = tokens[domains[index]]
        start = int(torch.randint(len(row) - SEQUENCE, (), generator=generator))
        rows.append(row[start : start + SEQUENCE])
    return torch.stack(rows)


def _nats_of_rows(model: PreTrainedModel, tokens: Tensor) -> float:
    """Summed loss over `tokens[1:]`, in windows of WINDOW; the last one may be shorter."""
    inputs, labels = tokens[:-1], tokens[1:]
    whole = len(inputs) // WINDOW * WINDOW
    parts = [(inputs[:whole].view(-1, WINDOW), labels[:whole])] if whole else []
    if whole < len(inputs):
        parts.append((inputs[whole:].view(1, -1), labels[whole:]))
    nats = 0.0
    for batch, targets in parts:
        logits = model(input_ids=batch, use_cache=False).logits.flatten(0, 1).float()
        nats += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return nats
