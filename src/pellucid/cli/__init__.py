"""The command line. Nothing here knows a method by name: controls and readouts come from what a model declares.

torch is imported by the command that needs it, so that help comes at once.
"""

from __future__ import annotations

import sys
from typing import Annotated, Union

import tyro

from pellucid.cli.arguments import gathered, with_settings
from pellucid.cli.commands import (
    Bench,
    DataCommand,
    Demo,
    Doctor,
    Edit,
    Evaluate,
    Export,
    Read,
    Reproduce,
    Sample,
    Sweep,
    Train,
    View,
)
from pellucid.cli.inversions import Invert

_COMMANDS = {
    "doctor": Doctor,
    "data": DataCommand,
    "train": Train,
    "sample": Sample,
    "read": Read,
    "edit": Edit,
    "invert": Invert,
    "sweep": Sweep,
    "evaluate": Evaluate,
    "reproduce": Reproduce,
    "bench": Bench,
    "export": Export,
    "view": View,
    "demo": Demo,
}
STEERED = ("sample", "read", "edit", "sweep", "evaluate", "export", "view")
"""The commands whose settings are controls of a model, which are options too."""

ABOUT = """Generative models that can be seen into and steered, learned from images that nobody labelled.

Example:  pellucid train factorized --data ./photos --size 64
"""


def _parser():
    options = tuple(
        Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, kind in _COMMANDS.items()
    )
    return Union[options]  # noqa: UP007  built at run time


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `pellucid`: exits 0, or 2 with one paragraph for a mistake that the user can mend."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    if given in (["--version"], ["-V"]):
        import pellucid

        sys.stdout.write(f"pellucid {pellucid.__version__}\n")
        return
    try:
        if given and given[0] in STEERED:
            given[1:] = with_settings(_COMMANDS[given[0]], given[1:])
        if given and given[0] in _COMMANDS:
            given[1:] = gathered(_COMMANDS[given[0]], given[1:])
        command = tyro.cli(
            _parser(),
            prog="pellucid",
            description=ABOUT,
            args=given or ["--help"],
            config=(tyro.conf.OmitArgPrefixes,),
        )
        command.run()
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write("\npellucid: interrupted\n")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except (
        ValueError,
        OSError,
        ImportError,
    ) as error:
        if debug:
            raise
        sys.stderr.write(f"pellucid: {_plain(error)}\n")
        sys.exit(2)


def _plain(error: Exception) -> str:
    """One clear paragraph."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
