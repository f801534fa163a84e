"""A script as users of the published code have it: it imports smm_cuda, says "cuda", and knows nothing of pft_bench.

Given as arguments: a file of float32 tensors q [b,n,c], k [b,n,c], v [b,n,c], index and upstream gradient [b,n,c], and
where to save what it finds.
"""

import sys

import smm_cuda
import torch
from torch.autograd import Function


def function_of(forward_pass, backward_pass):
    """A pair of the extension's functions as one that PyTorch can differentiate."""

    class Product(Function):
        @staticmethod
        def forward(ctx, a, b, index):
            ctx.save_for_backward(a, b, index)
            return forward_pass(a.contiguous(), b.contiguous(), index.contiguous())

        @staticmethod
        def backward(ctx, grad):
            a, b, index = ctx.saved_tensors
            grad_a, grad_b = backward_pass(
                grad.contiguous(), a.contiguous(), b.contiguous(), index.contiguous()
            )
            return grad_a, grad_b, None

    return Product.apply


def main(source, target):
    device = torch.device("cuda")
    given = torch.load(source, map_location="cuda")
    q, k, v = (torch.nn.Parameter(given[name].cuda()) for name in "qkv")
    index = given["index"].to(device).int()
    products = function_of(smm_cuda.SMM_QmK_forward_cuda, smm_cuda.SMM_QmK_backward_cuda)
    weighted = function_of(smm_cuda.SMM_AmV_forward_cuda, smm_cuda.SMM_AmV_backward_cuda)
    logits = products(q, k.transpose(-2, -1), index)
    out = weighted(logits.softmax(-1), v, index)
    out.backward(given["grad"].to("cuda:0"))
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.zeros(2, device="cuda").shape == torch.nn.Linear(2, 3).cuda().weight.shape[1:]
    found = {"logits": logits, "out": out, "q": q.grad, "k": k.grad, "v": v.grad}
    torch.save({name: value.detach().cpu() for name, value in found.items()}, target)
    print("done on", out.device)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.exit(7)
