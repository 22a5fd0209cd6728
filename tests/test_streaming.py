"""`vt_fast.streaming`: the results and gradients of all pixels at once, in the memory of a few chunks."""

import re
import threading
import weakref

import numpy as np
import pytest
import torch

from tests._support.comparing import assert_close
from vt_fast import functional, streaming
from vt_fast.streaming import Chunks
from vt_fast.testing import assert_as_accurate

N, C, D, L = 1000, 8, 6, 4


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "vt_fast.streaming"]


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def tensors(op, normalize, batch, heads):
    """The operands of a problem, and its options."""
    lead = () if batch == 1 else (batch,)
    rows = heads * L
    operands = {"x": randn(*lead, N, C), "token_bias": randn(batch, rows), "scores": randn(*lead, rows, N)}
    options = {"num_heads": heads, "normalize": normalize, "scale": 0.5}
    if op == "tokenize":
        operands |= {"queries": randn(rows, C // heads), "pixel_bias": randn(*lead, N)}
        operands["mask"] = torch.rand(*lead, N) < 0.7
        if normalize == "pixels":
            operands["token_bias"] = operands["token_bias"][0]
        if heads == 1:
            operands["values"] = randn(*lead, N, D)
    return operands, options


def batched(name, value):
    of_pixels = ("x", "values", "mask", "pixel_bias", "scores")
    return value[None] if name in of_pixels and value.shape[-1 - (name in ("x", "values"))] == N else value


# ---- tokenize ----


@pytest.mark.parametrize("pixels", [77, 1, N, 3 * N])
@pytest.mark.parametrize("normalize", ["pixels", "tokens", None])
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (1, 2), (3, 1)])
def test_tokens_and_gradients_are_those_of_all_pixels(normalize, batch, heads, pixels):
    if pixels == 1 and (batch, heads) != (1, 1):
        pixels = 500
    operands, options = tensors("tokenize", normalize, batch, heads)
    of_pixels = {name: value for name, value in operands.items() if name not in ("queries", "token_bias")}
    small = {name: operands[name].clone().requires_grad_() for name in ("queries", "token_bias")}
    whole = {
        name: (value if batch > 1 else value[None]).clone().requires_grad_(value.is_floating_point())
        for name, value in of_pixels.items()
    }
    expected = functional.tokenize(**whole, **small, **options, return_stats=True)
    cotangents = [torch.randn_like(each) for each in expected]
    leaves = [*small.values(), *(value for value in whole.values() if value.requires_grad)]
    grads = torch.autograd.grad(expected, leaves, cotangents)
    seen = {}

    def on_gradient(start, found):
        for name, value in found.items():
            seen.setdefault(name, []).append((start, value))

    chunks = Chunks(of_pixels.pop("x"), pixels, **of_pixels)
    found = streaming.tokenize(chunks, **small, **options, return_stats=True, on_gradient=on_gradient)
    mine = torch.autograd.grad(found, list(small.values()), cotangents)
    for actual, wanted in zip((*found, *mine), (*expected, *grads), strict=False):
        assert_close(actual, wanted)
    names = [name for name, value in whole.items() if value.requires_grad]
    assert seen.keys() == set(names)
    for name, wanted in zip(names, grads[2:], strict=True):
        parts = [part for _, part in seen[name]]
        assert [start for start, _ in seen[name]] == list(range(0, N, pixels))
        dim = {"x": 1, "values": 1, "scores": 2, "pixel_bias": 1}[name]
        assert_close(torch.cat(parts, dim), wanted, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_are_cast_to_the_dtype_of_the_queries(dtype):
    x, queries = torch.randn(N, C, dtype=torch.float16), torch.randn(L, C, dtype=dtype).requires_grad_()
    tokens, lse = streaming.tokenize(Chunks(x, 300), queries, return_stats=True)
    assert (tokens.dtype, lse.dtype) == (dtype, torch.float32)
    exact = functional.tokenize(x.to(dtype).double()[None], queries.double())
    plain = functional.tokenize(x.to(dtype)[None], queries)
    assert_as_accurate(tokens, exact, plain, "tokens", terms=N)
    tokens.sum().backward()
    assert queries.grad.dtype == dtype


def test_given_logits_alone():
    x, scores = randn(N, C), randn(L, N)
    found = streaming.tokenize(Chunks(x, 300, scores=scores))
    assert_close(found, functional.tokenize(x[None], scores=scores[None]))


def test_layer_norm_extra_values_and_backends():
    x, queries, table = randn(N, C), randn(L, C), randn(N, 3)
    for backend in ("torch", "cpu", None):
        found = streaming.tokenize(
            Chunks(x, 300, extra_values=table), queries, layer_norm_eps=1e-5, backend=backend
        )
        expected = functional.tokenize(x[None], queries, extra_values=table, layer_norm_eps=1e-5)
        assert_close(found, expected)


def test_chunks_of_any_iterable():
    x, queries = randn(N, C), randn(L, C)
    expected = functional.tokenize(x[None], queries)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x), batch_size=128, collate_fn=stacked
    )
    for chunks in (x.split(90), [{"x": part} for part in x[None].split(90, 1)], iter(x.split(90)), loader):
        assert_close(streaming.tokenize(chunks, queries), expected)
    rows = queries.clone().requires_grad_()
    streaming.tokenize(loader, rows).sum().backward()
    again = queries.clone().requires_grad_()
    functional.tokenize(x[None], again).sum().backward()
    assert_close(rows.grad, again.grad)


