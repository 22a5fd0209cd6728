"""The stack: how many passes it makes, what it never writes, and when it runs module by module."""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests._support.nn_cases import (
    CT,
    STACKS,
    C,
    D,
    L,
    assert_same,
    build,
    feature_map,
    incoming,
    made,
    outputs_and_gradients,
    stack,
)
from vt_fast import nn
from vt_fast.nn import GroupedLinear, Projector, VisualTransformerStack
from vt_fast.testing import assert_as_accurate

PASSES = {
    "default": ["tokenize", "project_tokenize", "project_tokenize", "project"],
    "one": ["tokenize", "project"],
    "tokens only": ["tokenize", "project_tokenize", "project_tokenize"],
    "paper's counts": ["tokenize", "project_tokenize", "project_tokenize"],
    "position and heads": ["tokenize", "project_tokenize", "project"],
    "later position": ["tokenize", "project_tokenize", "project"],
    "v1, fused": ["tokenize", "project_tokenize", "project"],
    "v1, codes on both, tokens added": ["tokenize", "project_tokenize", "project"],
    "v1, several heads": ["tokenize", "project", "tokenize", "project"],
    "filters only": ["tokenize", "project_tokenize", "project"],
    "clustering": ["tokenize", "project", "tokenize", "project"],
    "pooling": ["project", "project"],
    "other numbers of tokens": ["tokenize", "project_tokenize", "project_tokenize", "project"],
    "map as factors, position": ["tokenize", "project_tokenize", "project_tokenize"],
    "map as factors, later position": ["tokenize", "project_tokenize", "project_tokenize"],
    "a module without projector": ["tokenize", "tokenize", "project", "project_tokenize"],
}


class Recorder(TorchDispatchMode):
    """Notes the package's ops, and every tensor that any other op newly allocates."""

    def __init__(self):
        super().__init__()
        self.ops, self.maps_written, self.created = [], [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        tensors = (
            [item for item in results if isinstance(item, torch.Tensor)]
            if isinstance(results, tuple)
            else [results]
        )
        if func.namespace == "vt_fast":
            name = func._opname.removesuffix("_torch")  # that backend's own op
            self.ops.append(name)
            self.maps_written.append(tensors[0].numel() if name != "tokenize" else 0)
        else:
            known = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
            for tensor in tensors:
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                    self.created.append((str(func), tensor.numel()))
        return results


@pytest.mark.parametrize("name", STACKS)
def test_passes_over_the_map(name):
    module = made(STACKS[name])
    with torch.no_grad(), Recorder() as recorder:
        module(feature_map("contiguous"))
    assert recorder.ops == PASSES[name]
    # The pooling tokenizer reads the map with a resize, which is no op of the package.
    assert module.passes == len(PASSES[name]) + sum(
        isinstance(block.tokenizer, nn.PoolingTokenizer) for block in module
    )


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_n_modules_are_n_plus_1_passes(depth):
    assert stack(C, depth).passes == depth + 1
    assert stack(C, depth, last_projector=False).passes == depth


def test_a_stack_for_tokens_writes_no_last_map():
    module = made(STACKS["tokens only"])
    x = feature_map("contiguous")
    with torch.no_grad(), Recorder() as recorder:
        y, _ = module(x)
    assert y is None
    assert recorder.maps_written == [0, x.numel(), 0]


@pytest.mark.parametrize("form", ["contiguous", "channels_last", "rows"])
@pytest.mark.parametrize("shortcut", [False, True])
def test_no_projection_touches_the_pixels(form, shortcut):
    """Outside of the ops nothing of the map's size is ever created, but for the one shortcut map."""
    channels, side = 16, 24
    module = made(
        lambda: stack(
            channels,
            3,
            num_tokens=3,
            token_channels=8,
            out_channels=32 if shortcut else 16,
            group_width=8,
            num_heads=2,
        )
    )
    x = torch.randn(2, channels, side, side, dtype=torch.float64)
    if form == "rows":
        x = x.flatten(2).transpose(1, 2).contiguous()
    elif form == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), Recorder() as recorder:
        module(x)
    large = [entry for entry in recorder.created if entry[1] >= 2 * side * side]
    assert len(large) == shortcut, large
    with torch.no_grad(), Recorder() as plain:
        module.backend = "reference"
        module(x)
    assert len([entry for entry in plain.created if entry[1] >= x.numel()]) > 10, (
        "the measure sees projections"
    )


