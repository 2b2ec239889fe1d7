"""Engines: what starts a run's attempts again and again until it is finished."""

from unbroken.engine.gang import LocalGang, Node
from unbroken.engine.launch import Launch, Watcher
from unbroken.engine.settings import AgentSettings
from unbroken.engine.torchrun import Layout

__all__ = ["AgentSettings", "Launch", "Layout", "LocalGang", "Node", "Watcher"]
