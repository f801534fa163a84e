"""Every way in which a script names the device "cuda" ends on the CPU, or says that it is not covered."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import get_testing_overrides
from torch.utils.data import DataLoader, TensorDataset

from pft_bench.compat.devices import FACTORIES
from pft_bench.compat.no_gpu import cuda_is_cpu

SCRIPT = Path(__file__).parent / "several_processes.py"
REAL = torch.device


@pytest.fixture
def here() -> Iterator[None]:
    with cuda_is_cpu():
        yield


def ones() -> Tensor:
    return torch.ones(2)


PLACES: dict[str, Callable[[], Any]] = {
    "device(0)": lambda: torch.device(0),
    "device('cuda', 0)": lambda: torch.device("cuda", 0),
    "device('cuda:1')": lambda: torch.device("cuda:1"),
    "device(type=, index=)": lambda: torch.device(type="cuda", index=1),
    "device of a device": lambda: torch.device(torch.device("cuda")),
    "to a number": lambda: ones().to(0).device,
    "to device=": lambda: ones().to(device=0, non_blocking=True).device,
    "to a number with a dtype": lambda: ones().to(1, torch.float64).device,
    "to a real device": lambda: ones().to(REAL("cuda", 0)).device,
    "to a number of NumPy": lambda: ones().to(np.int64(0)).device,
    "device of a number of NumPy": lambda: torch.device(np.int32(0)),
    "new": lambda: ones().new(2, device="cuda:0").device,
    "data_parallel": lambda: nn.parallel.data_parallel(nn.Linear(2, 2), ones(), [0, 1]).device,
    "cuda(0)": lambda: ones().cuda(0, non_blocking=True).device,
    "new_zeros": lambda: ones().new_zeros(2, device=0).device,
    "type": lambda: ones().type("torch.cuda.DoubleTensor").device,
    "legacy type": lambda: torch.cuda.FloatTensor([1.0]).device,
    "zeros_like": lambda: torch.zeros_like(ones(), device="cuda").device,
    "pinned": lambda: torch.empty(2, pin_memory=True).pin_memory().device,
    "module.to": lambda: nn.Linear(2, 2).to(0).weight.device,
    "module.cuda": lambda: nn.Linear(2, 2).cuda(0).weight.device,
    "module made there": lambda: nn.Linear(2, 2, device=0).weight.device,
    "to_empty": lambda: nn.Linear(2, 2, device="meta").to_empty(device="cuda").weight.device,
    "DataParallel": lambda: nn.DataParallel(nn.Linear(2, 2), [0]).to(0)(ones()).device,
    "packed": lambda: nn.utils.rnn.pack_sequence([ones()]).cuda().data.device,
    "storage": lambda: ones().untyped_storage().cuda().device,
    "Generator": lambda: torch.Generator("cuda").manual_seed(1).device,
    "Generator(device=)": lambda: torch.Generator(device=torch.device("cuda", 0)).device,
    "drawn with a generator": lambda: torch.randn(2, generator=torch.Generator(0), device=0).device,
    "current_device": lambda: ones().to(f"cuda:{torch.cuda.current_device()}").device,
    "pickled": lambda: pickle.loads(pickle.dumps(torch.device("cuda"))),
    "copied": lambda: copy.deepcopy(torch.device("cuda")),
}


@pytest.mark.parametrize("way", PLACES)
def test_it_is_plain_cpu(here: None, way: str) -> None:
    assert PLACES[way]() == REAL("cpu")


# Two take more than a device and a size.
@pytest.mark.parametrize("name", sorted(set(FACTORIES) - {"empty_quantized", "sparse_compressed_tensor"}))
def test_factories(here: None, name: str, tmp_path: Path) -> None:
    """Each that is listed reads "cuda" and 0; the arguments are the fewest that make something."""
    given: dict[str, tuple[Any, ...]] = {
        **dict.fromkeys(("as_tensor", "asarray", "tensor", "nested.nested_tensor"), ([],)),
        "nested.as_nested_tensor": ([ones()],),
        "empty_permuted": ((2, 2), (0, 1)),
        "empty_strided": ((2,), (1,)),
        "full": ((2,), 1.0),
        "full_like": (ones(), 1.0),
        "linspace": (0, 1, 2),
        "logspace": (0, 1, 2),
        "normal": (0.0, 1.0, (2,)),
        "randint": (3, (2,)),
        "randint_like": (ones(), 3),
        "scalar_tensor": (1,),
        "tril_indices": (2, 2),
        "triu_indices": (2, 2),
        "sparse_coo_tensor": ([[0]], [1.0], (2,)),
        "sparse_csr_tensor": ([0, 1], [0], [1.0], (1, 2)),
        "sparse_csc_tensor": ([0, 1], [0], [1.0], (2, 1)),
        "sparse_bsr_tensor": ([0, 1], [0], [[[1.0]]], (1, 1)),
        "sparse_bsc_tensor": ([0, 1], [0], [[[1.0]]], (1, 1)),
        "range": (0, 1),
        "from_file": (str(tmp_path / "x"), True, 0),
    }
    make: Any = torch
    for part in name.split("."):
        make = getattr(make, part)
    default = (ones(),) if name.endswith("_like") else (2,)
    for device in (0, "cuda", REAL("cuda", 1)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert make(*given.get(name, default), device=device).device == REAL("cpu")


def test_no_factory_of_torch_is_forgotten() -> None:
    """What torch itself lists as taking a device."""
    from torch.utils._device import _device_constructors

    known = {name.rpartition(".")[2] for name in FACTORIES}
    listed = {function.__name__.removeprefix("fft_") for function in _device_constructors()}
    listed |= {f.__name__ for f, dummy in get_testing_overrides().items() if takes_a_device(dummy)}
    assert listed <= known


def takes_a_device(dummy: Callable[..., Any]) -> bool:
    return "device" in inspect.signature(dummy).parameters


LOCATIONS: dict[str, Any] = {
    "nothing": None,
    "a number": 0,
    "a number of NumPy": np.int64(1),
    "a name": "cuda:3",
    "a device": lambda: torch.device("cuda", 0),
    "a real device": lambda: REAL("cuda", 0),
    "a mapping": {"cuda:0": "cuda:1"},
    "a mapping to the CPU": {"cuda:1": "cpu"},
    "a function that moves": lambda: lambda storage, place: storage.cuda(0),
    "a function that names": lambda: lambda storage, place: "cuda:0",
    "a function that leaves": lambda: lambda storage, place: None,
}


@pytest.fixture(scope="module")
def saved_on_a_gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torch.save writes one of a tensor on the second GPU."""
    path = tmp_path_factory.mktemp("gpu") / "net.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:1")
        torch.save({"a": torch.arange(3)}, path)
    return path