@pytest.mark.parametrize("name", STACKS)
def test_equals_its_modules_one_by_one(name):
    module = made(STACKS[name])

    class OneByOne(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = module.blocks

        def forward(self, x, tokens=None):
            for block in self.blocks:
                y, tokens = block(x, tokens)
                x = x if y is None else y
            return y, tokens

    x = feature_map("contiguous")
    plain = OneByOne()
    y, tokens = plain(x)
    fused_y, fused_tokens = module(x)
    assert (y is None) == (fused_y is None)
    torch.testing.assert_close(fused_tokens, tokens, rtol=0, atol=1e-10)
    if y is not None:
        torch.testing.assert_close(fused_y, y, rtol=0, atol=1e-10)
    weights = torch.randn_like(tokens)
    fused = torch.autograd.grad((fused_tokens * weights).sum(), x)[0]
    torch.testing.assert_close(fused, torch.autograd.grad((tokens * weights).sum(), x)[0], rtol=0, atol=1e-10)


class TestFactors:
    """Where a stack ends in tokens, its wide map may be kept as factors."""

    def test_the_wide_map_is_never_made(self):
        module, x = made(STACKS["map as factors, position"]), feature_map("contiguous")
        assert module._weight_channels(x.device) == 2 * L
        assert "on a CPU, 24 channels and 8 weights of tokens in place of 48 channels" in repr(module)
        pixels = x.shape[2] * x.shape[3]
        with torch.no_grad(), Recorder() as recorder:
            module(x)
        assert recorder.maps_written == [0, x.shape[0] * (C + 2 * L) * pixels, 0]
        assert max(size for _, size in recorder.created) == x.shape[0] * (C + 2 * L) * pixels

    @pytest.mark.parametrize("form", ["contiguous", "channels_last", "rows"])
    @pytest.mark.parametrize("masked", [False, True])
    def test_results_and_all_gradients(self, form, masked, monkeypatch):
        module = made(
            lambda: stack(C, 3, num_tokens=L, out_channels=2 * C, token_channels=CT, last_projector=False)
        )
        x = feature_map(form)
        options = {"mask": torch.rand(x.shape[0], 63) < 0.7} if masked else {}
        found = outputs_and_gradients(module, x, incoming(module), **options)
        assert module._weight_channels(x.device) == 2 * L
        monkeypatch.setattr(VisualTransformerStack, "_weight_channels", lambda self, device: 0)
        for name, value in outputs_and_gradients(module, x, incoming(module), **options).items():
            torch.testing.assert_close(
                found[name], value, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
            )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_errors_are_at_most_twice_those_of_the_wide_map(self, dtype, monkeypatch):
        module = made(STACKS["map as factors, position"]).to(dtype)
        x = feature_map("contiguous").detach().to(dtype)
        found = module(x)[1]
        monkeypatch.setattr(VisualTransformerStack, "_weight_channels", lambda self, device: 0)
        plain, exact = module(x)[1], module.double()(x.double())[1]
        assert not torch.equal(found, plain)
        assert_as_accurate(found, exact, plain, terms=63 + 2 * C)

    @pytest.mark.parametrize("index", [0, 1])
    def test_a_relation_that_makes_more_tokens(self, index):
        """Than its tokenizer, so that there is no room for their weights."""

        class Thrice(torch.nn.Module):
            def forward(self, tokens):
                return torch.cat((tokens, tokens.sin(), tokens.cos()), 1)

        def blocks():
            for channels, projector in ((C, True), (2 * C, True), (2 * C, False)):
                yield build(
                    channels, num_tokens=L, token_channels=CT, out_channels=2 * C, projector=projector
                )

        parts = list(made(lambda: VisualTransformerStack.from_parts(blocks())))
        parts[index].transformer = Thrice()
        module = VisualTransformerStack.from_parts(parts)
        x = feature_map("channels_last")
        assert module._weight_channels(x.device) == 2 * L
        tokens, y = module(x)[1], x
        for block in parts:
            y, expected = block(y)
        torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-10)

    @pytest.mark.parametrize(
        "options",
        [
            {"last_projector": True},
            {"out_channels": C},
            {"out_channels": D},  # hardly wider
            {"num_heads": 2},
            {"later_tokenizer": "pooling"},
            {"backend": "reference"},
        ],
        ids=str,
    )
    def test_other_stacks_keep_their_map(self, options):
        wide = {"num_tokens": L, "out_channels": 2 * C, "last_projector": False}
        module = made(lambda: stack(C, 3, **wide | options))
        assert module._weight_channels(torch.device("cpu")) == 0
        assert "in place of" not in repr(module)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda projector: setattr(projector, "shortcut", GroupedLinear(C, 2 * C)), "groups or a bias"),
            (
                lambda projector: setattr(projector, "shortcut", GroupedLinear(C, 2 * C, 4, bias=False)),
                "groups or a bias",
            ),
            (
                lambda projector: setattr(
                    projector, "residual", lambda x: Projector.residual(projector, x) / 2
                ),
                "a residual of its own",
            ),
        ],
        ids=["bias", "groups", "residual"],
    )
    def test_what_else_a_shortcut_may_be(self, change, reason):
        module = made(lambda: stack(C, 3, num_tokens=L, out_channels=2 * C, last_projector=False))
        change(module[0].projector.double())
        module.double()
        assert reason in module[0].projector.why_no_factors()
        x, tokens = feature_map("contiguous"), None
        found, y = module(x)[1], x
        for block in module:
            y, tokens = block(y, *(() if tokens is None else (tokens,)))
        torch.testing.assert_close(found, tokens, rtol=0, atol=1e-10)

    def test_factors_must_be_possible_where_they_are_asked_for(self):
        x, tokens = torch.randn(2, C, 5, 5), torch.randn(2, L, C)
        for projector, defer, reason in (
            (Projector(C), True, "has no shortcut"),
            (Projector(C, out_channels=2 * C, num_heads=2), True, "has several heads"),
            (Projector(C, out_channels=2 * C, backend="reference"), True, 'has backend="reference"'),
            (Projector(C, out_channels=2 * C), False, "does not defer"),
        ):
            message = f"`weight_channels` must be 0 where the projector {reason}, got 8"
            with pytest.raises(ValueError, match=re.escape(message)):
                projector(x, tokens, defer=defer, weight_channels=8)

    def test_other_devices_and_looked_at_shortcuts(self):
        module = made(STACKS["map as factors, position"])
        assert module._weight_channels(torch.device("cuda")) == 0
        expected = module(feature_map("contiguous"))[1]
        seen = []
        module[0].projector.shortcut.register_forward_hook(lambda layer, inputs, y: seen.append(y.shape))
        assert module._weight_channels(torch.device("cpu")) == 0
        torch.testing.assert_close(module(feature_map("contiguous"))[1], expected, rtol=0, atol=1e-10)
        assert seen


