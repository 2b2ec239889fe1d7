"""The command ``unbroken``: one module a verb, loaded only when it is used, so that help is quick."""

from __future__ import annotations

import sys
from importlib import import_module
from keyword import iskeyword
from typing import Any

import click

from unbroken.errors import UnbrokenError
from unbroken.version import __version__

# verb -> (module with a click command of the verb's name (import_ for import), one line of help). The help stands
# here so that `unbroken --help` imports none of the modules.
_VERBS = {
    "run": ("unbroken.cli.run", "Start a training command here and keep it going."),
    "launch": ("unbroken.cli.launch", "Have an engine run a job until it is finished."),
    "logs": ("unbroken.cli.logs", "Print what a job's training printed, over all of its starts."),
    "stop": ("unbroken.cli.stop", "Have a job save and end; launch goes on with it."),
    "drill": ("unbroken.cli.drill", "Interrupt a run on purpose and prove that it resumes bit for bit."),
    "status": ("unbroken.cli.status", "Say how a run stands: attempts, steps, last durable checkpoint."),
    "report": ("unbroken.cli.report", "Say where a run's hours and money went."),
    "ls": ("unbroken.cli.ls", "List a run's checkpoints."),
    "show": ("unbroken.cli.show", "Show what one checkpoint holds."),
    "verify": ("unbroken.cli.verify", "Read every byte of a run's checkpoints again and check it."),
    "export": ("unbroken.cli.export", "Write a checkpoint as safetensors, or for torch's distributed checkpoint."),
    "import": ("unbroken.cli.import_", "Begin a new run with the weights of a file."),
    "watch": ("unbroken.cli.watch", "Print notices and advisories as they come."),
    "plan": ("unbroken.cli.plan", "Say what a job will cost and when it will be done."),
    "pools": ("unbroken.cli.pools", "Rank instance types and zones by what the run would cost there."),
    "simulate": ("unbroken.cli.simulate", "Replay policies on recorded availability and pick the best."),
    "render": ("unbroken.cli.render", "Write a job as documents for Kubernetes or EC2."),
    "lint": ("unbroken.cli.lint", "Name the traps in Kubernetes manifests."),
    "doctor": ("unbroken.cli.doctor", "Check this place: store, memory, clock, notices, torchrun."),
    "prune": ("unbroken.cli.prune", "Retire checkpoints and delete what no kept one needs."),
}


class _Verbs(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _VERBS:
            return None
        attribute = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name
        command: click.Command = getattr(import_module(_VERBS[cmd_name][0]), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in _VERBS.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="unbroken")
def _unbroken() -> None:
    """Train on spot instances as if they were never taken away."""


def main(arguments: list[str] | None = None) -> Any:
    """Run the command and leave with its exit code; the codes are those of :mod:`unbroken.errors`."""
    try:
        sys.exit(_unbroken.main(arguments, prog_name="unbroken", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(78 if isinstance(error, click.UsageError) else error.exit_code)
    except click.Abort:
        sys.exit(130)
    except UnbrokenError as error:
        click.echo(f"unbroken: {error.message}", err=True)
        if error.hint:
            click.echo(f"  hint: {error.hint}", err=True)
        sys.exit(error.exit_code)
