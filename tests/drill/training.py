"""A small training that the drill's tests interrupt. Its argument says what is wrong with it:

``sound``, ``order`` (the generator of its batches is not in the state), ``entropy`` (not deterministic by itself), or
``short``.
"""

import sys
import time

import torch
from torch import nn

import unbroken

flaw = sys.argv[1]
torch.set_num_threads(1)
torch.manual_seed(1)
data = torch.randn(64, 4)
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 20)
order = torch.Generator().manual_seed(2)
if flaw == "entropy":
    order.seed()
state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "order": order}
if flaw == "order":
    del state["order"]

with unbroken.Run("nowhere", every=1000, state=state) as run:
    for _ in run.steps(until=12 if flaw == "short" else 120):
        batch = torch.randint(len(data), (8,), generator=order)
        loss = model(data[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        run.log(loss=loss.item(), batch=int(batch.sum()))
        time.sleep(0.02)
