"""What can go wrong through no fault of the code, as one tree.

    LorecError
    ├── DataError        a log, catalogue, history or poison that can't be used as it is
    ├── ConfigError      a run file or an option that makes no sense
    │   └── UnknownName  a name that no table holds; the nearest one is suggested
    ├── MissingExtra     a part that needs a package or model which is not there
    ├── ServerError      an encoder server that is down, refuses, or answers nonsense
    └── RunError         a run folder, checkpoint or saved model that is damaged or foreign
        └── DiskError    what the disk refuses: it is full, or not ours to write to

A message says what was found, what was wanted and what to do. The command line turns each of these into one line
and exit code 2; any other exception is our bug, keeps its traceback and has exit code 70.
"""


class LorecError(Exception):
    """The root of every error that a user can cause and mend."""


class DataError(LorecError):
    """A log, catalogue, history or poison that can't be used as it is."""


class ConfigError(LorecError):
    """A run file or an option that makes no sense."""


class UnknownName(ConfigError):
    """A name that no table holds."""


class MissingExtra(LorecError):
    """A part that needs a package or model which is not there."""


class ServerError(LorecError):
    """An encoder server that is down, refuses, or answers nonsense."""


class RunError(LorecError):
    """A run folder, checkpoint or saved model that is damaged or foreign."""


class DiskError(RunError):
    """What the disk refuses: it is full, or not ours to write to."""


def first_line(error: BaseException) -> str:
    """What a library says of its failure, for a message of one line: the first line of it, 200 letters at most."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
