"""Engines: what starts a run's attempts again and again until it is finished."""

from unbroken.engine.launch import Launch
from unbroken.engine.local import AgentSettings, LocalEngine, Watcher

__all__ = ["AgentSettings", "Launch", "LocalEngine", "Watcher"]
