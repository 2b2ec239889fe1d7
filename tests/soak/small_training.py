"""A small training whose every step changes every kind of tensor. With a number N it prints the digests of N steps."""

from __future__ import annotations

import json
import sys

import torch
from tensor_digest import digest
from torch import nn

torch.set_num_threads(1)  # other numbers of threads add up in another order


class Training:
    """About 4 MB of state: large parameters and optimizer state, buffers, a frozen table, an average, generators."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.table = nn.Embedding(512, 128).requires_grad_(False)
        self.model = nn.Sequential(nn.Linear(128, 1024), nn.BatchNorm1d(1024), nn.Dropout(0.1), nn.Linear(1024, 128))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.average = self.model[3].weight.detach().clone()
        self.order = torch.Generator().manual_seed(7)
        self.state = {
            "table": self.table, "model": self.model, "optimizer": self.optimizer, "average": self.average,
            "order": self.order,
        }  # fmt: skip

    def step(self) -> None:
        rows = self.table(torch.randint(512, (8,), generator=self.order))
        loss = (self.model(rows) - rows).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.average.lerp_(self.model[3].weight.detach(), 0.1)

    def digests(self) -> dict[str, str]:
        """Of the bytes of each tensor, by the name that it has in a checkpoint."""
        tensors = {f"table/{name}": tensor for name, tensor in self.table.state_dict().items()}
        tensors |= {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        for number, held in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/state/{number}/{name}": tensor for name, tensor in held.items()}
        tensors |= {"average": self.average, "order": self.order.get_state(), "rng/torch": torch.get_rng_state()}
        return {name: digest(tensor.numpy().tobytes()) for name, tensor in tensors.items()}


if __name__ == "__main__":
    training = Training()
    truth = []
    for _ in range(int(sys.argv[1])):
        training.step()
        truth.append(training.digests())
    json.dump(truth, sys.stdout)
