"""The model as a module among others: hooks, replaced parts, transforms, compilers, parallel training."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrizations, prune, weight_norm
from torch.utils.flop_counter import FlopCounterMode

from pft_bench.model import PFT
from pft_bench.model.stock import may_infer

MAKE = {"backend": "cpu", "upsampler": "pixelshuffledirect"}


@pytest.fixture
def model(make_model: Callable[..., PFT]) -> PFT:
    return make_model(**MAKE).eval()


def without_gradients(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = model(x)
    return y


def stock(model: PFT) -> bool:
    with torch.no_grad():
        return may_infer(model.layers, torch.zeros(1, 4, 4, 12))


def same(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


# -- the fast path is for what it knows --------------------------------------------------------------------------------


def modules_of(model: nn.Module) -> list[str]:
    """Names of those whose `forward` is meant to be called: containers of layers have none."""
    kinds = (nn.ModuleList,)
    return [
        name
        for name, m in model.named_modules()
        if not isinstance(m, kinds) and not name.endswith("residual_group") and name
    ]


def test_all_hooks_fire_without_gradients_as_they_do_with_them(model, image):
    counts: dict[bool, dict[str, int]] = {}
    for grad in (True, False):
        fired = counts[grad] = {}
        handles = [
            m.register_forward_hook(lambda *_, n=name, f=fired: f.update({n: f.get(n, 0) + 1}))
            for name, m in model.named_modules()
        ]
        with torch.set_grad_enabled(grad):
            model(image())
        for handle in handles:
            handle.remove()
    assert counts[True] == counts[False]
    assert set(modules_of(model)) <= set(counts[False])


def _pre_hook(model: PFT) -> None:
    model.transformer_layers()[1].convffn.act.register_forward_pre_hook(lambda m, given: (2 * given[0],))


def _global_hook(model: PFT) -> None:
    """Removed again by the test."""
    nn_module.register_module_forward_hook(lambda m, _, out: 2 * out if isinstance(m, nn.GELU) else None)


class Doubled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *given):
        return 2 * self.inner(*given)


def _wrapped(path: str) -> Callable[[PFT], None]:
    def change(model: PFT) -> None:
        layer = model.transformer_layers()[2]
        layer.set_submodule(path, Doubled(layer.get_submodule(path)))

    return change


def _replaced(path: str, make: Callable[[], nn.Module]) -> Callable[[PFT], None]:
    return lambda model: model.transformer_layers()[2].set_submodule(path, make())


def _subclass(model: PFT) -> None:
    layer = model.transformer_layers()[0]

    class Mine(type(layer.convffn)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    layer.convffn.__class__ = Mine


def _own_forward(model: PFT) -> None:
    conv = model.transformer_layers()[0].v_LePE
    ordinary = conv.forward
    conv.forward = lambda x: 2 * ordinary(x)


def _own_layer(model: PFT) -> None:
    layer = model.transformer_layers()[3]
    ordinary = layer.forward
    layer.forward = lambda x, *rest: ordinary(2 * x, *rest)


def _own_block(model: PFT) -> None:
    block = model.layers[1]
    ordinary = block.forward
    block.forward = lambda x, *rest: ordinary(2 * x, *rest)


def _dilated(model: PFT) -> None:
    layer = model.transformer_layers()[0]
    conv = nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=12)
    layer.v_LePE.depthwise_conv[0] = conv


def _reflecting(model: PFT) -> None:
    model.transformer_layers()[0].convffn.dwconv.depthwise_conv[0].padding_mode = "circular"
    model.transformer_layers()[0].convffn.dwconv.depthwise_conv[0] = nn.Conv2d(
        24, 24, 3, padding=1, groups=24, padding_mode="circular"
    )


def _depthwise(model: PFT) -> nn.Conv2d:
    conv = model.transformer_layers()[1].convffn.dwconv.depthwise_conv[0]
    assert isinstance(conv, nn.Conv2d)
    return conv


class Zeroed(torch.nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * (weight > 0)


CHANGES: dict[str, Callable[[PFT], None]] = {
    "a pre-hook that edits": _pre_hook,
    "a hook on all modules": _global_hook,
    "another activation": _replaced("convffn.act", nn.ReLU),
    "the tanh GELU": _replaced("convffn.act", lambda: nn.GELU("tanh")),
    "the tanh GELU after a convolution": _replaced(
        "v_LePE.depthwise_conv.1", lambda: nn.GELU(approximate="tanh")
    ),
    "no LePE": _replaced("v_LePE", nn.Identity),
    "no activation after a convolution": _replaced("convffn.dwconv.depthwise_conv.1", nn.Identity),
    "a wrapped convolution": _wrapped("convffn.dwconv.depthwise_conv.0"),
    "a wrapped depthwise part": _wrapped("v_LePE"),
    "a wrapped linear layer": _wrapped("convffn.fc1"),
    "a wrapped projection": _wrapped("attn_win.proj"),
    "a wrapped feed-forward part": _wrapped("convffn"),
    "a norm of all channels and columns": _replaced("norm2", lambda: nn.LayerNorm((8, 12))),
    "a convolution of another reach": _dilated,
    "a convolution of another padding": _reflecting,
    "a subclass": _subclass,
    "a forward of its own": _own_forward,
    "a layer's forward of its own": _own_layer,
    "a block's forward of its own": _own_block,
    "pruning": lambda m: prune.random_unstructured(_depthwise(m), "weight", 0.5),
    "weight norm, the older": lambda m: _older_weight_norm(_depthwise(m)),
    "weight norm": lambda m: _weight_norm(_depthwise(m)),
    "a parametrization": lambda m: torch.nn.utils.parametrize.register_parametrization(
        _depthwise(m), "weight", Zeroed()
    ),
}


def _older_weight_norm(conv: nn.Conv2d) -> None:
    with pytest.warns(FutureWarning):
        weight_norm(conv)
    conv.weight_g.data *= 2


def _weight_norm(conv: nn.Conv2d) -> None:
    parametrizations.weight_norm(conv)
    conv.parametrizations.weight.original0.data *= 2


@contextlib.contextmanager
def global_hooks_restored() -> Iterator[None]:
    before = dict(nn_module._global_forward_hooks)
    yield
    nn_module._global_forward_hooks.clear()
    nn_module._global_forward_hooks.update(before)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_changed_counts_without_gradients_too(change, model, image):
    x = image()
    before = without_gradients(model, x)
    torch.manual_seed(0)
    with global_hooks_restored():
        change(model)
        wanted = model(x)
        assert not torch.allclose(wanted, before, atol=1e-6), "the change must show at all"
        same(without_gradients(model, x), wanted)


def test_an_untouched_model_takes_the_fast_path(make_model):
    for keywords in ({}, {"norm_layer": nn.RMSNorm}, {"resi_connection": "3conv"}, {"attention": "topk"}):
        model = make_model(**(MAKE | keywords))
        assert stock(model)
        assert stock(copy.deepcopy(model))
    assert not may_infer(model.layers, torch.zeros(1, 4, 4, 12))  # with gradients


def test_a_removed_hook_leaves_the_fast_path_free(model):
    handle = _depthwise(model).register_forward_hook(lambda *_: None)
    assert not stock(model)
    handle.remove()
    assert stock(model)
    prune.random_unstructured(_depthwise(model), "weight", 0.5)
    assert not stock(model)
    prune.remove(_depthwise(model), "weight")
    assert stock(model)


def test_a_weight_of_another_class_is_not_read_by_a_kernel(model):
    class Labelled(Tensor):
        pass

    _depthwise(model).weight = nn.Parameter(_depthwise(model).weight.detach().as_subclass(Labelled))
    assert not stock(model)


def test_flops_of_each_module_are_complete_without_gradients(model, image):
    found = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False, depth=None) as counter:
            model(image())
        counts = counter.get_flop_counts()
        found.append({name: dict(ops) for name, ops in counts.items()})
    assert found[0] == found[1]
    assert "PFT.layers.0.residual_group.layers.0.convffn.dwconv.depthwise_conv.0" in found[1]


# -- hooks with gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"resi_connection": "3conv"},
        {"upsampler": "nearest+conv", "upscale": 4},
        {"upsampler": "pixelshuffle"},
        {"upsampler": "", "upscale": 1},
    ],
    ids=str,
)
def test_backward_hooks_on_every_module(keywords, make_model, image):
    model = make_model(**(MAKE | keywords))
    fired: set[str] = set()
    for name, m in model.named_modules():
        m.register_full_backward_hook(lambda *_, n=name: fired.add(n))
    x = image().requires_grad_()
    model(x).sum().backward()
    assert set(modules_of(model)) <= fired


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    "keywords", [{}, {"resi_connection": "3conv"}, {"upsampler": "nearest+conv", "upscale": 4}]
)
def test_what_a_hook_keeps_stays_as_it_was(keywords, grad, make_model, image):
    model = make_model(**(MAKE | keywords))
    kept: list[tuple[str, Tensor, Tensor]] = []

    def keep(name: str, out: object) -> None:
        if isinstance(out, Tensor):
            kept.append((name, out, out.detach().clone()))

    for name, m in model.named_modules():
        m.register_forward_hook(lambda _, given, out, n=name: (keep(n, out), keep(n, given[0]))[0])
    with torch.set_grad_enabled(grad):
        model(image())
    assert len(kept) > 50
    assert [name for name, tensor, then in kept if not torch.equal(tensor, then)] == []


@pytest.mark.parametrize(
    "keywords",
    [{}, {"resi_connection": "3conv"}, {"in_chans": 1}, {"upsampler": "nearest+conv", "upscale": 4}],
    ids=str,
)
def test_gradients_are_laid_out_as_their_parameters(keywords, make_model, image):
    """DistributedDataParallel warns of every difference, and copies."""
    for model in (make_model(**(MAKE | keywords)), copy.deepcopy(make_model(**(MAKE | keywords)))):
        model(image(channels=model.config.in_chans)).square().sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad.stride() != p.stride()] == []


# -- transforms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_of_the_model(grad, model, image):
    """Against the specification, on the same selection; in float64 it would be another program."""
    x = image()
    direction = torch.ones_like(x) / 8
    with torch.set_grad_enabled(grad):
        out, tangent = torch.func.jvp(model, (x,), (direction,))
        same(out, model(x))
    model.backend = "reference"
    wanted = torch.func.jvp(model, (x,), (direction,))[1]
    assert (tangent - wanted).norm() <= 1e-3 * wanted.norm()


def test_per_sample_gradients_of_the_model(model, image):
    weights = {name: p.detach() for name, p in model.named_parameters()}
    batch = torch.stack((image(), image().flip(-1), image() / 2))

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (x,)).square().mean()

    every = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, batch)
    for i, x in enumerate(batch):
        model.zero_grad()
        model(x).square().mean().backward()
        for name, p in model.named_parameters():
            assert (every[name][i] - p.grad).norm() <= 1e-3 * p.grad.norm() + 1e-6, name


def test_vmap_without_gradients(model, image):
    batch = torch.stack((image(), image().flip(-1)))
    with torch.no_grad():
        got = torch.func.vmap(model)(batch)
        same(got, torch.stack([model(x) for x in batch]))


# -- compilers ---------------------------------------------------------------------------------------------------------

SIZES = ((10, 11), (20, 24), (64, 16), (5, 40), (40, 40), (17, 30), (36, 32), (31, 33))
LARGE = ((33, 47), (48, 48))
"""Images for which PyTorch's convolutions lay their results out otherwise: a second graph."""


