"""An unmodified script that imports smm_cuda, run with our kernels, against float64."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pft_bench import compat
from pft_bench.backends import official
from pft_bench.compat.__main__ import main
from pft_bench.compat.fairscale import checkpoint_wrapper
from pft_bench.compat.no_gpu import cuda_is_cpu

SCRIPT = Path(__file__).parent / "published_style.py"
FUNCTIONS = {f"SMM_{op}_{way}_cuda" for op in ("QmK", "AmV") for way in ("forward", "backward")}


@pytest.fixture
def smm_cuda() -> Iterator[object]:
    yield compat.install()
    sys.modules.pop("smm_cuda", None)


def inputs(seed: int = 0, b: int = 3, n: int = 17, m: int = 17, c: int = 13, k: int = 5) -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randperm(m, generator=make)[:k] for _ in range(b * n)]).view(b, n, k)
    return {
        "q": torch.randn(b, n, c, generator=make),
        "k": torch.randn(b, m, c, generator=make),
        "v": torch.randn(b, m, c, generator=make),
        "index": index.int(),
        "grad": torch.randn(b, n, c, generator=make),
    }


def exact(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in float64, by gathering."""
    q, k, v = (given[name].double().requires_grad_() for name in "qkv")
    rows = torch.arange(q.shape[0]).view(-1, 1, 1)
    logits = torch.einsum("bnc,bnkc->bnk", q, k[rows, given["index"].long()])
    out = torch.einsum("bnk,bnkc->bnc", logits.softmax(-1), v[rows, given["index"].long()])
    out.backward(given["grad"].double())
    assert q.grad is not None
    assert k.grad is not None
    assert v.grad is not None
    return {"logits": logits.detach(), "out": out.detach(), "q": q.grad, "k": k.grad, "v": v.grad}


def test_an_unmodified_script(tmp_path: Path) -> None:
    given = inputs()
    torch.save(given, tmp_path / "in.pt")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pft_bench.compat", "--cpu"),
            *(SCRIPT, tmp_path / "in.pt", tmp_path / "out.pt"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 7, ended.stderr  # the script's own
    assert ended.stdout == "done on cpu\n"
    assert "'cuda' means the CPU" in ended.stderr
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    for name, wanted in exact(given).items():
        assert found[name].dtype == torch.float32
        assert torch.allclose(found[name].double(), wanted, rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_four_functions(smm_cuda, dtype: torch.dtype) -> None:
    """Names, shapes and gradients as FACTS of the extension have them; more keys than queries, too."""
    assert {name for name in vars(smm_cuda) if name.startswith("SMM")} == FUNCTIONS
    given = {name: value if name == "index" else value.to(dtype) for name, value in inputs(1, m=23).items()}
    q, keys, v, index, grad = *(given[name] for name in "qkv"), given["index"], given["grad"]
    kt = keys.transpose(1, 2).contiguous()
    logits = smm_cuda.SMM_QmK_forward_cuda(q, kt, index)
    attn = logits.softmax(-1)
    out = smm_cuda.SMM_AmV_forward_cuda(attn, v, index)
    grad_attn, grad_v = smm_cuda.SMM_AmV_backward_cuda(grad, attn, v, index)
    grad_logits = attn * (grad_attn - (grad_attn * attn).sum(-1, keepdim=True))
    grad_q, grad_kt = smm_cuda.SMM_QmK_backward_cuda(grad_logits, q, kt, index)
    found = {"logits": logits, "out": out, "q": grad_q, "k": grad_kt.transpose(1, 2), "v": grad_v}
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for name, wanted in exact(given).items():
        assert found[name].dtype == dtype
        assert torch.allclose(found[name].double(), wanted, rtol=tolerance, atol=tolerance), name
    assert grad_kt.shape == kt.shape
    assert grad_kt.is_contiguous()


def test_a_key_twice_in_a_row(smm_cuda) -> None:
    """The extension's own tests have such an index; every occurrence counts."""
    given = inputs(2)
    given["index"][0, 3] = given["index"][0, 3, 0]
    wanted = exact(given)
    kt = given["k"].transpose(1, 2).contiguous()
    logits = smm_cuda.SMM_QmK_forward_cuda(given["q"], kt, given["index"])
    attn = logits.softmax(-1)
    out = smm_cuda.SMM_AmV_forward_cuda(attn, given["v"], given["index"])
    grad_attn, grad_v = smm_cuda.SMM_AmV_backward_cuda(given["grad"], attn, given["v"], given["index"])
    grad_logits = attn * (grad_attn - (grad_attn * attn).sum(-1, keepdim=True))
    grad_q, grad_kt = smm_cuda.SMM_QmK_backward_cuda(grad_logits, given["q"], kt, given["index"])
    found = {"logits": logits, "out": out, "q": grad_q, "k": grad_kt.transpose(1, 2), "v": grad_v}
    for name in wanted:
        assert torch.allclose(found[name].double(), wanted[name], rtol=1e-5, atol=1e-5), name


def test_a_key_that_does_not_exist_is_an_error(smm_cuda) -> None:
    """The extension would read another window's memory."""
    given = inputs(3)
    given["index"][1, 2, 3] = 17
    with pytest.raises(ValueError, match=r"index must hold distinct keys in 0\.\.16, got 17"):
        smm_cuda.SMM_AmV_forward_cuda(torch.ones(3, 17, 5), given["v"], given["index"])
    with pytest.raises(ValueError, match="keys must be"):
        smm_cuda.SMM_QmK_forward_cuda(given["q"], given["k"][0], given["index"])


def test_install_is_told_from_the_published_extension(smm_cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    import smm_cuda as imported

    assert imported is smm_cuda
    assert "pft_bench's own" in str(official.OfficialBackend().available())
    with pytest.raises(ValueError, match="backend"):
        compat.install("nothing")
    assert compat.install("reference") is sys.modules["smm_cuda"]  # again: another backend
    monkeypatch.setitem(sys.modules, "smm_cuda", sys)
    with pytest.raises(RuntimeError, match="must not have been imported before"):
        compat.install()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.py"], "SCRIPT must be a file, got 'nowhere.py'"),
        (["--backend", "fast", str(SCRIPT)], "backend"),
        ([], "SCRIPT"),
    ],
)
def test_arguments_that_cannot_be_right(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_cuda_is_the_cpu_inside_only(tmp_path: Path) -> None:
    before = torch.load, torch.cuda.synchronize
    with cuda_is_cpu():
        x = torch.ones(2, device="cuda").to(torch.device("cuda", 1)).cuda().pin_memory()
        assert x.device.type == "cpu"
        torch.save(x, tmp_path / "x.pt")
        assert torch.load(tmp_path / "x.pt", "cuda").device.type == "cpu"
        assert torch.load(tmp_path / "x.pt", map_location=lambda storage, _: storage).sum() == 2
    assert (torch.load, torch.cuda.synchronize) == before
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            torch.ones(2, device="cuda")


def test_checkpoint_wrapper_computes_again() -> None:
    calls = []
    layer = torch.nn.Linear(3, 3)
    layer.register_forward_hook(lambda *_: calls.append(0))
    plain = layer.forward

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return plain(x)

    layer.forward = counted  # type: ignore[method-assign]
    wrapped = checkpoint_wrapper(layer)
    x = torch.ones(1, 3, requires_grad=True)
    wrapped(x).sum().backward()
    assert calls.count(1) == 2
    assert x.grad is not None
    assert torch.allclose(x.grad[0], layer.weight.sum(0))