def test_a_first_module_may_take_tokens():
    module = made(lambda: stack(C, 2, num_tokens=L, tokenizer="recurrent"))
    x, tokens = feature_map("contiguous"), incoming(module[0])
    y, out = module[0](x, tokens)
    y, out = module[1](y, out)
    for got, expected in zip(module(x, tokens), (y, out), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_members_with_different_backends_do_not_share_a_pass():
    module = made(STACKS["default"])
    expected = outputs_and_gradients(module, feature_map("rows"), incoming(module[0]))
    module[1].backend = "reference"
    assert module.backend == "mixed"
    assert 'blocks.1 runs on its own: backend="reference"' in repr(module)
    x = feature_map("rows")
    with Recorder() as recorder:
        module(x)
    assert recorder.ops == ["tokenize", "project", "tokenize", "project"]
    assert_same(outputs_and_gradients(module, x, incoming(module[0])), expected)
    module[1].backend = "torch"
    assert "blocks.1 runs on its own: its backend differs from the projector's" in repr(module)
    assert_same(outputs_and_gradients(module, x, incoming(module[0])), expected)


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        ("clustering", "its tokenizer clusters the written map"),
        ("pooling", "its tokenizer resizes the written map"),
        ("dynamic", "its tokenizer pools 4 heads"),
    ],
)
def test_repr_says_what_is_not_fused_and_why(tokenizer, reason):
    text = repr(stack(C, 2, num_tokens=L, later_tokenizer=tokenizer, num_heads=4, group_width=6))
    assert "4 passes over the map" in text
    assert f"blocks.1 runs on its own: {reason}" in text