@pytest.mark.parametrize("grad", [True, False])
def test_one_compiled_model_serves_all_sizes(grad, make_model):
    """With gradients a forward and a backward graph, of sizes that are marked as those that change.

    Without them what Dynamo makes, and the sizes of its second graph; the export below has one from AOTAutograd. All
    numbers may change there, of which PyTorch makes constants when a graph is ready, to trace once more.
    """
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    model = make_model(**MAKE, depths=(2,), num_topk=(16, 9)).eval()
    counter = CompileCounterWithBackend("aot_eager" if grad else "eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=None if grad else True)
    with torch.set_grad_enabled(grad):
        for size in SIZES if grad else SIZES + LARGE:
            x = torch.rand(1, 3, *size)
            if grad:
                torch._dynamo.mark_dynamic(x, (2, 3))
            output = compiled(x)
            same(output, model(x))
            if grad:
                output.sum().backward()
    torch._dynamo.reset()
    assert counter.frame_count == (1 if grad else 2)


def test_compiling_may_be_the_first_thing_done():
    """In a process of its own: whatever has been called before has imported what a graph cannot."""
    code = (
        "import torch, pft_bench; torch.set_num_threads(1);"
        "m = pft_bench.PFT(embed_dim=8, depths=(2,), num_heads=2, num_topk=(16, 9), window_size=4,"
        " upsampler='pixelshuffledirect').eval();"
        "m = torch.compile(m, fullgraph=True, backend='eager');"
        "torch.set_grad_enabled(False); print(m(torch.rand(1, 3, 16, 16)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "torch.Size([1, 3, 32, 32])" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("grad", [True, False])
def test_export_with_dynamic_height_and_width(grad, make_model):
    model = make_model(**MAKE, depths=(2,), num_topk=(16, 9)).eval()
    dynamic = torch.export.Dim.DYNAMIC
    with torch.set_grad_enabled(grad):
        program = torch.export.export(
            model, (torch.rand(1, 3, 10, 11),), dynamic_shapes=({2: dynamic, 3: dynamic},)
        )
    exported = program.module()
    with torch.no_grad():
        for size in ((10, 11), (33, 47), (8, 8), (12, 9)):
            x = torch.rand(1, 3, *size)
            same(exported(x), model(x))
        with pytest.raises(AssertionError, match="Guard failed"):  # one window: said in docs/python.md
            exported(torch.rand(1, 3, 4, 9))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["cpu", "dense"])
def test_a_trace_serves_other_sizes_than_the_traced_one(backend, make_model):
    """Traced where there was nothing to pad, which must not be taken for always."""
    model = make_model(**(MAKE | {"backend": backend}), depths=(2,), num_topk=(16, 9)).eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.rand(1, 3, 8, 8), check_trace=False)
        for size in ((1, 10, 11), (2, 12, 12), (1, 33, 47), (1, 2, 3)):
            x = torch.rand(size[0], 3, *size[1:])
            same(traced(x), model(x))


def test_onnx_is_told_which_backend_it_can_have(model, image, monkeypatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with (
        pytest.raises(
            NotImplementedError, match=r"ONNX has no operator .* export a model with backend=.dense."
        ),
        torch.no_grad(),
        FlopCounterMode(display=False),  # a call that goes through the dispatcher, as an exporter's does
    ):
        model(image())
