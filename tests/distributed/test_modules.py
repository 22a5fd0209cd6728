"""Modules over maps whose pixels are sharded: results and gradients of one process, and no map gathered."""

import copy

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

from tests._support import nn_cases, sharding
from tests._support.comparing import assert_close
from tests._support.nn_cases import CT, C, D, L, every_kind, feature_map, made
from tests._support.two_processes import processes
from tools.sharding import Traffic
from vt_fast.models import VTFPN
from vt_fast.nn import (
    ClusteringTokenizer,
    PoolingTokenizer,
    PositionCode,
    VisualTransformer,
    VisualTransformerStack,
)

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu]

BLOCKS = {
    "block": lambda: VisualTransformer(C, L, token_channels=CT, out_channels=D),
    "heads": lambda: VisualTransformer(C, L, tokenizer="static", num_heads=4, group_width=6, variant="v1"),
    "no projector": lambda: VisualTransformer(C, L, projector=False),
    "tokens added": lambda: VisualTransformer(C, L, projector_value=False, relation="graph"),
}


def shard(x, mesh, dim):
    return distribute_tensor(x.detach(), mesh, [Shard(dim)], src_data_rank=None).requires_grad_()


def whole(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


def loss(results):
    """A sum over pixels, and one over tokens that every process computes alike."""
    return sum(whole((result.sin() * 0.1).sum()) for result in results)


def flat(results):
    return [result for result in results if result is not None]


def compare(plain, run, inputs, mesh, dim):
    """The module finds the same, gets the same gradients, and sends no map."""
    module = copy.deepcopy(plain)
    wanted_inputs = [x.detach().requires_grad_() for x in inputs]
    expected = flat(run(plain, wanted_inputs))
    loss(expected).backward()
    sharded = [shard(x, mesh, dim) for x in inputs]
    with Traffic() as forward:
        found = flat(run(module, sharded))
    total = loss(found)
    with Traffic() as backward:
        total.backward()
    for mine, result in zip(found, expected, strict=True):
        assert isinstance(mine, DTensor) == (result.dim() == 4 or result.shape[1] > L)
        assert_close(whole(mine), result)
    for mine, x in zip(sharded, wanted_inputs, strict=True):
        assert mine.grad.placements == mine.placements
        assert_close(whole(mine.grad), x.grad)
    gradients = []
    for name, parameter in plain.named_parameters():
        mine = module.get_parameter(name).grad
        assert (mine is None) == (parameter.grad is None), name
        if mine is not None:
            assert_close(mine, parameter.grad, name)
            gradients.append(mine)
    sharding.assert_same_bits([*gradients, *(each for each in found if not isinstance(each, DTensor))])
    for sent in forward.sent + backward.sent:
        assert sent[0] == "_allgather_base_"
    return forward, backward


def check_blocks(rank):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for index, make in enumerate(BLOCKS.values()):
        for form in nn_cases.FORMS:
            dim = 1 if form == "rows" else 2 + index % 2
            compare(made(make), lambda module, x: module(*x), [feature_map(form)], mesh, dim)


def check_stack(rank):
    """With members of every kind and position codes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    module = made(every_kind)
    mask = torch.rand(nn_cases.B, nn_cases.H, nn_cases.W, generator=torch.Generator().manual_seed(7)) < 0.7
    for given in (None, mask):

        def run(module, x, given=given):
            return module(*x, mask=given)

        forward, _ = compare(made(every_kind), run, [feature_map("contiguous")], mesh, 2)
        assert len(forward.sent) == len(module)  # one for the tokens of each block


def check_stack_that_ends_in_tokens(rank):
    """Of plain maps it keeps factors of the wide one; of sharded maps it does not."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def make():
        return VisualTransformerStack(
            C, 3, num_tokens=L, token_channels=CT, out_channels=96, last_projector=False
        )

    assert "weights of tokens" in repr(make())
    compare(made(make), lambda module, x: module(*x), [feature_map("contiguous")], mesh, 2)


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.neck = VTFPN((6, 8), 12, num_tokens=3, token_channels=16, token_groups=2, query_groups=3)

    def forward(self, maps):
        return self.neck(maps)


def pyramid_maps():
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
        for channels, size in ((6, (9, 5)), (8, (4, 3)))
    ]


def check_pyramid(rank):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    maps = pyramid_maps()
    for dim in (2, 3):
        compare(made(Pyramid), lambda module, x: module(x), maps, mesh, dim)
    normed = VTFPN((6, 8), 12, norm_layer=nn.BatchNorm2d, query_groups=3).double()
    with pytest.raises(
        ValueError, match="`norm_layer` must be None where maps are sharded over their pixels"
    ):
        normed([shard(x, mesh, 2) for x in maps])


