"""A script that says "cuda" in threads, in a process that multiprocessing spawns, and in a script that it starts."""

import multiprocessing
import subprocess
import sys
import threading


def where():
    import fairscale.nn  # provided where it is not installed; here before torch is imported
    import smm_cuda
    import torch

    x = torch.zeros(2, device="cuda:0", requires_grad=True)
    seen = []
    x.register_hook(lambda grad: seen.append(torch.ones(1, device="cuda").to(0).device))
    (x.to(0) * 2).sum().backward()
    assert smm_cuda.SMM_QmK_forward_cuda
    assert fairscale.nn.checkpoint_wrapper
    return f"{torch.device('cuda', 0)} {seen[0]}"


def put(queue):
    queue.put(where())


if __name__ == "__main__":
    if "child" in sys.argv:
        print(where(), end="")
    else:
        found = {}
        thread = threading.Thread(target=lambda: found.update(thread=where()))
        thread.start()
        thread.join()
        context = multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        process = context.Process(target=put, args=(queue,))
        process.start()
        found["spawned"] = queue.get()
        process.join()
        command = [sys.executable, __file__, "child"]
        found["script"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        plain = "import sys; print('torch' in sys.modules, sys.path[0], sep='')"
        found["plain"] = subprocess.run(
            [sys.executable, "-c", plain], capture_output=True, text=True, check=True
        ).stdout.strip()
        print(found)