@pytest.mark.parametrize("kind", LOCATIONS)
def test_map_location(here: None, saved_on_a_gpu: Path, kind: str) -> None:
    where = LOCATIONS[kind]() if callable(LOCATIONS[kind]) else LOCATIONS[kind]
    for found in (torch.load(saved_on_a_gpu, where), torch.load(saved_on_a_gpu, map_location=where)):
        assert found["a"].device == REAL("cpu")
        assert found["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0])
def test_safetensors(here: None, tmp_path: Path, device: Any) -> None:
    save_file({"a": ones()}, tmp_path / "x.safetensors")
    assert load_file(tmp_path / "x.safetensors", device=device)["a"].device == REAL("cpu")


def test_defaults(here: None) -> None:
    try:
        for device in (0, "cuda", torch.device("cuda", 1)):
            torch.set_default_device(device)
            assert torch.zeros(1).device == torch.get_default_device() == REAL("cpu")
        torch.set_default_tensor_type("torch.cuda.DoubleTensor")
        assert torch.zeros(1).dtype == torch.float64
    finally:
        torch.set_default_device(None)
        torch.set_default_tensor_type("torch.FloatTensor")
    with torch.device("cuda"):
        assert torch.zeros(1).device == REAL("cpu")
    with torch.cuda.device(0):
        assert torch.zeros(1).device == REAL("cpu")


def test_types_stay_types(here: None) -> None:
    assert isinstance(ones().device, torch.device)
    assert isinstance(torch.default_generator, torch.Generator)
    assert not isinstance("cuda", torch.device)
    assert torch.device == REAL
    assert torch.device | None
    assert not isinstance(0, torch.cuda.Event)
    with pytest.raises(RuntimeError, match="Expected one of cpu, cuda"):
        torch.device("cuuda")
    with pytest.raises(TypeError, match="must be int, not str"):
        torch.device("cuda", "0")


def test_random_numbers(here: None) -> None:
    torch.cuda.manual_seed_all(3)
    first = torch.randn(3, device="cuda")
    torch.cuda.manual_seed(3)
    state = torch.cuda.get_rng_state(0)
    assert torch.equal(torch.randn(3, device="cuda"), first)
    torch.cuda.set_rng_state(state)
    with torch.random.fork_rng(devices=[0]):
        assert torch.equal(torch.randn(3, device="cuda"), first)
    assert torch.equal(torch.randn(3, device="cuda"), first)
    torch.manual_seed(5)
    assert torch.cuda.initial_seed() == 5


@pytest.mark.parametrize(
    ("context", "dtype"),
    [
        (lambda: torch.autocast("cuda"), torch.float16),
        (lambda: torch.amp.autocast(device_type="cuda", dtype=torch.bfloat16), torch.bfloat16),
        (lambda: torch.cuda.amp.autocast(), torch.float16),
        (lambda: torch.cuda.amp.autocast(enabled=False), torch.float32),
        (lambda: torch.autocast("cpu"), torch.bfloat16),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.cuda.amp:FutureWarning")
def test_mixed_precision(here: None, context: Callable[[], Any], dtype: torch.dtype) -> None:
    layer = nn.Linear(2, 2).cuda()
    with context():
        assert layer(ones()).dtype == dtype
        assert torch.is_autocast_enabled() == torch.is_autocast_enabled("cuda") == (dtype != torch.float32)


@pytest.mark.filterwarnings("ignore:.*torch.cuda.amp:FutureWarning")
def test_gradients_are_scaled(here: None) -> None:
    """As with a GPU: a scaler that did nothing would lose what float16 cannot hold."""
    for scaler in (
        torch.amp.GradScaler("cuda"),
        torch.cuda.amp.GradScaler(),
        torch.amp.GradScaler(device="cuda"),
    ):
        assert scaler.scale(ones()).tolist() == [65536, 65536]


def test_custom_functions_keep_their_precision(here: None) -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
        def forward(ctx: Any, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32
            return 2 * x

        @staticmethod
        @torch.amp.custom_bwd(device_type="cuda")
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2 * grad

    with torch.autocast("cuda"):
        x = torch.ones(2, dtype=torch.float16, requires_grad=True)
        Twice.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2, 2]


def test_threads_and_hooks(here: None) -> None:
    found: dict[str, Any] = {}

    def work() -> None:
        found["thread"] = torch.zeros(1, device="cuda").to(0).device

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    x = ones().requires_grad_()
    x.register_hook(lambda grad: found.update(tensor=torch.zeros(1, device=0).cuda().device))
    layer = nn.Linear(2, 1)
    layer.register_full_backward_hook(lambda *_: found.update(module=torch.device("cuda")))
    layer(x * 1).sum().backward()
    assert found == dict.fromkeys(("thread", "tensor", "module"), REAL("cpu"))


@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_a_data_loader(here: None) -> None:
    data = TensorDataset(torch.arange(4.0))
    loader = DataLoader(data, shuffle=True, pin_memory=True, generator=torch.Generator("cuda"))
    assert sorted(batch[0].cuda().item() for batch in loader) == [0, 1, 2, 3]


def test_compiled(here: None) -> None:
    @torch.compile(backend="eager")
    def compiled(x: Tensor) -> Tensor:
        return x.to("cuda") + torch.ones(2, device="cuda:0")

    assert compiled(ones().to(0)).tolist() == [2, 2]


def scripted(x: Tensor, place: torch.device) -> Tensor:
    """As TorchScript compiles it: operators and a device by name."""
    y = torch.zeros(2, device=place) + torch.ones_like(x) + torch.zeros(2, device=torch.device("cpu"))
    return y + 1 if torch.is_autocast_enabled() else y


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript(here: None) -> None:
    assert torch.jit.script(scripted)(ones(), torch.device("cuda", 0)).tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_custom_function_by_its_older_name(here: None) -> None:
    decorate = torch.cuda.amp.autocast_mode.custom_fwd
    assert decorate(lambda context, x: x + 1)(SimpleNamespace(), 1) == 2


@pytest.mark.parametrize("backend", ["gloo", "cpu:gloo,cuda:nccl"])
def test_processes_that_name_their_gpu(here: None, tmp_path: Path, backend: str) -> None:
    """As BasicSR spreads a model, with the backend that there is."""
    torch.distributed.init_process_group(
        backend, f"file://{tmp_path}/meet", rank=0, world_size=1, device_id=torch.device("cuda", 0)
    )
    try:
        model = nn.Linear(2, 1).cuda()
        for given in (([torch.cuda.current_device()], 0), ()):
            spread = nn.parallel.DistributedDataParallel(model, *given, find_unused_parameters=True)
        spread = nn.parallel.DistributedDataParallel(model, device_ids=[0], output_device=0)
        spread(ones()).backward()
        torch.distributed.barrier(device_ids=[0])
        assert model.weight.grad is not None
        assert model.weight.grad.tolist() == [[1, 1]]
    finally:
        torch.distributed.destroy_process_group()


NOTHING_TO_DO = {
    "synchronize": lambda: torch.cuda.synchronize(0),
    "set_device": lambda: torch.cuda.set_device("cuda:0"),
    "empty_cache": lambda: torch.cuda.empty_cache(),
    "ipc_collect": lambda: torch.cuda.ipc_collect(),
    "init": lambda: torch.cuda.init(),
    "accelerator": lambda: (torch.accelerator.synchronize(), torch.accelerator.set_device_index(0)),
    "cache of any accelerator": lambda: torch.accelerator.empty_cache(),
    "of the module by its name": lambda: torch.get_device_module("cuda").synchronize(),
    "stream(None)": lambda: torch.cuda.stream(None),
}


@pytest.mark.parametrize("name", NOTHING_TO_DO)
def test_what_means_nothing_on_a_cpu(here: None, name: str) -> None:
    NOTHING_TO_DO[name]()


def test_there_is_no_gpu(here: None) -> None:
    assert (torch.cuda.is_available(), torch.cuda.device_count()) == (False, 0)


NOT_COVERED: dict[str, Callable[[], Any]] = {
    "torch.cuda.Event": lambda: torch.cuda.Event(enable_timing=True),
    "torch.cuda.Stream": lambda: torch.cuda.Stream(),
    "torch.cuda.current_stream": lambda: torch.cuda.current_stream(),
    "torch.cuda.memory_allocated": lambda: torch.cuda.memory_allocated(),
    "torch.cuda.max_memory_allocated": lambda: torch.cuda.max_memory_allocated(0),
    "torch.cuda.reset_peak_memory_stats": lambda: torch.cuda.reset_peak_memory_stats(),
    "torch.cuda.memory.memory_stats": lambda: torch.cuda.memory.memory_stats(),
    "torch.cuda.memory._record_memory_history": lambda: torch.cuda.memory._record_memory_history(),
    "torch.cuda.memory._snapshot": lambda: torch.cuda.memory._snapshot(),
    "torch.cuda.streams.Event": lambda: torch.cuda.streams.Event(enable_timing=True),
    "torch.cuda._sleep": lambda: torch.cuda._sleep(10),
    "torch.cuda.nccl.version": lambda: torch.cuda.nccl.version(),
    "torch.accelerator.memory_allocated": lambda: torch.accelerator.memory_allocated(),
    "torch.accelerator.current_stream": lambda: torch.accelerator.current_stream(),
    "torch.nn.parallel.replicate": lambda: nn.parallel.replicate(nn.Linear(2, 2), [0, 1]),
    "torch.nn.parallel.scatter": lambda: nn.parallel.scatter(ones(), [0, 1]),
    "torch.cuda.mem_get_info": lambda: torch.cuda.mem_get_info(),
    "torch.cuda.get_device_name": lambda: torch.cuda.get_device_name(0),
    "torch.cuda.get_device_properties": lambda: torch.cuda.get_device_properties("cuda"),
    "torch.cuda.get_device_capability": lambda: torch.cuda.get_device_capability(),
    "torch.cuda.utilization": lambda: torch.cuda.utilization(),
    "torch.cuda.CUDAGraph": lambda: torch.cuda.CUDAGraph(),
    "torch.cuda.graph": lambda: torch.cuda.graph(None),
    "torch.cuda.nvtx.range_push": lambda: torch.cuda.nvtx.range_push("x"),
    "torch.cuda.nvtx.range": lambda: torch.cuda.nvtx.range("x"),
    "torch.Event": lambda: torch.Event("cuda"),
    "torch.Stream": lambda: torch.Stream(device="cuda"),
    "Tensor.record_stream": lambda: ones().record_stream(None),  # type: ignore[arg-type]
    "NCCL": lambda: torch.distributed.init_process_group("nccl"),
    "what this call asks of CUDA": lambda: torch.cuda._lazy_init(),
}


@pytest.mark.parametrize("name", NOT_COVERED)
def test_what_is_not_covered_says_so(here: None, name: str) -> None:
    with pytest.raises(
        RuntimeError, match=f"^pft_bench.compat does not cover {name}[: ].*on a machine with a GPU$"
    ):
        NOT_COVERED[name]()


def test_nothing_of_torch_cuda_speaks_of_another_build(here: None) -> None:
    """Whatever else has a name there: without arguments it works, misses them, or says that it is not covered."""
    for name in torch.cuda.__all__:
        value = getattr(torch.cuda, name)
        if not callable(value):
            continue
        said = ""
        try:
            value()
        except Exception as error:
            said = str(error)
        assert not re.search("compiled? with|CUDA support|dummy", said), (name, said)


def test_everything_is_put_back() -> None:
    owners = (
        torch,
        torch.cuda,
        torch.cuda.memory,
        torch.cuda.nvtx,
        torch.Tensor,
        nn.Module,
        torch.amp,
        torch.jit,
    )
    owners += (torch.UntypedStorage, torch.TypedStorage, torch.autocast, torch.GradScaler, torch.random)
    before = [dict(vars(owner)) for owner in owners]
    with cuda_is_cpu():
        assert torch.device is not REAL
    for owner, was in zip(owners, before, strict=True):
        now = dict(vars(owner))
        ignored = {"__warningregistry__", "__slotnames__"}
        assert {name for name in was | now if was.get(name) is not now.get(name)} <= ignored, owner


def test_threads_processes_and_scripts_of_a_script() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pft_bench.compat", "--cpu", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    found = ast.literal_eval(ended.stdout)
    assert found == {**dict.fromkeys(("thread", "spawned", "script"), "cpu cpu"), "plain": "False"}