def check_parameters_as_dtensors(rank):
    """With parameters that are replicated DTensors, tokens are DTensors too."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plain = made(lambda: VisualTransformer(C, L, token_norm="layer"))
    x = feature_map("rows")
    expected = plain(x)
    loss(expected).backward()
    module = distribute_module(copy.deepcopy(plain), mesh)
    sharded = shard(x, mesh, 1)
    found = module(sharded)
    assert found[1].placements == (Replicate(),)
    for mine, result in zip(found, expected, strict=True):
        assert_close(whole(mine), result)
    sum(whole((each.sin() * 0.1).sum()) for each in found).backward()
    assert_close(whole(sharded.grad), x.grad)
    for name, parameter in plain.named_parameters():
        assert_close(whole(module.get_parameter(name).grad), parameter.grad, name)


class OwnCode(PositionCode):
    def table(self, height, width):
        return torch.ones(height * width, self.features, dtype=torch.float64)

    def _reference(self, attention, size):
        raise NotImplementedError

    def _cells(self):
        raise NotImplementedError


def check_what_is_refused(rank):
    """What would need all pixels, and so gather the map."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    x = shard(feature_map("contiguous"), mesh, 2)
    refused = "`x` must not be sharded over its pixels"
    for make in (lambda: ClusteringTokenizer(C, L), lambda: PoolingTokenizer(C, L)):
        with pytest.raises(ValueError, match=refused):
            make().double()(x)
    block = made(lambda: VisualTransformer(C, L, position="conv"))
    with pytest.raises(ValueError, match=r"`x` must be sharded over its rows \(dimension 2\)"):
        block(shard(feature_map("contiguous"), mesh, 3))
    for module in (block, made(lambda: VisualTransformer(C, L, tokenizer="static", num_heads=2))):
        with pytest.raises(ValueError, match=refused):
            module.attention_maps(x)
    for part in (block.tokenizer, block.projector):
        part.backend = "reference"
        with pytest.raises(ValueError, match=refused):
            part(x, torch.zeros(2, L, C, dtype=torch.float64))
    own = VisualTransformer(C, L, position=OwnCode(3, 2)).double()
    with pytest.raises(ValueError, match="where OwnCode has a table of its own"):
        own(x)


def check_fsdp2(rank):
    """Parameters sharded along one dimension of a mesh, pixels along the other."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "pixels"))
    x = feature_map("contiguous")
    plain = made(every_kind)
    expected = plain(x)
    loss(expected).backward()
    module = copy.deepcopy(plain)
    for part in module.modules():
        if isinstance(part, VisualTransformer):
            fully_shard(part, mesh=mesh["data"])
    fully_shard(module, mesh=mesh["data"])
    sample = rank // 2
    own = shard(x[sample : sample + 1], mesh["pixels"], 2)
    found = module(own)
    for mine, result in zip(found, expected, strict=True):
        assert_close(whole(mine)[0], result[sample])
    # FSDP takes the mean over the samples.
    (2 * loss(found)).backward()
    assert_close(whole(own.grad)[0], 2 * x.grad[sample])
    for name, parameter in module.named_parameters():
        assert_close(whole(parameter.grad), plain.get_parameter(name).grad, name)


def check_fsdp2_on_a_pyramid(rank):
    """As a whole, and on its members."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "pixels"))
    maps = pyramid_maps()
    plain = made(Pyramid)
    wanted = [x.clone().requires_grad_() for x in maps]
    expected = plain(wanted)
    loss(expected).backward()
    for on_members in (False, True):
        module = copy.deepcopy(plain)
        module.zero_grad()
        neck = module.neck
        if on_members:
            for part in (*neck.tokenizers, neck.transformer, *neck.projectors):
                fully_shard(part, mesh=mesh["data"])
        fully_shard(module, mesh=mesh["data"])
        sample = rank // 2
        own = [shard(x[sample : sample + 1], mesh["pixels"], 2) for x in maps]
        found = module(own)
        (2 * loss(found)).backward()
        for mine, result in zip(found, expected, strict=True):
            assert_close(whole(mine)[0], result[sample])
        for mine, x in zip(own, wanted, strict=True):
            assert_close(whole(mine.grad)[0], 2 * x.grad[sample])
        for name, parameter in module.named_parameters():
            assert_close(whole(parameter.grad), plain.get_parameter(name).grad, name)


def test_two_processes():
    processes(
        2,
        check_blocks,
        check_stack,
        check_stack_that_ends_in_tokens,
        check_pyramid,
        check_parameters_as_dtensors,
        check_what_is_refused,
    )


def test_three_processes_one_without_pixels_of_a_level():
    processes(3, check_stack, check_pyramid)


def test_fsdp2_on_a_mesh_of_four():
    processes(4, check_fsdp2, check_fsdp2_on_a_pyramid)
