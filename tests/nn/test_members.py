"""Members of fused modules are called, so that their hooks, wrappers and parametrisations run."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    CheckpointWrapper,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn.utils import parametrizations, prune

from tests._support.nn_cases import CASES, every_kind, feature_map, incoming, made, run
from vt_fast.nn import (
    GroupedLinear,
    PositionCode,
    Projector,
    RecurrentTokenizer,
    Tokenizer,
    TokenRelation,
    VisualTransformer,
    VisualTransformerStack,
)

pytestmark = pytest.mark.one_backend

STACKS = [name for name in CASES if name.startswith("stack") and "no projector" not in name]


def stack():
    return made(CASES["stack: default"])


def solved(module, parameters=None):
    """Results, and the gradients of the map and all parameters, by name."""
    x, tokens = feature_map("contiguous"), incoming(module)
    named = dict(module.named_parameters())
    results = run(module, x, tokens)
    leaves = {"x": x, **named}
    gradients = torch.autograd.grad(
        sum(result.sin().sum() for result in results), list(leaves.values()), allow_unused=True
    )
    return results, dict(zip(leaves, gradients, strict=True))


def weights(module):
    """Each member's own matrices, and the kernels of position codes, by their owner and name."""
    return [
        (part, name)
        for part in module.modules()
        for name, value in part.named_parameters(recurse=False)
        if value.dim() > 1 and name != "mix"
    ]