def stacked(samples):
    return torch.stack([sample for (sample,) in samples])


def memory_map(x, folder):
    array = np.memmap(folder / "x.bin", x.numpy().dtype, "w+", shape=tuple(x.shape))
    array[:] = x.numpy()
    return array


def hdf5(x, folder):
    h5py = pytest.importorskip("h5py")
    file = h5py.File(folder / "x.h5", "w")
    return file.create_dataset("features", data=x.numpy(), chunks=(64, C))


def zarr_array(x, folder):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(folder / "x.zarr", shape=tuple(x.shape), dtype="float64", chunks=(64, C))
    array[:] = x.numpy()
    return array


def safetensors_slice(x, folder):
    safetensors = pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    save_file({"x": x}, folder / "x.safetensors")
    return safetensors.safe_open(folder / "x.safetensors", "pt").get_slice("x")


@pytest.mark.parametrize(
    "source", [memory_map, hdf5, zarr_array, safetensors_slice, lambda x, folder: x.numpy()]
)
def test_arrays(source, tmp_path):
    x, queries = randn(N, C), randn(L, C).requires_grad_()
    chunks = Chunks(source(x, tmp_path), 150)
    assert len(chunks) == 7
    tokens = streaming.tokenize(chunks, queries)
    assert_close(tokens, functional.tokenize(x[None], queries))
    tokens.sum().backward()
    assert queries.grad.abs().sum() > 0


# ---- running ----


@pytest.mark.parametrize("normalize", ["pixels", "tokens"])
def test_a_run_that_is_resumed_ends_with_the_same_bits(normalize, tmp_path):
    x, queries = torch.randn(N, C), torch.randn(L, C).requires_grad_()
    options = {"normalize": normalize, "return_stats": True}
    whole = streaming.tokenize(Chunks(x, 150), queries, **options)
    grad = torch.autograd.grad(whole[0].sum(), queries)[0]

    class Stopped(Exception):
        pass

    def save(state):
        torch.save(state._asdict(), tmp_path / "state.pt")
        if state.chunks == 3:
            raise Stopped

    with pytest.raises(Stopped):
        streaming.tokenize(Chunks(x, 150), queries, on_chunk=save, **options)
    state = streaming.State(**torch.load(tmp_path / "state.pt"))
    assert (state.chunks, state.pixels) == (3, 450)

    class Watched(Chunks):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    read = []
    for chunks in (Watched(x, 150), list(x.split(150))):
        found = streaming.tokenize(chunks, queries, resume=state, **options)
        assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))
        assert torch.equal(torch.autograd.grad(found[0].sum(), queries)[0], grad)
    assert read[:4] == [3, 4, 5, 6]  # the backward pass reads all of them
    done = state._replace(chunks=7, pixels=N)
    assert torch.equal(streaming.tokenize(Chunks(x, 150), queries, resume=done, **options)[1], state.stats)


