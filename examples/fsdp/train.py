"""Train a small network whose weights are sharded over any number of ranks: torchrun --nproc-per-node=2 train.py."""

import os

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import unbroken
from unbroken.data import ResumableSampler

STEPS = int(os.environ.get("FSDP_STEPS", "150"))
WIDTH = int(os.environ.get("FSDP_WIDTH", "256"))
SAMPLES, FEATURES, CLASSES, BATCH = 2000, 64, 10, 16

kind = "cuda" if torch.cuda.is_available() else "cpu"
device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
if kind == "cuda":
    torch.cuda.set_device(device)
mesh = init_device_mesh(kind, (int(os.environ["WORLD_SIZE"]),))  # and the process group: NCCL on GPUs, else gloo
torch.set_num_threads(1)  # the same sums in the same order, however many cores a machine has
torch.manual_seed(1)

labels = torch.randint(CLASSES, (SAMPLES,))
dataset = TensorDataset(torch.randn(CLASSES, FEATURES)[labels] + 3 * torch.randn(SAMPLES, FEATURES), labels)
sampler = ResumableSampler(dataset, batch_size=BATCH, seed=1)
loader = sampler.loader(dataset)


class Block(nn.Module):
    """A residual layer: the unit that is gathered, used, and let go again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


model = nn.Sequential(nn.Linear(FEATURES, WIDTH), Block(), Block(), nn.Linear(WIDTH, CLASSES)).to(device)
for layer in model:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)


def train_step(points: Tensor, labels: Tensor) -> Tensor:
    """Do one step on this rank's part of the batch; returns the mean loss of all ranks."""
    loss = F.cross_entropy(model(points.to(device)), labels.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    mean = loss.detach()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


with unbroken.Run("runs/fsdp", every=10, state={"model": model, "optimizer": optimizer, "data": sampler}) as run:
    batches = iter(loader)
    for step in run.steps(until=STEPS):
        loss = train_step(*next(batches))
        run.log(loss=loss.item())
        if dist.get_rank() == 0 and (step + 1) % 25 == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)

dist.destroy_process_group()
