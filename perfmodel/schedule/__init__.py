"""Pipeline schedules, and the tasks of a step."""

from perfmodel.schedule.actions import Action, ActionKind, Schedule
from perfmodel.schedule.build import StageTimes, pipeline_tasks
from perfmodel.schedule.closed_form import has_closed_form, pipeline_time
from perfmodel.schedule.pipeline import SCHEDULES, pipeline
from perfmodel.schedule.table import from_table
from perfmodel.schedule.tasks import Discipline, Interference, Link, Resource, TaskGraph, TaskGraphBuilder

__all__ = [
    "SCHEDULES",
    "Action",
    "ActionKind",
    "Discipline",
    "Interference",
    "Link",
    "Resource",
    "Schedule",
    "StageTimes",
    "TaskGraph",
    "TaskGraphBuilder",
    "from_table",
    "has_closed_form",
    "pipeline",
    "pipeline_tasks",
    "pipeline_time",
]