def test_repr_of_a_fused_stack():
    text = repr(stack(C, 3, num_tokens=L))
    assert "4 passes over the map" in text
    assert "runs on its own" not in text


def test_repr_of_the_reference():
    text = repr(stack(C, 3, num_tokens=L, backend="reference"))
    assert "as the paper writes it: nothing is fused" in text
    assert "passes over the map" not in text
    assert "runs on its own" not in text


def test_is_a_sequence_of_modules():
    module = stack(C, 3, num_tokens=L)
    assert len(module) == 3
    assert list(module) == [module[0], module[1], module[2]] == list(module.blocks)
    assert isinstance(module[0].tokenizer, nn.FilterTokenizer)
    assert all(isinstance(module[index].tokenizer, nn.RecurrentTokenizer) for index in (1, 2))


def test_projector_refuses_a_tokenizer_that_does_not_fuse():
    block, x = build(C, num_tokens=L), torch.randn(1, C, 5, 5)
    for tokenizer, message in [
        (nn.PoolingTokenizer(C, L), "`tokenizer` must be fusable, got one that resizes the written map"),
        (
            nn.FilterTokenizer(C + 1, L),
            f"`tokenizer` must have channels = {C}, the projector's out_channels, got 25",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            block.projector.project_tokenize(x, torch.randn(1, L, C), tokenizer)


@pytest.mark.parametrize("return_map", [True, False])
@pytest.mark.parametrize(
    ("backends", "ops"),
    [
        (("reference", None), ["tokenize"]),
        ((None, "reference"), ["project"]),
        (("reference", "reference"), []),
        (("torch", None), ["project", "tokenize"]),
        (("torch", "torch"), ["project_tokenize"]),
    ],
)
def test_projector_and_tokenizer_of_different_backends_run_one_by_one(backends, ops, return_map):
    module = made(STACKS["position and heads"])
    projector, tokenizer = module[0].projector, module[1].tokenizer
    x, tokens = feature_map("contiguous").detach(), incoming(module[0]).detach()
    projected = projector(x, tokens)
    expected = tokenizer(projected, tokens)
    projector.backend, tokenizer.backend = backends
    with Recorder() as recorder:
        y, found = projector.project_tokenize(x, tokens, tokenizer, return_map=return_map)
    assert recorder.ops == ops
    assert (y is not None) == return_map
    if y is not None:
        torch.testing.assert_close(y, projected, rtol=0, atol=1e-10)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_projector_of_another_backend_hands_the_mask_on():
    module = made(STACKS["default"])
    projector, tokenizer = module[0].projector, module[1].tokenizer
    x, tokens = feature_map("contiguous").detach(), incoming(module[0]).detach()
    mask = x[:, 0] > 0
    _, expected = projector.project_tokenize(x, tokens, tokenizer, mask=mask)
    projector.backend = "reference"
    _, found = projector.project_tokenize(x, tokens, tokenizer, mask=mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    tokenizer.backend = "reference"
    with pytest.raises(ValueError, match='`mask` must be None with backend="reference"'):
        projector.project_tokenize(x, tokens, tokenizer, mask=mask)


class TestMasks:
    """A masked pixel is no pixel: the tokens are those of the map without it."""

    @staticmethod
    def sample(form):
        x = feature_map(form).detach()
        generator = torch.Generator().manual_seed(5)
        mask = torch.rand(x.shape[0], 7, 9, generator=generator) < 0.6
        return x, mask

    @pytest.mark.parametrize("form", ["contiguous", "channels_last", "rows"])
    def test_tokens_are_those_of_the_pixels_left(self, form):
        module = made(lambda: stack(C, 3, num_tokens=L, num_heads=2))
        x, mask = self.sample(form)
        rows = x if form == "rows" else x.flatten(2).transpose(1, 2)
        y, tokens = module(x, mask=mask.flatten(1) if form == "rows" else mask)
        y = y if form == "rows" else y.flatten(2).transpose(1, 2)
        for index in range(len(x)):
            left = mask[index].flatten()
            y_left, tokens_left = module(rows[index : index + 1, left])
            torch.testing.assert_close(tokens[index : index + 1], tokens_left, rtol=0, atol=1e-10)
            torch.testing.assert_close(y[index : index + 1, left], y_left, rtol=0, atol=1e-10)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: build(C, num_tokens=L),
            lambda: stack(C, 2, last_projector=False),
            lambda: stack(C, 3, last_projector=False),
        ],
    )
    def test_nothing_of_a_masked_pixel_is_used(self, make):
        module = made(make)
        x, mask = self.sample("contiguous")
        clean = module(x, mask=mask)[1]
        spoilt = torch.where(mask[:, None], x, torch.nan).requires_grad_()
        tokens = module(spoilt, mask=mask)[1]
        assert torch.equal(tokens, clean)
        leaves = [spoilt, *module.parameters()]
        grad, *others = torch.autograd.grad(tokens.sum(), leaves, allow_unused=True)
        assert torch.all(grad.masked_select(~mask[:, None]) == 0)
        assert torch.all(grad.isfinite())
        assert all(torch.all(other.isfinite()) for other in others if other is not None)

    def test_a_sample_without_pixels_gets_what_the_biases_make_of_zero(self):
        tokenizer = made(lambda: nn.FilterTokenizer(C, L, 20, value_groups=2))
        x, mask = self.sample("contiguous")
        mask[0] = False
        tokens = tokenizer(x, mask=mask)
        expected = tokenizer.token(tokenizer.value.bias.expand(L, C))
        torch.testing.assert_close(tokens[0], expected, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("backend", ["reference"])
    def test_the_reference_has_no_masks(self, backend):
        module = stack(C, 2, num_tokens=L, backend=backend).double()
        x, mask = self.sample("contiguous")
        with pytest.raises(ValueError, match='`mask` must be None with backend="reference"'):
            module(x, mask=mask)

    @pytest.mark.parametrize("tokenizer", ["pooling", "clustering"])
    def test_tokenizers_that_cannot_leave_pixels_out_say_so(self, tokenizer):
        x, mask = self.sample("contiguous")
        with pytest.raises(ValueError, match="`mask` must be None with a"):
            build(C, tokenizer=tokenizer).double()(x, mask=mask)


def test_refuses_what_is_no_stack():
    with pytest.raises(ValueError, match="`blocks` must hold at least one VisualTransformer, got none"):
        VisualTransformerStack.from_parts([])
    with pytest.raises(TypeError, match=r"`blocks\[1\]` must be a VisualTransformer, got Linear"):
        VisualTransformerStack.from_parts([build(C), torch.nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="`num_blocks` must be at least 1, got 0"):
        stack(C, 0)
    with pytest.raises(
        ValueError, match=r"`blocks\[1\].tokenizer` must have channels = 24, those of its map, got 32"
    ):
        VisualTransformerStack.from_parts([build(C), build(32, token_channels=C)])
    with pytest.raises(
        ValueError, match=r"`blocks\[1\].*` must have token_channels = 24, those of its tokens, got 8"
    ):
        VisualTransformerStack.from_parts([build(C), build(C, token_channels=8, tokenizer="recurrent")])
