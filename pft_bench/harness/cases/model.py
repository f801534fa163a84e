"""Level model: the whole PFT model on a photograph, for each focus schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ...common import stages
from ...common.schedule import FocusSchedule
from ...model import PFT, forward_footprint, generated_weights, image_dtype, load, published_macs
from ..check import ModelOracle, captured_layers, check_layers, check_output
from ..check.model import relative_error
from ..check.result import CheckResult, within
from ..measure.contender import Call, Contender
from ..measure.statistics import median
from ..record import Case, Flops
from .changing_inputs import Draw, Inputs
from .changing_work import SharedWork
from .group import Group
from .image import BUNDLED, low_resolution
from .settings import BASELINE, Settings

STAGE_RUNS = 3
"""Instrumented runs at most, until the total of one lies within the timed samples."""


def make_model(settings: Settings, schedule: FocusSchedule) -> PFT:
    """The model of the settings with this schedule, its weights generated or loaded."""
    if settings.weights is not None:
        model = load(settings.weights, num_topk=schedule.num_topk, num_heads=settings.config.num_heads)
    else:
        model = PFT.from_config(settings.config.with_topk(schedule.num_topk))
        model.load_state_dict(generated_weights(model))
    return model.to(settings.device, settings.torch_dtype).train(settings.mode == "train")


def twin(model: PFT, backend: str, dtype: torch.dtype | None = None, **keywords: object) -> PFT:
    """The same model on a backend: its weights, device, mode and, unless another one is given, its dtype.

    `keywords` are those of its configuration that differ.
    """
    weight = next(model.parameters())
    made = PFT.from_config(replace(model.config, **keywords), backend)  # type: ignore[arg-type]
    made.to(weight.device, dtype or weight.dtype).load_state_dict(model.state_dict())
    return made.train(model.training)


class ModelGroup(Group):
    """One schedule: the model on every backend, the same weights and the same image."""

    baseline = BASELINE

    def __init__(self, settings: Settings, schedule: FocusSchedule) -> None:
        super().__init__(settings)
        self.schedule = schedule
        self.title = f"{settings.preset} {schedule.text}"
        self.cost = 20.0 * settings.windows / 4

    @property
    def cases(self) -> dict[str, Case]:
        """Contender name -> its case."""
        settings = self.settings
        height, width = settings.lr_hw
        image = f"scikit-image:{BUNDLED}" if settings.image is None else settings.image.name
        weights = "generated" if settings.weights is None else settings.weights.name
        return settings.cases(
            "model",
            "model",
            settings.backends,
            shapes={"height": height, "width": width},
            preset=settings.preset,
            schedule=self.schedule.num_topk,
            options={"image": image, "weights": weights, "sched": self.schedule.text},
        )

    def contenders(self) -> list[Contender]:
        """The model's forward, or a training step (forward, L1 loss, backward) without the optimiser."""
        settings = self.settings
        image = low_resolution(settings.lr_hw, settings.image)
        x = image.to(settings.device, image_dtype(settings.torch_dtype))
        model = make_model(settings, self.schedule)
        scale = model.config.output_scale
        target = functional.interpolate(x, scale_factor=scale, mode="bicubic").clamp(0, 1)
        oracle = ModelOracle(model, x)
        images = Images(model, x, target)
        found = []
        for name in settings.backends:
            variant = twin(model, name)
            call = self._train_step(variant, x, target) if settings.mode == "train" else forward(variant, x)
            found.append(
                Contender(
                    name,
                    call,
                    self._check(variant, x, target, oracle),
                    work=images.work(variant, own=name == BASELINE),
                )
            )
        return found

    def _check(self, model: PFT, x: Tensor, target: Tensor, oracle: ModelOracle):  # type: ignore[no-untyped-def]
        train = self.settings.mode == "train"

        def check(_: Call) -> list[CheckResult]:
            with torch.no_grad():
                outputs: list[Tensor] = []
                layers = captured_layers(lambda: outputs.append(model(x)))
            output = outputs[0]
            results = check_layers(model.backend, layers, train=train) + check_output(
                oracle, output, target, model
            )
            if train:
                results += _check_step(model, x, target)
            return results

        return check

    @staticmethod
    def _train_step(model: PFT, x: Tensor, target: Tensor) -> Call:
        def call() -> object:
            model.zero_grad(set_to_none=True)
            loss = functional.l1_loss(model(x), target)
            loss.backward()
            return loss

        return call

    def flops(self, name: str) -> Flops:
        """The published count, and the attention core's roofline counts over all layers."""
        settings = self.settings
        config = settings.config.with_topk(self.schedule.num_topk)
        problems = [settings.problem("attention", *step) for step in config.along_chains(config.num_topk)]
        return Flops.of(problems, published_macs(config, *settings.lr_hw))

    def predicted_bytes(self, name: str) -> int | None:
        """The forward pass's footprint, on a CPU; beside float32 that of the `cpu` backend alone is known."""
        settings = self.settings
        if (settings.mode, settings.device) != ("infer", "cpu") or name == "reference":
            return None
        if settings.dtype != "float32" and name != "cpu":
            return None
        return forward_footprint(
            settings.config.with_topk(self.schedule.num_topk),
            settings.lr_hw,
            backend=name,
            threads=settings.threads,
            itemsize=settings.torch_dtype.itemsize,
        ).bytes

    def stages(self, contender: Contender, samples_s: Sequence[float]) -> dict[str, float]:
        """Seconds by stage of an instrumented run that took as long as the timed ones.

        A run that something else disturbed would misplace the time. So the first whose total lies within the timed
        samples is taken, else the one that comes nearest to their median.
        """
        device = torch.device(self.settings.device)
        synchronize = torch.cuda.synchronize if device.type == "cuda" else None
        runs: list[dict[str, float]] = []
        for _ in range(STAGE_RUNS):
            with stages.record(synchronize) as times:
                contender.call()
            runs.append(times.seconds)
            if min(samples_s) <= sum(times.seconds.values()) <= max(samples_s):
                return times.seconds
        middle = median(samples_s)
        return min(runs, key=lambda seconds: abs(sum(seconds.values()) - middle))


