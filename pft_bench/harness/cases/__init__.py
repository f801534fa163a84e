"""What is measured at each level: groups of candidates that run interleaved against one baseline."""

from .attention import attention_groups
from .group import Group, GroupResult, Listener, explained, run_or_explain
from .joined import SchedulesGroup, StepsGroup
from .layer import layer_groups
from .model import check_inputs, model_groups
from .op import op_groups
from .settings import LEVELS, Settings, left_out
from .threads import thread_groups

__all__ = [
    "LEVELS",
    "Group",
    "GroupResult",
    "Listener",
    "SchedulesGroup",
    "Settings",
    "StepsGroup",
    "attention_groups",
    "check_inputs",
    "explained",
    "layer_groups",
    "left_out",
    "model_groups",
    "op_groups",
    "plan_groups",
    "run_or_explain",
    "thread_groups",
]


def plan_groups(settings: Settings) -> list[Group]:
    """All groups of a run, in the order in which they will run: quick ones first."""
    groups: list[Group] = []
    if settings.attentions:
        return [*attention_groups(settings)]
    if "op" in settings.levels:
        groups += op_groups(settings)
    if "layer" in settings.levels:
        groups += layer_groups(settings)
    if "model" in settings.levels:
        groups += model_groups(settings)
    if "threads" in settings.levels:
        groups += thread_groups(settings)
    return groups
