"""pytorch#153354 (same message): FSDP2's usual recipe, one fully_shard per block and one for the root."""

import os
import sys
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from vt_fast.nn import VisualTransformerStack

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
dist.init_process_group("gloo", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
net = VisualTransformerStack(32, 2, num_tokens=4)
for block in net.blocks:
    fully_shard(block, mesh=mesh)
fully_shard(net, mesh=mesh)
failed = None
try:
    y, tokens = net(torch.randn(2, 32, 6, 6))
    (y.sum() + tokens.sum()).backward()
except RuntimeError as error:
    failed = str(error)[:120]
dist.destroy_process_group()
sys.exit(failed)
