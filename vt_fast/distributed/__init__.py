"""Maps whose pixels are shared out among processes: the ops over process groups of ``torch.distributed``.

A token is a weighted sum over pixels, so processes that hold parts of a map need only tell each other their
tokens, ``num_heads * L`` rows of C numbers, and never a pixel. The functions here are those of
:mod:`vt_fast.functional` with an argument ``group``; their backward passes are exact.

**Who holds what.** Each process holds some of the pixels: its part of x, and of all other operands and
results that have a number for each pixel. They may be unequal parts, and empty ones. Everything else (rows,
tokens, statistics) every process holds alike. These hold the same bits on every process, and
in each run with the same number of processes.

**Gradients.** The loss is the sum of what the processes find for their pixels, plus what they all compute
alike from tokens, counted once. So every process must run the same backward pass. Gradients that arrive for
tokens must be the same on every process, as for DTensors with the placement ``Replicate``: they are not
summed. Each process gets the gradient of its own part of x, and the whole gradient of the rows, summed over
the processes: no wrapper such as DDP may sum it again over this group.

**Failures.** Where a process ends, or does not answer within the time-out of its group
(``init_process_group(timeout=...)``), the others raise a RuntimeError from their next exchange; so they do
where processes have made different calls.

The public functions of :mod:`vt_fast.functional` and the modules of :mod:`vt_fast.nn` take DTensors of maps
that are sharded over their pixels, and do the same. For maps (B, C, H, W) these are Shard(2) or Shard(3), for
(B, N, C) Shard(1). Parameters are plain, or of FSDP2 along another dimension of the mesh, and get their whole
gradients on every process of the dimension that shards pixels. Other ops of PyTorch's redistribute a DTensor
whose dimension is smaller than the number of processes that share it out. The raw ops ``torch.ops.vt_fast``
take maps whose samples are sharded, after ``import vt_fast.distributed.dtensors``, and refuse others.
"""

from __future__ import annotations

from vt_fast.distributed.functions import project, project_tokenize, shared, tokenize

__all__ = ["project", "project_tokenize", "shared", "tokenize"]
