"""The scheduling core: a pure object that decides what runs next. Start reading in scheduler.py."""

from .policy import GlobalPolicy, ModelPolicy, TenantPolicy
from .recovery import Lost
from .request import Batch, ReleaseReason, Request, RequestState
from .scheduler import Scheduler
from .statistics import ModelStatistics, SchedulerStatistics, UserStatistics, WorkerStatistics

__all__ = [
    "Batch",
    "GlobalPolicy",
    "Lost",
    "ModelPolicy",
    "ModelStatistics",
    "ReleaseReason",
    "Request",
    "RequestState",
    "Scheduler",
    "SchedulerStatistics",
    "TenantPolicy",
    "UserStatistics",
    "WorkerStatistics",
]
