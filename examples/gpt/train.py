"""Train a small character-level GPT on the source text of Python's own standard library, on one CPU core.

GPT_STEPS, GPT_WIDTH, GPT_LAYERS, GPT_CONTEXT and GPT_BATCH in the environment change its size.
"""

import os
import random
import zlib
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unbroken

STEPS = int(os.environ.get("GPT_STEPS", "300"))
WIDTH = int(os.environ.get("GPT_WIDTH", "128"))
LAYERS = int(os.environ.get("GPT_LAYERS", "4"))
CONTEXT = int(os.environ.get("GPT_CONTEXT", "64"))
BATCH = int(os.environ.get("GPT_BATCH", "16"))
HEADS, DROPOUT, TEXT_BYTES = 4, 0.1, 1_000_000


def read_text() -> str:
    """The standard library's modules, in the order of their names, up to TEXT_BYTES."""
    pieces, size = [], 0
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        piece = path.read_bytes()[: TEXT_BYTES - size]
        pieces.append(piece.decode("utf-8", errors="ignore"))
        size += len(piece)
    return "".join(pieces)


class Block(nn.Module):
    """One transformer layer: attention to the characters so far, then a small network for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.merge = nn.Linear(WIDTH, WIDTH)
        self.network_norm = nn.LayerNorm(WIDTH)
        self.network = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(DROPOUT)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.dropout(self.merge(seen.transpose(1, 2).flatten(2)), DROPOUT, self.training)
        return x + self.network(self.network_norm(x))


class GPT(nn.Module):
    """Logits of the next character at every position; inputs are (batch, length) of character numbers."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.character = nn.Embedding(characters, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, characters, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1])
        return self.head(self.norm(self.blocks(self.character(x) + self.position(positions))))


torch.set_num_threads(1)  # the same sums in the same order, however many cores a machine has
random.seed(1)
numpy.random.seed(1)
torch.manual_seed(1)

text = read_text()
numbers = {character: number for number, character in enumerate(sorted(set(text)))}
data = torch.tensor([numbers[character] for character in text])

model = GPT(len(numbers))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS)
data_order = torch.Generator().manual_seed(2)


def train_step(step: int) -> tuple[float, int]:
    """Do one step on freshly drawn text; returns its loss and a checksum of the text it saw."""
    starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,), generator=data_order)
    batch = torch.stack([data[start : start + CONTEXT + 1] for start in starts])
    loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    if (step + 1) % 20 == 0:
        print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    return loss.item(), zlib.crc32(batch.numpy().tobytes())


state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "data_order": data_order}
with unbroken.Run("runs/gpt", every=20, state=state) as run:
    for step in run.steps(until=STEPS):
        loss, batch = train_step(step)
        run.log(loss=loss, batch=batch)

print(f"trained {STEPS} steps")
