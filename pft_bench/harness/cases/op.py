"""Level op: sddmm and spmm alone, at the shapes of the model, beside the best public operators for the same work."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from ... import ops
from ...backends import get
from ..check.operator import check_product, exact_product
from ..check.result import CheckResult, within
from ..check.spot import spot_product, spot_product_gradients
from ..measure.contender import Call, Contender
from ..problem import Problem
from ..record import Case, Flops
from ..record.yardsticks import PEERS, ROW_READS
from .changing_inputs import Inputs
from .changing_work import ChangingWork
from .gradients import GradientCall
from .group import Group
from .settings import BASELINE, Settings

CALLED = ("cpu-op", "cpu-op-tensor")
"""The `cpu` kernel as a caller of `pft_bench.sddmm` and `spmm` sees it: on an `Index`, and on a tensor to check.

With PFT_OP_CALLS=1 in the environment: they time what is around a kernel, not another kernel.
"""


class OpGroup(Group):
    """One of sddmm and spmm at one K: every backend; for inference on a CPU the public peer and the whole op too."""

    baseline = BASELINE

    def __init__(self, settings: Settings, op: str, kept: int) -> None:
        super().__init__(settings)
        self.problem = settings.problem(op, kept, kept)
        self.title = f"{op} K={kept}"
        self.cost = 1.0
        self.names = [*settings.backends]
        if settings.device == "cpu" and settings.mode == "infer" and settings.dtype == "float32":
            self.names.append(PEERS[op])
            if "cpu" in settings.backends:
                self.names += [ROW_READS, *(CALLED if os.environ.get("PFT_OP_CALLS") == "1" else ())]

    @property
    def cases(self) -> dict[str, Case]:
        """Contender name -> its case."""
        settings, problem = self.settings, self.problem
        return settings.cases("op", problem.op, self.names, shapes=settings.shapes, k=problem.kept)

    def contenders(self) -> list[Contender]:
        """Raw launchers for inference; the differentiable op where gradients are wanted."""
        inputs = self.problem.inputs(self.settings.device)
        infer = self.settings.mode == "infer"
        grad = {} if infer else {"grad_out": output_gradient(self.problem, *inputs.values())}
        changing = Inputs({**inputs, **grad})
        left, right = (inputs["q"], inputs["k"]) if self.problem.op == "sddmm" else (inputs["a"], inputs["v"])
        found, op = [], self.problem.op
        fixed = {**inputs, "index": inputs["index"].clone()}  # the index that others change
        index = fixed["index"]
        for name in self.names:
            if name == "sampled_addmm":
                found.append(_peer(name, op, fixed, *_sampled_addmm(left, right, index)))
            elif name == "embedding_bag":
                found.append(_peer(name, op, fixed, *_embedding_bag(left, right, index)))
            elif name == ROW_READS:
                found.append(_row_reads(right, index))
            elif name in CALLED:
                found.append(_peer(name, op, fixed, *_called(name, op, left, right, index)))
            else:
                found.append((self._forward if infer else self._gradients)(name, changing))
        return found

    def _forward(self, name: str, changing: Inputs) -> Contender:
        backend, op = get(name), self.problem.op
        return Contender(
            name,
            partial(getattr(backend, op), *changing.given.values()),
            lambda _: check_product(backend, op, changing.given),
            work=ChangingWork(
                changing,
                lambda output, head: spot_product(op, changing.given, output, head),
                own=name == BASELINE,
            ),
        )

    def _gradients(self, name: str, changing: Inputs) -> Contender:
        backend, op = get(name), self.problem.op
        inputs = dict(changing.given)
        grad = inputs.pop("grad_out")
        left, right, index = inputs.values()
        call = _gradient_call(self.problem, left, right, index, grad, name)

        def judge(output: object, head: int | None) -> list[CheckResult]:
            made = [item for product in call.made for item in spot_product(op, inputs, product, head)]
            return made + spot_product_gradients(op, inputs, grad, output, head)

        return Contender(
            name,
            call,
            lambda _: check_product(backend, op, inputs, train=True),
            work=call.work(changing, judge, own=name == BASELINE),
        )

    def counted(self, contender: Contender) -> Call:
        """A raw launcher is invisible to the counter: count the op around it."""
        if contender.name in (*PEERS.values(), ROW_READS, *CALLED) or self.settings.mode != "infer":
            return contender.call
        operands = self.problem.inputs(self.settings.device)
        function = getattr(ops, self.problem.op)
        return lambda: function(*operands.values(), backend=contender.name)

    def flops(self, name: str) -> Flops:
        """The roofline's counts of the problem; `row_reads` has those of the problem whose reads it makes."""
        return Flops.of([self.problem])


def output_gradient(problem: Problem, left: Tensor, right: Tensor, index: Tensor) -> Tensor:
    """A fixed standard normal gradient of the product."""
    generator = torch.Generator().manual_seed(1)
    width = index.shape[-1] if problem.op == "sddmm" else right.shape[-1]
    return torch.randn((*index.shape[:2], width), generator=generator).to(left.dtype).to(left.device)