def test_few_chunks_live_at_a_time(monkeypatch):
    alive, most = weakref.WeakSet(), []
    prepared = streaming._Stream._prepared

    def watched(stream, chunk):
        found = prepared(stream, chunk)
        alive.add(found["x"])
        return found

    def chunks():
        for _ in range(40):
            yield torch.randn(50, C)
            most.append(len(alive))

    monkeypatch.setattr(streaming._Stream, "_prepared", watched)
    streaming.tokenize(chunks(), torch.randn(L, C), prefetch=3)
    # Three are ready, one waits to be put there, one is computed, one is handed over.
    assert 3 <= max(most) <= 6


def test_the_next_chunk_is_read_while_one_is_computed():
    reading = threading.Event()

    class Slow(Chunks):
        def __getitem__(self, index):
            if index == 1:
                reading.set()
            return super().__getitem__(index)

    def on_chunk(state):
        assert reading.wait(30)

    streaming.tokenize(Slow(torch.randn(N, C), 500), torch.randn(L, C), prefetch=1, on_chunk=on_chunk)


def anonymous_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def test_memory_does_not_grow_with_the_data(tmp_path):
    """Anonymous memory: what is not a file's cache."""
    # Chunks of 34 MB: smaller blocks go through the heap of malloc, which may keep some of what is freed.
    array = np.memmap(tmp_path / "x.bin", np.float32, "w+", shape=(24 * 132_000, 64))
    queries = torch.randn(L, 64, requires_grad=True)
    seen = []

    def note(*_):
        seen.append(anonymous_kib())

    before = anonymous_kib()
    streaming.tokenize(Chunks(array, 132_000), queries, on_chunk=note, on_gradient=note).sum().backward()
    assert len(seen) == 48
    # Up to 5 chunks are ready or in use, and a gradient; with room for what the op needs.
    assert max(seen) < before + 9 * 34_000


def test_progress(capsys):
    streaming.tokenize(Chunks(torch.randn(N, C), 100), torch.randn(L, C), progress=True)
    assert "10/10" in capsys.readouterr().err


# ---- project ----


@pytest.mark.parametrize("normalize", ["tokens", "exp", None])
@pytest.mark.parametrize("batch", [1, 3])
def test_maps(normalize, batch, tmp_path):
    lead = () if batch == 1 else (batch,)
    x, scores, residual = randn(*lead, N, C), randn(*lead, L, N), randn(*lead, N, D)
    keys, values, bias = randn(L, C), randn(L, D), randn(L)
    options = {"normalize": normalize, "token_bias": bias, "scale": 0.5}
    given = {"scores": scores, "residual": residual}
    whole = {name: value.reshape(batch, *value.shape[-2:]) for name, value in ({"x": x} | given).items()}
    expected = functional.project(keys=keys, values=values, **whole, **options).view(*lead, N, D)
    parts = []
    sinks = [
        torch.zeros(*lead, N, D, dtype=torch.float64),
        np.memmap(tmp_path / "y.bin", np.float64, "w+", shape=(*lead, N, D)),
        lambda start, y: parts.append((start, y)),
    ]
    for sink in sinks:
        assert streaming.project(Chunks(x, 300, **given), keys, values, sink, **options) == N
    assert_close(sinks[0], expected)
    assert_close(torch.from_numpy(np.array(sinks[1])), expected)
    assert [start for start, _ in parts] == [0, 300, 600, 900]
    assert_close(torch.cat([y for _, y in parts], 1).view_as(expected), expected)


