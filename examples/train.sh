#!/bin/sh
# Train the small model on two processes that share each batch; kill it at any time and call it again: it continues.
#
#     examples/train.sh PHOTOGRAPHS OUT [OPTIONS OF pft-bench train]
#
# The losses are those of one process. `pft-bench upscale --weights OUT/weights.safetensors` uses what comes out.
set -eu
photographs=$1 out=$2
shift 2
if [ -e "$out/checkpoint.pt" ]; then set -- --resume "$@"; fi
exec torchrun --standalone --nproc-per-node 2 -m pft_bench train --data "$photographs" --out "$out" \
  --preset small_x2 --init interpolation --threads 1 "$@"
