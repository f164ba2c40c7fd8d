"""torch: the loop of its tutorials over batches indexed on the device, fused Adam."""

import torch
from torch.nn import functional

from .nets_torch import make_net, make_tensors
from .workloads import LEARNING_RATE


def train(job, turns, threads=None, compiled=False):
    if threads is not None:
        torch.set_num_threads(threads)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.set_float32_matmul_precision('high')  # TF32 on a GPU, as JAX
    net = make_net(job.workload, job.weights).to(device)
    x, y = (tensor.to(device) for tensor in make_tensors(job))
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE, fused=True)
    # Not dynamic: an incomplete last batch has a program of its own.
    model = torch.compile(net, mode='reduce-overhead', dynamic=False) if compiled else net
    batch_size = job.workload.batch_size
    turns.start()
    for _ in range(job.epochs):
        order, losses = torch.randperm(len(x), device=device), []
        for first in range(0, len(x), batch_size):
            rows = order[first : first + batch_size]
            if compiled:
                torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad()
            outputs = model(x[rows])
            loss = functional.cross_entropy(outputs.flatten(0, -2), y[rows].flatten())
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        turns.over(torch.stack(losses).mean().item())