AS_DENSE, HOPELESS = 5e-5, 0.05
"""Relative errors to masked dense attention in the same dtype up to which a timed result is right without a closer
look, and beyond which no look helps. In between, selections among nearly equal logits may be all that differs.
"""

GRADIENTS_AS_DENSE = 0.3
"""The same of the gradient of one weight. That of an L1 loss changes its sign where an output lies within rounding of
its target, so it scatters; what is stale or left out is wrong by all of it.
"""

SMALL_GRADIENT = 1e-3
"""A weight whose gradient is smaller than this part of the largest has one that rounding decides."""


class Images:
    """The photograph that changes from round to round, and what masked dense attention makes of it.

    A reference costs as much as a timed call of the baseline, so contenders share it: that of one random round and that
    of the last.
    """

    def __init__(self, model: PFT, x: Tensor, target: Tensor) -> None:
        self.x, self.target, self.training = x, target, model.training
        self.changing = Inputs({"x": x}, mixed=["x"])
        self.shared: dict[object, Draw] = {}
        self._dense = twin(model, BASELINE)
        self._known: dict[bytes, tuple[Tensor, dict[str, Tensor] | None]] = {}
        self._answers: list[_Answer] = []

    def work(self, model: PFT, *, own: bool = False) -> SharedWork:
        """What a contender computes with `model`; `own`: the baseline, whose results the others are held against."""
        return SharedWork(
            self.changing,
            lambda output, _: self._judge(model, output),
            own=own,
            shared=self.shared,
            answers=_Answers(self, model),
        )

    def answered(self, answer: _Answer) -> None:
        """The baseline's for one image; those of a round and the one before are needed, A' among them."""
        self._answers = [*self._answers[-3:], answer]

    def answer(self, drawn: object) -> _Answer | None:
        """The baseline's for the image that was drawn as this, if it has computed it lately."""
        return next((item for item in self._answers if item.drawn is drawn), None)

    def evidence(self) -> tuple[object, ...]:
        """Every reference."""
        return (*self._known.values(), *self._answers)

    def _reference(self) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Output, or loss and gradients, of masked dense attention on the present image."""
        key = self.x.cpu().flatten().view(torch.uint8).numpy().tobytes()
        if key not in self._known:
            while len(self._known) >= 4:
                self._known.pop(next(iter(self._known)))
            self._known[key] = _result(self._dense, self.x, self.target)
        return self._known[key]

    def _judge(self, model: PFT, output: object) -> list[CheckResult]:
        if not isinstance(output, Tensor):
            return [CheckResult("model result", math.inf, f"got {type(output).__name__}")]
        exact, exact_gradients = self._reference()
        if output.shape != exact.shape or output.dtype != exact.dtype or output.device != exact.device:
            got, wanted = (f"{list(t.shape)} {t.dtype} on {t.device}" for t in (output, exact))
            return [CheckResult("model result", math.inf, f"got {got}, expected {wanted}")]
        error = relative_error(output.detach(), exact.double())
        if exact_gradients is None and AS_DENSE < error < HOPELESS:
            # Then the usual check has the word, at the cost of a float64 model.
            return check_output(ModelOracle(model, self.x), output, self.target, model)
        detail = f"relative error {error:.2g} to masked dense attention on the same image"
        results = [CheckResult("model output", math.inf if math.isnan(error) else error / AS_DENSE, detail)]
        if exact_gradients is not None:
            results.append(_hold_gradients(_gradients_of(model), exact_gradients))
        return results


FAR_LOSS, FAR_GRADIENT = 1e-3, 0.6
"""The same of a training step that is held against the baseline's own in the same round, in every round: wide enough
for selections among nearly equal logits, and far from what is left out, stale or zero.
"""


class _Answer(NamedTuple):
    """What the baseline returned for one image."""

    drawn: object
    output: Tensor
    gradients: dict[str, Tensor] | None


class _Answers(NamedTuple):
    """The baseline's results as one contender's are held against them (`changing_work.Answers`)."""

    images: Images
    model: PFT

    def add(self, output: object, drawn: object) -> None:
        """Its gradients are those that its model holds now."""
        if isinstance(output, Tensor):
            gradients = _gradients_of(self.model, wide=False) if self.images.training else None
            self.images.answered(_Answer(drawn, output.detach(), gradients))

    def against(self, output: object, drawn: object) -> list[CheckResult]:
        """Only what is far off: nearly equal logits are the closer look's business."""
        answer = self.images.answer(drawn)
        if answer is None or not isinstance(output, Tensor) or output.shape != answer.output.shape:
            return []
        error = relative_error(output.detach(), answer.output.double())
        most = HOPELESS if answer.gradients is None else FAR_LOSS
        worst = math.inf if math.isnan(error) else error / most
        detail = f"relative error {error:.2g} to what the baseline returned in the same round"
        results = [CheckResult("model output", worst, detail)]
        if answer.gradients is not None:
            results.append(_hold_gradients(_gradients_of(self.model), answer.gradients, FAR_GRADIENT))
        return results

    def evidence(self) -> tuple[object, ...]:
        """Every reference."""
        return self.images.evidence()


