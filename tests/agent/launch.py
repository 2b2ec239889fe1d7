"""Runs an agent with any options: launch.py OPTIONS-AS-JSON COMMAND... The verb leaves out some that tests need.

The option ``attach`` names a process to serve instead of a command. With ``gate``, each put of a pack waits until that
file is there, and makes a file beside it, ``held``, to say so; it can be abandoned meanwhile.
``descriptors`` names a file for what is open at the end.
"""

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unbroken.agent import claims
from unbroken.agent.attached import attach
from unbroken.agent.options import AgentOptions
from unbroken.agent.supervisor import supervise
from unbroken.store import open_store


class GatedStore:
    def __init__(self, store: Any, gate: Path) -> None:
        self._store = store
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, parts: Sequence[Any], *, on_piece: Callable[[int], None] | None = None) -> None:
        if key.startswith("packs/"):
            (self._gate.parent / "held").touch()
            while not self._gate.exists():
                if on_piece is not None:
                    on_piece(0)
                threading.Event().wait(0.02)
        self._store.put(key, parts, on_piece=on_piece)


def main() -> int:
    given = json.loads(sys.argv[1])
    given["runtime_dir"] = Path(given["runtime_dir"])
    gate, descriptors, pid = (given.pop(name, None) for name in ("gate", "descriptors", "attach"))
    if gate is not None:
        claims.open_store = lambda uri, *, create: GatedStore(open_store(uri, create=create), Path(gate))
    before = open_descriptors()
    code = attach(AgentOptions(**given), pid) if pid else supervise(AgentOptions(**given), sys.argv[2:])
    if descriptors is not None:
        left = open_descriptors()
        threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        memory = [name for name in left if "memfd" in name]
        Path(descriptors).write_text(
            json.dumps({"more": len(left) - len(before), "memory": memory, "threads": threads})
        )
    return code


def open_descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.append(str(link.readlink()))
    return found


if __name__ == "__main__":
    sys.exit(main())
