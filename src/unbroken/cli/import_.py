"""``unbroken import``: a new run that begins with the weights of a file."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unbroken.errors import ConfigError

if TYPE_CHECKING:
    from unbroken.checkpoint import HostState


@click.command("import", short_help="Begin a new run with the weights of a file.")
@click.option("--name", default="model", show_default=True, help="The part of the run's state that FILE becomes.")
@click.option("--key", default="", help="Take this entry of a dictionary that torch.save wrote, as state_dict.")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("uri")
def import_(file: Path, uri: str, name: str, key: str) -> None:
    """Make FILE, of torch.save or safetensors, the checkpoint of step 0 of a new run at URI.

    A training that opens the run begins with it; what FILE lacks, such as the optimizer, begins as the program made it.
    A file that could run code when it is loaded is refused.
    """
    from unbroken.checkpoint.importing import import_state
    from unbroken.journal import Origin
    from unbroken.report.text import format_size
    from unbroken.store import open_store

    state = _read(file, name, key)
    store = open_store(uri, create=True)
    event = import_state(store, state, Origin(socket.gethostname(), os.getpid()))
    click.echo(f"{store.uri}: step 0 holds {name}, {len(state.tensors)} tensors, {format_size(event.size)}")


def _read(file: Path, name: str, key: str) -> HostState:
    from unbroken.checkpoint.importing import is_safetensors, open_source, safetensors_state
    from unbroken.cli.torch_part import torch_part

    data = open_source(file)
    if not is_safetensors(data):
        state: HostState = torch_part("import_file", "a file of torch.save").torch_file_state(file, name, key)
        return state
    if key:
        raise ConfigError("--key is for files of torch.save", kind="options")
    return safetensors_state(data, str(file), name)