def _gradient_call(
    problem: Problem, left: Tensor, right: Tensor, index: Tensor, grad: Tensor, backend: str
) -> GradientCall:
    function = getattr(ops, problem.op)
    left, right = left.detach().requires_grad_(), right.detach().requires_grad_()
    return GradientCall(
        problem.mode, lambda: [function(left, right, index, backend=backend)], [left, right], lambda _: [grad]
    )


PeerCheck = Callable[[Call], Sequence[CheckResult]]


def _peer_check(
    op: str, left: Tensor, right: Tensor, index: Tensor, read: Callable[[object], Tensor]
) -> PeerCheck:
    """Check the very output of a peer's call against the float64 product."""

    def check(call: Call) -> Sequence[CheckResult]:
        exact, bound = exact_product(op, left, right, index)
        return [within(f"{op} operator", read(call()), exact, bound)]

    return check


Read = Callable[[object], Tensor]


def _peer(name: str, op: str, inputs: dict[str, Tensor], call: Call, read: Read) -> Contender:
    """A public operator. What it prepared from the index is not timed, so the index must stay what it is."""
    left, right, index = inputs.values()
    names = tuple(inputs)[:2]
    changing = Inputs(dict(zip(names, (left, right), strict=True)))

    def judge(output: object, head: int | None = None) -> Sequence[CheckResult]:
        return spot_product(op, {**changing.given, "index": index}, read(output), head)

    return Contender(
        name, call, _peer_check(op, left, right, index, read), work=ChangingWork(changing, judge)
    )


def _sampled_addmm(q: Tensor, k: Tensor, index: Tensor) -> tuple[Call, Read]:
    """`torch.sparse.sampled_addmm` on batched CSR; building the pattern is not timed."""
    batch, queries, kept = index.shape
    rows = torch.arange(0, queries * kept + 1, kept, dtype=torch.int32).expand(batch, -1).contiguous()
    columns = index.to(torch.int32).flatten(1)
    values = torch.zeros_like(columns, dtype=q.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(
            rows, columns, values, (batch, queries, k.shape[1]), check_invariants=True
        )
    keys = k.transpose(-1, -2)

    def call() -> object:
        return torch.sparse.sampled_addmm(pattern, q, keys, beta=0.0)

    def read(result: object) -> Tensor:
        assert isinstance(result, Tensor)
        return result.values().view(index.shape)

    return call, read


def _embedding_bag(a: Tensor, v: Tensor, index: Tensor) -> tuple[Call, Read]:
    """`embedding_bag(mode="sum")` with per-sample weights over all window-heads' rows; offsetting is not timed."""
    batch, queries, kept = index.shape
    offset = torch.arange(batch).view(-1, 1, 1) * v.shape[1]
    rows = (index.long() + offset).view(batch * queries, kept)
    table, weights = v.reshape(-1, v.shape[-1]), a.reshape(batch * queries, kept)

    def call() -> object:
        return torch.nn.functional.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")

    def read(result: object) -> Tensor:
        assert isinstance(result, Tensor)
        return result.view(batch, queries, -1)

    return call, read


def _called(name: str, op: str, left: Tensor, right: Tensor, index: Tensor) -> tuple[Call, Read]:
    """The public op, whose index is checked beforehand ("cpu-op") or in the call ("cpu-op-tensor")."""
    given = ops.Index(index, right.shape[1]) if name == CALLED[0] else index
    call = partial(getattr(ops, op), left, right, given, backend="cpu")
    return call, lambda result: cast(Tensor, result)


def _row_reads(rows: Tensor, index: Tensor) -> Contender:
    """[B, D], the sum of all rows that `index` [B, N, K] names in `rows` [B, M, D].

    Of whole numbers: a long sum in float32 is then exact, and a row too many or too few shows.
    """
    changing = Inputs({"rows": (4 * rows).round().clamp(-8, 8), "index": index.clone()}, rotated=["rows"])
    rows, index = changing.given.values()

    def judge(output: object, _: int | None = None) -> Sequence[CheckResult]:
        entries = index.flatten(1).long()
        times = torch.zeros(rows.shape[:2], dtype=torch.float64)
        times.scatter_add_(1, entries, torch.ones_like(entries, dtype=torch.float64))
        exact = torch.einsum("bm,bmd->bd", times, rows.double())
        return [within("row reads", cast(Tensor, output), exact, torch.full_like(exact, 0.5))]

    call = partial(get("cpu").row_reads, rows, index)  # type: ignore[attr-defined]
    return Contender(ROW_READS, call, lambda call: judge(call()), work=ChangingWork(changing, judge))


def op_groups(settings: Settings) -> list[Group]:
    """sddmm and spmm at every K that the schedules keep."""
    kept = {
        pair[1] for schedule in settings.schedules for pair in settings.config.along_chains(schedule.num_topk)
    }
    return [OpGroup(settings, op, k) for k in sorted(kept, reverse=True) for op in ("sddmm", "spmm")]
