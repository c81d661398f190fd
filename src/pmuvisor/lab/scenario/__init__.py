"""Scenarios: a host, VMs, tasks and perf sessions for a time. What one is, and how it is read from a file."""

from pmuvisor.lab.scenario.file import load
from pmuvisor.lab.scenario.spec import (
    MAX_KINDS,
    MAX_RATE,
    Activity,
    EventSpec,
    HostSpec,
    PerfSpec,
    Scenario,
    ScenarioError,
    SpeSpec,
    TaskSpec,
    VmSpec,
)

__all__ = [
    "MAX_KINDS",
    "MAX_RATE",
    "Activity",
    "EventSpec",
    "HostSpec",
    "PerfSpec",
    "Scenario",
    "ScenarioError",
    "SpeSpec",
    "TaskSpec",
    "VmSpec",
    "load",
]
