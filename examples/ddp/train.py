"""Train a small network by DistributedDataParallel, with any number of ranks: torchrun --nproc-per-node=2 train.py.

DDP_STEPS and DDP_WIDTH in the environment change its size.
"""

import os

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

import unbroken
from unbroken.data import ResumableSampler

STEPS = int(os.environ.get("DDP_STEPS", "150"))
WIDTH = int(os.environ.get("DDP_WIDTH", "512"))
SAMPLES, FEATURES, CLASSES, BATCH = 2000, 64, 10, 16


class Clusters(Dataset[tuple[Tensor, Tensor]]):
    """Points around ten centres, drawn from their numbers."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
        centres = torch.randn(CLASSES, FEATURES, generator=generator)
        self.points = centres[self.labels] + 3 * torch.randn(SAMPLES, FEATURES, generator=generator)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.points[number], self.labels[number]


cuda = torch.cuda.is_available()
dist.init_process_group("nccl" if cuda else "gloo")
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
torch.set_num_threads(1)  # the same sums in the same order, however many cores a machine has
torch.manual_seed(1)

dataset = Clusters()
sampler = ResumableSampler(dataset, batch_size=BATCH, seed=1)
loader = sampler.loader(dataset)
network = nn.Sequential(
    nn.Linear(FEATURES, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH), nn.Dropout(0.1), nn.Linear(WIDTH, WIDTH), nn.GELU(),
    nn.Linear(WIDTH, CLASSES),
).to(device)  # fmt: skip
# Otherwise DDP rearranges its buckets after the first step of each process, and in what order more than two ranks are
# added up depends on them: the first step after a restart would differ in its last bits from one without a restart.
model = DistributedDataParallel(network, find_unused_parameters=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
torch.manual_seed(2 + dist.get_rank())  # dropout: each rank its own


def train_step(points: Tensor, labels: Tensor) -> Tensor:
    """Do one step on this rank's part of the batch; returns the mean loss of all ranks."""
    loss = F.cross_entropy(model(points.to(device)), labels.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    mean = loss.detach()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


with unbroken.Run("runs/ddp", every=10, state={"model": model, "optimizer": optimizer, "data": sampler}) as run:
    batches = iter(loader)
    for step in run.steps(until=STEPS):
        loss = train_step(*next(batches))
        run.log(loss=loss.item())
        if dist.get_rank() == 0 and (step + 1) % 25 == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)

dist.destroy_process_group()
