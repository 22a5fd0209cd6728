"""Members in two processes: DDP, and both versions of FSDP, with checkpointing inside."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

from tests._support.nn_cases import C, L, every_kind, feature_map, made
from tests._support.two_processes import two_processes
from vt_fast.nn import (
    GroupedLinear,
    PositionCode,
    Projector,
    Tokenizer,
    TokenRelation,
    VisualTransformer,
    VisualTransformerStack,
)

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu]

KINDS = {
    "layers": (GroupedLinear, PositionCode, nn.LayerNorm),
    "members": (Tokenizer, TokenRelation, Projector),
    "blocks": (VisualTransformer,),
}


def loss(results):
    return sum(result.sin().mean() for result in results)


def train(module, x):
    """Two steps of SGD; the results before them."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    first = module(x)
    loss(first).backward()
    optimizer.step()
    optimizer.zero_grad()
    loss(module(x)).backward()
    optimizer.step()
    return first


def check(rank, wrap, parameters, make=every_kind):
    """Wrapped and trained with half of the batch each, it ends as the one that one process has trained."""
    x = feature_map("contiguous").detach()
    plain = made(make)
    module, expected = copy.deepcopy(plain), copy.deepcopy(plain)
    wrapped = wrap(module)
    assert module.passes == plain.passes
    results = train(expected, x)
    for found, exact in zip(train(wrapped, x[rank : rank + 1]), results, strict=True):
        torch.testing.assert_close(found[0], exact[rank], rtol=0, atol=1e-12)
    found = parameters(wrapped)
    for name, value in expected.named_parameters():
        assert not torch.equal(value, plain.get_parameter(name)), name
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10, msg=name)


def of_ddp(module):
    return dict(module.module.named_parameters())


def check_ddp(rank):
    check(rank, DistributedDataParallel, of_ddp)
    check(rank, lambda module: DistributedDataParallel(module, static_graph=True), of_ddp)


def check_fsdp1(rank):
    def parameters(module):
        with FullyShardedDataParallel.summon_full_params(module):
            return {
                name.replace("_fsdp_wrapped_module.", ""): value.detach().clone()
                for name, value in module.named_parameters()
            }

    for kind in KINDS.values():
        options = {"auto_wrap_policy": ModuleWrapPolicy(set(kind)), "device_id": torch.device("cpu")}

        def wrap(module, options=options):
            return FullyShardedDataParallel(module, use_orig_params=True, **options)

        check(rank, wrap, parameters)
        # Members then hold no parameters of their own.
        flat = FullyShardedDataParallel(made(every_kind), use_orig_params=False, **options)
        x = feature_map("contiguous").detach()
        loss(flat(x)).backward()
        for found, exact in zip(flat(x), made(every_kind)(x), strict=True):
            torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


def sharded(kind, checkpointed=False, **options):
    def wrap(module):
        if checkpointed:
            apply_activation_checkpointing(module, check_fn=lambda part: isinstance(part, kind))
        options["mesh"] = init_device_mesh("cpu", (2,))
        parts = [part for part in module.modules() if isinstance(part, kind)]
        for part in reversed(parts):
            fully_shard(part, **options)
        return fully_shard(module, **options)

    return wrap


def of_fsdp2(module):
    return {
        name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", ""): value.full_tensor()
        for name, value in module.named_parameters()
    }


def check_fsdp2(rank):
    for kind in KINDS.values():
        check(rank, sharded(kind), of_fsdp2)
    check(rank, sharded(VisualTransformer, checkpointed=True), of_fsdp2)


def check_mixed_precision(rank):
    """Parameters that are bfloat16 while a member runs: the results of a module in bfloat16."""
    plain, x = made(every_kind, dtype=torch.float32), feature_map("contiguous", dtype=torch.float32).detach()
    narrow = copy.deepcopy(plain).bfloat16()(x.bfloat16())
    for kind in KINDS.values():
        first = FullyShardedDataParallel(
            copy.deepcopy(plain),
            auto_wrap_policy=ModuleWrapPolicy(set(kind)),
            device_id=torch.device("cpu"),
            mixed_precision=MixedPrecision(torch.bfloat16),
        )
        second = sharded(kind, mp_policy=MixedPrecisionPolicy(torch.bfloat16))(copy.deepcopy(plain))
        for module in (first, second):
            results = module(x)
            loss(results).backward()
            for found, exact in zip(results, narrow, strict=True):
                assert torch.equal(found, exact)


def small():
    return VisualTransformerStack(C, 2, num_tokens=L)


def check_compiled(rank):
    def compiled(wrap):
        return lambda module: torch.compile(wrap(module), backend="eager")

    check(rank, compiled(DistributedDataParallel), of_ddp, small)
    check(rank, compiled(sharded(VisualTransformer)), of_fsdp2, small)


def check_other_methods_of_fsdp2(rank):
    """The reference, and attention maps where PyTorch is told about the method."""
    plain = made(every_kind)
    module, x = copy.deepcopy(plain), feature_map("contiguous").detach()
    module = sharded(KINDS["blocks"])(module)
    for block in module:
        register_fsdp_forward_method(block, "attention_maps")
    for found, exact in zip(module.attention_maps(x), plain.attention_maps(x), strict=True):
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)
    layers = sharded(KINDS["layers"])(copy.deepcopy(plain))
    layers.backend = "reference"
    for found, exact in zip(layers(x), plain(x), strict=True):
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


def test_members_in_two_processes():
    two_processes(
        *(check_ddp, check_fsdp1, check_fsdp2, check_mixed_precision),
        *(check_other_methods_of_fsdp2, check_compiled),
    )