REPARAMETRISED = {
    "prune": lambda part, name: prune.random_unstructured(part, name, amount=0.3),
    "spectral_norm, by hook": torch.nn.utils.spectral_norm,
    "weight_norm, by hook": torch.nn.utils.weight_norm,
    "spectral_norm": lambda part, name: parametrizations.spectral_norm(part, name).eval(),
    "weight_norm": lambda part, name: parametrizations.weight_norm(part, name).eval(),
    "orthogonal": lambda part, name: parametrizations.orthogonal(part, name).eval(),
}


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("how", REPARAMETRISED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_reparametrised_weights(how, backend):
    """The results are those of the weights that the members then have, and every parameter gets a gradient.

    Twice, with a step of an optimizer in between.
    """
    plain = made(every_kind)
    module, same = copy.deepcopy(plain), dict(plain.named_parameters())
    module.backend = backend
    passes = module.passes
    for part, name in weights(module):
        REPARAMETRISED[how](part, name)
    assert module.passes == passes
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    x = feature_map("contiguous")
    for _ in range(2):
        found, gradients = solved(module)
        for name, parameter in module.named_parameters():
            if name in same:
                same[name].data.copy_(parameter)
        changed = dict(module.named_modules())
        for path, part in plain.named_modules():
            for name, value in part.named_parameters(recurse=False):
                value.data.copy_(getattr(changed[path], name))
        for a, b in zip(found, run(plain, x, None), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
        for name, parameter in module.named_parameters():
            assert gradients[name] is not None, name
            assert gradients[name].any(), name
            parameter.grad = gradients[name]
        optimizer.step()


def checkpointed(impl=CheckpointImpl.NO_REENTRANT):
    def change(module):
        apply_activation_checkpointing(
            module,
            checkpoint_wrapper_fn=functools.partial(checkpoint_wrapper, checkpoint_impl=impl),
            check_fn=lambda part: isinstance(part, VisualTransformer),
        )

    return change


def compiled(module):
    for index, block in enumerate(module.blocks):
        module.blocks[index] = torch.compile(block, backend="aot_eager")


def compiled_in_place(module):
    for block in module.blocks:
        block.compile(backend="aot_eager")


WRAPPED = {
    "checkpoint_wrapper": checkpointed(),
    "torch.compile": compiled,
    "Module.compile": compiled_in_place,
}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("how", WRAPPED)
def test_wrapped_blocks_stay_fused(how, name):
    module = made(CASES[name])
    wrapped = copy.deepcopy(module)
    WRAPPED[how](wrapped)
    assert wrapped.passes == module.passes
    (found, gradients), (expected, expected_gradients) = solved(wrapped), solved(module)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    for (key, gradient), value in zip(gradients.items(), expected_gradients.values(), strict=True):
        torch.testing.assert_close(gradient, value, rtol=0, atol=1e-10, msg=key)


def test_checkpointed_blocks_keep_less():
    def kept(change):
        module = made(CASES["stack: default"])
        change(module)
        count = 0

        def pack(value):
            nonlocal count
            count += value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            run(module, feature_map("contiguous"), incoming(module))
        return count

    assert kept(checkpointed()) < 0.7 * kept(lambda module: None)


@pytest.mark.parametrize("kind", [GroupedLinear, PositionCode, (Tokenizer, TokenRelation, Projector)])
def test_calls_go_through_wrappers(kind, monkeypatch):
    """And not past them, to a method of what is wrapped."""
    module = made(every_kind)
    wrapped, called, forward = copy.deepcopy(module), set(), CheckpointWrapper.forward
    apply_activation_checkpointing(wrapped, check_fn=lambda part: isinstance(part, kind))
    around = {part for part in wrapped.modules() if isinstance(part, CheckpointWrapper)}

    def noted(self, *args, **options):
        called.add(self)
        return forward(self, *args, **options)

    monkeypatch.setattr(CheckpointWrapper, "forward", noted)
    assert wrapped.passes == module.passes
    x = feature_map("contiguous")
    for a, b in zip(run(wrapped, x, None), run(module, x, None), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert called == around != set()


class Wrapper(nn.Module):
    """Of a class that nothing here knows."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, *args):
        return self.inside(*args)


def watch(seen):
    def hook(module, args, result):
        seen.append(tuple(args[0].shape))

    return hook


UNKNOWN = {
    "a hook on a block": lambda module, seen: module[1].register_forward_hook(watch(seen)),
    "a hook on a projector": lambda module, seen: module[0].projector.register_forward_hook(watch(seen)),
    "a hook on a tokenizer": lambda module, seen: module[1].tokenizer.register_forward_hook(watch(seen)),
    "a hook on a query": lambda module, seen: module[0].projector.query.register_forward_hook(watch(seen)),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_unknown_hooks_see_plain_calls(what):
    """A tensor of pixels or a map goes in, and the rest of the stack stays fused."""
    module = stack()
    passes = module.passes
    expected, expected_gradients = solved(module)
    seen = []
    UNKNOWN[what](module, seen)
    # A block neither takes a map that has not been computed nor leaves one.
    assert module.passes == passes + (2 if what == "a hook on a block" else 1)
    assert "hook" in module.extra_repr()
    found, gradients = solved(module)
    x = feature_map("contiguous")
    assert seen in ([tuple(x.shape)], [(x.shape[0], x.shape[2] * x.shape[3], x.shape[1])])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-9, msg=name)


def test_hooks_on_all_modules_see_tensors():
    """And numbers, in position codes."""
    module, seen = made(every_kind), []
    expected = run(module, feature_map("contiguous"), None)
    hook = torch.nn.modules.module.register_module_forward_hook(lambda part, args, result: seen.append(args))
    try:
        assert module.passes == 2 * len(module)
        found = run(module, feature_map("contiguous"), None)
    finally:
        hook.remove()
    assert {type(value) for args in seen for value in args} == {torch.Tensor, int}
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_backward_hooks_on_all_modules_after_a_first_call():
    module = made(every_kind)
    expected = run(module, feature_map("contiguous"), None)
    hook = torch.nn.modules.module.register_module_full_backward_hook(lambda *_: None)
    try:
        assert module.passes == 2 * len(module)
        found = run(module, feature_map("contiguous"), None)
    finally:
        hook.remove()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert module.passes < 2 * len(module)


@pytest.mark.parametrize("what", ["block", "projector", "tokenizer", "reentrant checkpoint"])
def test_members_of_unknown_classes_run_on_their_own(what):
    module = stack()
    expected, passes = run(module, feature_map("contiguous"), incoming(module)), module.passes
    if what == "block":
        module.blocks[1] = Wrapper(module.blocks[1])
    elif what == "reentrant checkpoint":
        checkpointed(CheckpointImpl.REENTRANT)(module)
    else:
        block = module[0 if what == "projector" else 1]
        setattr(block, what, Wrapper(getattr(block, what)))
    if what != "block":
        assert module.passes > passes
    for a, b in zip(run(module, feature_map("contiguous"), incoming(module)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


class Doubled(Wrapper):
    """Around a layer, as LoRA's adapters are."""

    def forward(self, x):
        return 2 * self.inside(x)


class DoubledLayer(GroupedLinear):
    def forward(self, x):
        return 2 * super().forward(x)


def patched(layer):
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def replaced(module, name, change):
    above, _, last = name.rpartition(".")
    setattr(module.get_submodule(above), last, change(module.get_submodule(name)))


DOUBLED = {
    "a hook": lambda layer: layer.register_forward_hook(lambda part, args, result: 2 * result),
    "a forward of its own": patched,
    "a subclass": lambda layer: setattr(layer, "__class__", DoubledLayer),
    "a wrapper": None,
}


def with_doubled_layers(how):
    """A module whose layers return twice as much in a way of their own, and one with twice the parameters."""
    module, plain = made(every_kind), made(every_kind)
    for name, layer in [each for each in module.named_modules() if isinstance(each[1], GroupedLinear)]:
        if how == "a wrapper":
            replaced(module, name, Doubled)
        elif how != "the class":
            DOUBLED[how](layer)
        with torch.no_grad():
            for parameter in plain.get_submodule(name).parameters():
                parameter.mul_(2)
    return module, plain


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("how", DOUBLED)
def test_layers_are_called(how, backend):
    """What a layer computes is up to it, in attention maps too."""
    module, plain = with_doubled_layers(how)
    module.backend = backend
    x = feature_map("contiguous")
    for a, b in zip(run(module, x, None), run(plain, x, None), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    for a, b in zip(module.attention_maps(x), plain.attention_maps(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_layers_with_hooks_take_pixels_or_tokens(backend):
    module, names, seen = made(every_kind), [], []
    module.backend = backend
    for name, part in module.named_modules():
        if isinstance(part, GroupedLinear):
            names.append(name)
            part.register_forward_pre_hook(lambda part, args, name=name: seen.append((name, len(args))))
            part.register_full_backward_hook(lambda part, given, got, name=name: seen.append((name, "back")))
    solved(module)
    assert set(seen) == {(name, each) for name in names for each in (1, "back")}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_forward_replaced_in_the_class(wrapped, monkeypatch):
    """After a first call, too."""
    module, plain = with_doubled_layers("the class")
    x, forward = feature_map("contiguous"), GroupedLinear.forward
    run(module, x, None)
    expected = run(plain, x, None)

    def doubled(self, x):
        return 2 * forward(self, x)

    monkeypatch.setattr(GroupedLinear, "forward", functools.wraps(forward)(doubled) if wrapped else doubled)
    for a, b in zip(run(module, x, None), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


KEYS = [
    name
    for name in CASES
    if name.startswith("tokenizer") and isinstance(getattr(made(CASES[name]), "key", None), nn.Module)
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", KEYS)
def test_a_key_projection_on_its_own(name, masked):
    """It is applied to the pixels, with the same result."""
    module = made(CASES[name])
    x, tokens = feature_map("contiguous"), incoming(module)
    mask = torch.rand(x.shape[0], *x.shape[2:]) > 0.3 if masked else None
    options = {} if mask is None else {"mask": mask}
    expected = module(x, tokens, **options)
    module.key.register_forward_hook(lambda module, args, result: None)
    assert "key projection that runs on its own" in (module.why_not_fusable() or "") or module.op_heads > 1
    torch.testing.assert_close(module(x, tokens, **options), expected, rtol=0, atol=1e-10)
    plain = made(CASES[name]).attention_maps(x, tokens, **options)
    torch.testing.assert_close(module.attention_maps(x, tokens, **options), plain, rtol=0, atol=1e-10)
    module.key = Wrapper(module.key)
    torch.testing.assert_close(module(x, tokens, **options), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(module.attention_maps(x, tokens, **options), plain, rtol=0, atol=1e-10)


QUERIES = [
    name for name in CASES if name.startswith("projector") and getattr(made(CASES[name]), "query", None)
]


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_projection_on_its_own(name):
    module = made(CASES[name])
    x, tokens = feature_map("contiguous"), incoming(module)
    expected, maps = module(x, tokens), module.attention_maps(x, tokens)
    module.query = Wrapper(module.query)
    torch.testing.assert_close(module(x, tokens), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(module.attention_maps(x, tokens), maps, rtol=0, atol=1e-10)


def test_a_stack_is_still_a_recurrent_one():
    """Hooks that are gone leave no trace."""
    module = stack()
    passes = module.passes
    handle = module[1].tokenizer.register_forward_hook(lambda *args: None)
    assert module.passes == passes + 1
    handle.remove()
    assert module.passes == passes
    assert isinstance(module[1].tokenizer, RecurrentTokenizer)
    assert isinstance(module, VisualTransformerStack)