def _hold_gradients(
    found: Mapping[str, Tensor], exact: Mapping[str, Tensor], most: float = GRADIENTS_AS_DENSE
) -> CheckResult:
    """Each weight's gradient against that of masked dense attention; the worst one's name is in the detail."""
    least = SMALL_GRADIENT * max(float(tensor.norm()) for tensor in exact.values())
    errors = {
        name: float((found[name] - tensor).norm()) / max(float(tensor.norm()), least)
        for name, tensor in exact.items()
    }
    name = max(errors, key=lambda key: math.inf if math.isnan(errors[key]) else errors[key])
    worst = math.inf if math.isnan(errors[name]) else errors[name] / most
    return CheckResult(
        "model gradients", worst, f"relative error {errors[name]:.2g} of {name} to masked dense attention"
    )


def _gradients_of(model: PFT, *, wide: bool = True) -> dict[str, Tensor]:
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    return {name: tensor.double() for name, tensor in found.items()} if wide else found


def _result(model: PFT, x: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor] | None]:
    if not model.training:
        with torch.no_grad():
            return model(x), None
    model.zero_grad(set_to_none=True)
    loss = functional.l1_loss(model(x), target)
    loss.backward()
    gradients = _gradients_of(model)
    model.zero_grad(set_to_none=True)
    return loss.detach(), gradients


def forward(model: PFT, x: Tensor) -> Call:
    """The model on `x` without gradients, as a call."""

    def call() -> object:
        with torch.no_grad():
            return model(x)

    return call


def _check_step(model: PFT, x: Tensor, target: Tensor) -> list[CheckResult]:
    """The loss and the gradients of the weights against the same step in float64 on masked dense attention.

    Both go back from the same gradient of the loss. L1's is a sign: where an output lies within rounding of its target,
    either is right, and one of 200,000 that differs would outweigh every error of the layers.
    """
    results = []
    steps = []
    grad_out: Tensor | None = None
    for variant in (model, twin(model, BASELINE, torch.float64)):
        inputs, wanted = (x, target) if variant is model else (x.double(), target.double())
        variant.zero_grad(set_to_none=True)
        out = variant(inputs)
        loss = functional.l1_loss(out, wanted)
        if grad_out is None:
            (grad_out,) = torch.autograd.grad(loss, out, retain_graph=True)
        out.backward(grad_out.to(out.dtype))
        flat = [p.grad.flatten().double() for p in variant.parameters() if p.grad is not None]
        steps.append((loss.detach().double(), torch.cat(flat)))
    (got_loss, got), (exact_loss, exact) = steps
    results.append(within("model loss", got_loss, exact_loss, 1e-6 * exact_loss.abs()))
    error = relative_error(got, exact)
    results.append(CheckResult("model gradients", error / 1e-4, f"relative error {error:.2g}"))
    model.zero_grad(set_to_none=True)
    return results


def check_inputs(settings: Settings) -> None:
    """Raise before anything is measured when the image or the weights cannot be used, or would not be."""
    for name, given in (("image", settings.image), ("weights", settings.weights)):
        if given is not None and not {"model", "threads"} & set(settings.levels):
            raise ValueError(
                f"{name} is used at levels model and threads only, got levels {', '.join(settings.levels)}"
            )
    if settings.image is not None:
        low_resolution(settings.lr_hw, settings.image)
    if settings.weights is not None:
        make_model(settings, settings.schedules[0])
        if settings.config.in_chans != 3:
            raise ValueError(
                f"weights must be of a model for colour here, got one of {settings.config.in_chans} channels"
            )


def model_groups(settings: Settings) -> list[Group]:
    """One group a schedule."""
    distinct = {schedule.num_topk: schedule for schedule in settings.schedules}
    return [ModelGroup(settings, replace(schedule)) for schedule in distinct.values()]
