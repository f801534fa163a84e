"""Level model, attention variants: the same weights with another attention in place of the full one."""

from __future__ import annotations

from dataclasses import replace

from torch.nn import functional

from ...common.schedule import FocusSchedule
from ...model import PFT, published_macs
from ...model.macs import layer_products
from ..check import ModelOracle
from ..measure.contender import Call, Contender
from ..record import Case, Flops
from .image import low_resolution
from .model import Images, ModelGroup, forward, make_model, twin
from .settings import BASELINE, Settings


class AttentionGroup(ModelGroup):
    """One schedule on one backend: every variant, against standard attention (or the first one named).

    "Filter before computing" is `pfa`, "compute, then filter" `compute-then-select` and `topk`, on the same kernels.
    """

    def __init__(self, settings: Settings, schedule: FocusSchedule, backend: str) -> None:
        super().__init__(settings, schedule)
        self.backend = backend
        self.baseline = "dense" if "dense" in settings.attentions else settings.attentions[0]
        self.title = f"{settings.preset} {schedule.text} on {backend}: attention"
        self.cost *= len(settings.attentions) / 2

    @property
    def cases(self) -> dict[str, Case]:
        """Variant -> its case."""
        settings = self.settings
        case = next(iter(super().cases.values()))
        return {
            name: replace(case, backend=self.backend, options={**case.options, "attention": name})
            for name in settings.attentions
        }

    def predicted_bytes(self, name: str) -> int | None:
        """That of progressive focused attention; the other variants hold maps that the footprint does not know."""
        return super().predicted_bytes(self.backend) if name == "pfa" else None

    def contenders(self) -> list[Contender]:
        """The model's forward, or a training step, with each variant."""
        settings = self.settings
        x = low_resolution(settings.lr_hw, settings.image).to(settings.device, settings.torch_dtype)
        full = make_model(settings, self.schedule)
        target = functional.interpolate(x, scale_factor=full.config.output_scale, mode="bicubic").clamp(0, 1)
        found = []
        for name in settings.attentions:
            model = twin(full, self.backend, attention=name)
            call = self._train_step(model, x, target) if full.training else forward(model, x)

            def check(call: Call, model: PFT = model):  # type: ignore[no-untyped-def]
                return self._check(model, x, target, ModelOracle(model, x))(call)

            found.append(Contender(name, call, check, work=Images(model, x, target).work(model)))
        return found

    def flops(self, name: str) -> Flops:
        """The published convention applied to the variant, and what its attention must do."""
        settings = self.settings
        config = replace(settings.config.with_topk(self.schedule.num_topk), attention=name)
        problems = [settings.problem("attention", *products) for products in layer_products(config)]
        return Flops.of(problems, published_macs(config, *settings.lr_hw))


def attention_groups(settings: Settings) -> list[AttentionGroup]:
    """One group for each schedule and backend; masked dense attention only where it is the one backend."""
    distinct = {schedule.num_topk: schedule for schedule in settings.schedules}
    backends = [name for name in settings.backends if name != BASELINE] or [BASELINE]
    return [AttentionGroup(settings, schedule, name) for schedule in distinct.values() for name in backends]
