"""Whole networks in two processes end with the weights that one process finds with the whole batch.

In float64, and with the statistics of batch norm fixed, so that only the order of sums differs.
"""

import contextlib
import copy
import functools
import tempfile

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests._support import model_cases
from tests._support.two_processes import two_processes
from vt_fast import models
from vt_fast.models.resnet import BasicBlock, ResNet
from vt_fast.nn import VisualTransformer

SMALL = {"num_tokens": 4, "token_channels": 32, "token_groups": 2}
CLASSES = 5


def classifier():
    backbone = ResNet(18, stages=2)
    return models.VTResNet(
        None, CLASSES, backbone=backbone, num_blocks=2, token_norm="layer", group_width=32, **SMALL
    )


def segmenter():
    backbone = ResNet(18, stages=2)
    return models.vt_fpn(
        18, CLASSES, backbone=backbone, channels=32, head_channels=32, query_groups=2, **SMALL
    )


@functools.cache
def made_once(make):
    torch.manual_seed(1)
    net = model_cases.made(make)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    return net


def made(make):
    return copy.deepcopy(made_once(make))


def data():
    """Two batches of 4 images, and labels for either network."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(2, 4, 3, 40, 24, generator=generator, dtype=torch.float64)
    classes = torch.randint(CLASSES, (2, 4), generator=generator)
    return list(zip(images, classes, strict=True))


class Training:
    """SGD with momentum, and an average of the weights.

    Args:
        net: as it is trained.
        inside: the net whose weights are averaged.
        share: of a batch, one slice for each pass; gradients of all but the last pass stay in the process.
        alone: makes a context for such passes.
    """

    def __init__(self, net, inside, share, alone=contextlib.nullcontext):
        self.net, self.share, self.alone = net, share, alone
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        self.average = AveragedModel(inside, multi_avg_fn=get_ema_multi_avg_fn(0.5))

    def step(self, images, classes):
        for index, part in enumerate(self.share):
            last = index == len(self.share) - 1
            with contextlib.nullcontext() if last else self.alone():
                logits = self.net(images[part])
                target = classes[part].reshape(-1, *[1] * (logits.dim() - 2))
                target = target.expand(logits.shape[0], *logits.shape[2:])
                (F.cross_entropy(logits, target) / len(self.share)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(getattr(self.net, "module", self.net))


@functools.cache
def trained(make):
    """The weights that one process finds, and their average."""
    one = made(make)
    training = Training(one, one, [slice(None)])
    for batch in data():
        training.step(*batch)
    return full(one), full(training.average.module)


def full(net):
    """Weights of any network, by the names that they have without wrappers."""
    return {
        name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", ""): getattr(
            value, "full_tensor", lambda value=value: value
        )().detach()
        for name, value in net.named_parameters()
    }


def assert_trained(make, training, inside):
    for found, expected in zip((inside, training.average.module), trained(make), strict=True):
        weights = full(found)
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert any(not torch.equal(value, expected[name]) for name, value in full(made(make)).items())


def quarters(rank):
    return [slice(2 * rank, 2 * rank + 1), slice(2 * rank + 1, 2 * rank + 2)]


def check_ddp(rank):
    for make in (classifier, segmenter):
        net = made(make)
        if make is classifier:
            net.set_grad_checkpointing()
        ddp = DistributedDataParallel(net)
        training = Training(ddp, net, quarters(rank), ddp.no_sync)
        for batch in data():
            training.step(*batch)
        assert_trained(make, training, net)


def shard(net):
    """FSDP2 on blocks and on the members of a neck, all of which the backward pass computes again."""
    blocks = [part for part in net.modules() if isinstance(part, BasicBlock | VisualTransformer)]
    for part in net.modules():
        if isinstance(part, models.VTFPN):
            blocks += [*part.tokenizers, part.transformer, *part.projectors]
    apply_activation_checkpointing(net, check_fn=lambda part: part in blocks)
    mesh = init_device_mesh("cpu", (2,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def start(make, rank):
    net = shard(made(make))

    @contextlib.contextmanager
    def alone():
        net.set_requires_gradient_sync(False)
        yield
        net.set_requires_gradient_sync(True)

    # FSDP2 refuses to be copied, so the average is made before it is sharded.
    training = Training(net, made(make), quarters(rank), alone)
    shard(training.average.module)
    return net, training


def state(net, training):
    weights, optimizer = get_state_dict(net, training.optimizer)
    return {"weights": weights, "optimizer": optimizer, "average": training.average.state_dict()}


def check_fsdp2(rank):
    """Stopped after the first step and resumed, it ends with the same bits."""
    folder = [tempfile.mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(folder)
    for make in (classifier, segmenter):
        net, training = start(make, rank)
        first, second = data()
        training.step(*first)
        path = f"{folder[0]}/{make.__name__}"
        checkpoint.save(state(net, training), checkpoint_id=path)
        training.step(*second)
        assert_trained(make, training, net)

        again, resumed = start(make, rank)
        loaded = state(again, resumed)
        checkpoint.load(loaded, checkpoint_id=path)
        set_state_dict(
            again,
            resumed.optimizer,
            model_state_dict=loaded["weights"],
            optim_state_dict=loaded["optimizer"],
        )
        resumed.average.load_state_dict(loaded["average"])
        resumed.step(*second)
        for found, expected in ((again, net), (resumed.average.module, training.average.module)):
            for value, exact in zip(found.parameters(), expected.parameters(), strict=True):
                assert torch.equal(value.to_local(), exact.to_local())


def test_networks_in_two_processes():
    two_processes(check_ddp, check_fsdp2)