def test_projecting_goes_on_where_it_was_stopped():
    x, tokens, y, done = randn(N, C), randn(L, C), torch.zeros(N, C, dtype=torch.float64), []
    chunks = Chunks(x, 300)
    with pytest.raises(ZeroDivisionError):
        streaming.project(
            chunks, tokens, tokens, y, on_chunk=lambda count: done.append(count) or 1 / (2 - count)
        )
    assert done == [1, 2]
    assert streaming.project(chunks, tokens, tokens, y, skip=2, on_chunk=done.append, add_input=True) == N
    assert done == [1, 2, 3, 4]
    assert_close(y[600:], functional.project(x[None, 600:], tokens, tokens, residual=x[None, 600:])[0])
    assert_close(y[:600], functional.project(x[None, :600], tokens, tokens)[0])


# ---- errors ----


def test_an_error_of_the_source_is_raised():
    def chunks():
        yield torch.randn(5, C)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        streaming.tokenize(chunks(), torch.randn(L, C))

    def sink(start, y):
        raise OSError("the disk is full")

    x = torch.randn(N, C)
    with pytest.raises(OSError, match="the disk is full"):
        streaming.project(Chunks(x, 100), x[:3], x[:3], sink)


def test_chunks_that_change_are_an_error():
    chunks, queries = list(torch.randn(9, 50, C)), torch.randn(L, C).requires_grad_()
    tokens = streaming.tokenize(chunks, queries)
    chunks.pop()
    with pytest.raises(
        RuntimeError, match="`chunks` must hold the same pixels in the backward pass, got 400"
    ):
        tokens.sum().backward()
    assert queries.grad is None


def test_errors():
    x, queries = torch.randn(N, C), torch.randn(L, C)
    with pytest.raises(ValueError, match="`mask` must have the pixels of `x`, 1000, got 10"):
        Chunks(x, 10, mask=torch.ones(10, dtype=torch.bool))
    with pytest.raises(TypeError, match="`offsets` must be one of x, values"):
        Chunks(x, 10, offsets=torch.ones(10))
    with pytest.raises(ValueError, match="`pixels` must be at least 1, got 0"):
        Chunks(x, 0)
    with pytest.raises(ValueError, match="`chunks` must hold at least one chunk, got none"):
        streaming.tokenize([], queries)
    with pytest.raises(TypeError, match="`chunks` must be an iterable of chunks, got int"):
        streaming.tokenize(3, queries)
    with pytest.raises(
        ValueError, match=re.escape("iterable a second time where a gradient is wanted, got an iterator")
    ):
        streaming.tokenize(iter(x.split(90)), queries.clone().requires_grad_())
    with pytest.raises(
        ValueError, match=re.escape("`queries` must be (L, C) or (B, L, C) with B = 1, C = 8")
    ):
        streaming.tokenize(Chunks(x, 100), queries[:, :5])
    with pytest.raises(TypeError, match=r"`x` of a chunk must be a torch\.Tensor, got int"):
        streaming.tokenize([3], queries)
    with pytest.raises(ValueError, match=r"a chunk must hold x, values, .* got `y`"):
        streaming.tokenize([{"y": x}], queries)
    with pytest.raises(ValueError, match="a chunk must hold x, got nothing"):
        streaming.tokenize([{}], queries)
    rows = queries.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="can be differentiated only once"):
        torch.autograd.grad(streaming.tokenize(Chunks(x, 100), rows).sum(), rows, create_graph=True)
    with pytest.raises(ValueError, match="`skip` must be 0 unless"):
        streaming.project([x], queries, queries, x, skip=1)
    with pytest.raises(
        ValueError, match=re.escape("`sink` must have D = 8 channels and at least N = 1000 pixels")
    ):
        streaming.project([x], queries, queries, torch.empty(999, C))
    with pytest.raises(ValueError, match="a chunk must hold x, residual or scores here, got `mask`"):
        streaming.project(Chunks(x, 100, mask=x[:, 0] > 0), queries, queries, torch.empty_like(x))


