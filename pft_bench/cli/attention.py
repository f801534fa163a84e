"""`pft-bench attention`: what each layer still looks at, from the first dense layer to the last."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common.container import check_threads
from ..common.drafts import require_writable
from ..common.terminal import Console
from . import options
from .work import at_work

if at_work(__name__):
    import numpy as np
    import torch

    from ..apps.focus import LayerFocus, focus_of, view_around
    from ..apps.images import READ_SUFFIXES, read_picture, rgb, taken
    from ..harness.cases.group import thread_count
    from ..model import preset
    from ..report.focus import Panel, write_focus_plot
    from .loading import load_model


def attention(
    context: typer.Context,
    image: Annotated[Path, options.argument("IMAGE", help="A low-resolution picture.")],
    query: Annotated[
        str | None, typer.Option(metavar="Y,X", help="The pixel that looks. Default: the middle.")
    ] = None,
    weights: Annotated[
        Path | None,
        options.read(
            help="PFT checkpoint or small_x2, the one that comes along. Default: generated weights of --preset."
        ),
    ] = None,
    preset_name: Annotated[
        str, typer.Option("--preset", help="Model for generated weights, e.g. classical_x4.")
    ] = "light_x4",
    sched: Annotated[str | None, typer.Option(help="Focus schedule. Default: the model's own.")] = None,
    head: Annotated[
        int | None, typer.Option(min=1, help="Show one head, from 1 on. Default: the mean of all.")
    ] = None,
    backend: Annotated[str, typer.Option(help="Kernels that compute the attention.")] = "auto",
    num_heads: options.NumHeads = None,
    device: options.Device = "auto",
    threads: options.Threads = 0,
    out: Annotated[Path, options.file(help="The figure to write (.png, .svg, .pdf).")] = Path(
        "attention.png"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out where it exists.")] = False,
) -> None:
    """Draw the attention row of one pixel in every layer: candidates, kept tokens, weights.

    Of a large picture only the part around the query is computed.
    """
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--out must end in .png, .svg or .pdf, got {out.name!r}")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists: choose another name with --out, or add --overwrite")
    if not image.exists():
        raise ValueError(
            f"IMAGE must be a picture ({', '.join(READ_SUFFIXES)}), got {image}: there is no such file"
        )
    if weights is None:
        preset(preset_name)
    else:
        options.refuse(
            context, ("preset_name",), "is the model of generated weights: leave it out with --weights"
        )
    options.refuse_what_is_read(out, image, weights)
    picture = read_picture(image)
    pixels = rgb(picture) / picture.peak
    place = parse_query(query, picture.size_hw)
    model = load_model(
        weights, backend=backend, sched=sched, heads=num_heads, device=device, preset_name=preset_name
    )
    if model.config.in_chans != 3:
        raise ValueError(
            f"--weights must be of a model for colour, got one of {model.config.in_chans} channels"
        )
    heads = model.config.num_heads
    if head is not None and head > heads:
        raise ValueError(f"--head must be at most {heads}, got {head}")
    require_writable(out)
    view = view_around(place, picture.size_hw, model.config.window_size)
    pixels = pixels[view.top : view.bottom, view.left : view.right]
    place = place[0] - view.top, place[1] - view.left
    x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)).unsqueeze(0)
    with thread_count(check_threads(threads)):
        layers = focus_of(model, x.to(next(model.parameters()).device), place)
    name = (
        weights.name if weights is not None else f"{preset_name}, GENERATED weights: the places mean nothing"
    )
    shown = f"mean of {heads} heads" if head is None else f"head {head} of {heads}"
    title = f"Progressive focus: {layers[0].keeps} tokens in the first layer, {layers[-1].keeps} in the last"
    where = f"pixel {place[0] + view.top},{place[1] + view.left} of {image.name}"
    subtitle = f"{name}; {where}; {shown}. Each title: layer: candidates \u2192 kept"
    write_focus_plot([panel_of(layer, head) for layer in layers], pixels, place, title, subtitle, out)
    notes = "".join(f"; {note}" for note in taken(picture))
    Console().print(f"written: {out} ({name}; {where}{notes})")


def panel_of(layer: LayerFocus, head: int | None) -> Panel:
    """One head's row, or the mean of all."""
    chosen = slice(None) if head is None else slice(head - 1, head)
    return Panel(
        layer.block,
        layer.shifted,
        layer.candidates,
        layer.keeps,
        layer.weights[chosen].mean(0).numpy(),
        layer.kept[chosen].double().mean(0).numpy(),
        layer.visible.numpy(),
    )


def parse_query(text: str | None, size_hw: tuple[int, int]) -> tuple[int, int]:
    """`Y,X` inside a picture of this size; None is its middle."""
    if text is None:
        return size_hw[0] // 2, size_hw[1] // 2
    y, _, x = text.partition(",")
    if not (y.strip().isdecimal() and x.strip().isdecimal()):
        raise ValueError(f"--query must be Y,X with integers from 0 on, e.g. 40,64, got {text!r}")
    if int(y) >= size_hw[0] or int(x) >= size_hw[1]:
        raise ValueError(
            f"--query must lie in the picture of {size_hw[0]} rows and {size_hw[1]} columns, got {text!r}"
        )
    return int(y), int(x)