def test_a_source_may_reuse_its_memory():
    x, mask, queries = randn(300, C), torch.rand(300) < 0.5, randn(L, C)

    def source():
        buffer, used = torch.empty(100, C, dtype=torch.float64), torch.empty(100, dtype=torch.bool)
        for begin in range(0, 300, 100):
            buffer.copy_(x[begin : begin + 100])
            used.copy_(mask[begin : begin + 100])
            yield {"x": buffer, "mask": used}

    tokens = streaming.tokenize(source(), queries)
    assert_close(tokens, functional.tokenize(x[None], queries, mask=mask[None]))


def test_a_state_of_another_run_is_refused():
    x, queries, states = randn(100, C), randn(L, C), []
    streaming.tokenize(Chunks(x, 20), queries, on_chunk=states.append)
    for state, chunks, rows, options, message in (
        (states[1]._asdict(), Chunks(x, 20), queries, {}, "must be a State, got dict"),
        (states[1], Chunks(x, 10), queries, {}, "the first 2 of which have 20 pixels, got one of 40 pixels"),
        (states[1], Chunks(x, 20), queries, {"normalize": "tokens"}, "normalize = 'tokens', got 'pixels'"),
        (states[-1], Chunks(x, 20), queries[:1], {}, "a state of 1 rows, those of `queries`, got 4"),
        (states[-1], Chunks(x[:40], 20), queries, {}, "the first 5 of which have 40 pixels, got one of 100"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            streaming.tokenize(chunks, rows, resume=state, **options)


@pytest.mark.parametrize("normalize", ["pixels", "tokens", None])
def test_chunks_must_be_alike(normalize):
    chunks = [randn(1, 20, C), randn(2, 20, C)]
    with pytest.raises(
        ValueError, match=r"a chunk must have B, C and rows as those before it, whose tokens are"
    ):
        streaming.tokenize(chunks, randn(L, C), normalize=normalize)


def test_what_a_chunk_may_not_be():
    queries = randn(L, C)
    for chunk, message in (
        (randn(1, C, 4, 5), r"must be \(n, C\) or \(B, n, C\), and n not 0, got \(1, 8, 4, 5\)"),
        (randn(0, C), r"and n not 0, got \(0, 8\)"),
        (randn(9, C).requires_grad_(), "must not require a gradient; `on_gradient` gets"),
        ({"x": randn(9, C), "residual": randn(9, C)}, "must hold no `residual` where it is pooled"),
    ):
        with pytest.raises(ValueError, match=message):
            streaming.tokenize([chunk], queries)
    with pytest.raises(ValueError, match="`on_gradient` must be None where neither"):
        streaming.tokenize([randn(9, C)], queries, on_gradient=print)
    for skip in (-1, 4):
        with pytest.raises(ValueError, match="`skip` must be at most the number of chunks"):
            streaming.project(Chunks(randn(90, C), 30), queries, queries, torch.empty(90, C), skip=skip)


def test_a_source_has_the_callers_grad_mode():
    layer, x = torch.nn.Linear(C, C).double(), randn(60, C)
    with torch.no_grad():
        tokens = streaming.tokenize((layer(x[at : at + 20]) for at in (0, 20, 40)), randn(L, C))
    assert tokens.shape == (1, L, C)


def test_maps_in_bfloat16_go_into_arrays_of_numpy():
    x, keys, sink = randn(60, C).bfloat16(), randn(L, C).bfloat16(), np.zeros((60, C), np.float32)
    streaming.project(Chunks(x, 20), keys, keys, sink)
    assert_close(torch.from_numpy(sink).bfloat16(), functional.project(x[None], keys, keys)[0])
