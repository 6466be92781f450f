"""Every error that a user can cause. Each says what is wrong, where, and what to do about it; the CLI exits with 2."""


class UdrlError(Exception):
    """Base of all errors that are the input's fault, not the program's.

    Args:
        what: What is wrong, with the offending value.
        where: File, line, key or table that holds it.
        remedy: What the user can do.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__("\n".join(filter(None, [f"{where}: {what}" if where else what, f"  -> {remedy}" if remedy else ""])))


class SettingsError(UdrlError):
    """params.yaml or a preset holds an unknown key, a wrong type or a value out of range."""


class TaskError(UdrlError):
    """A task file is missing, malformed or incomplete."""


class IntentsError(UdrlError):
    """An intents file cannot be read at all (single bad lines go to quarantine instead)."""


class ModelError(UdrlError):
    """A model reference points nowhere, or to something with another digest."""


class TeacherError(UdrlError):
    """The teacher engine cannot start or does not answer."""


class ClusterError(UdrlError):
    """A cluster cannot be used: Ray is not installed, not there, or its workers do not see what they need."""


class StoreLocked(UdrlError):
    """Another process holds the DuckDB file or the asset's lock."""


class StoreFull(UdrlError):
    """The disk is full; what was committed before is intact."""


class StoreUnwritable(UdrlError):
    """The artifacts folder or a file in it cannot be written."""


class RemoteError(UdrlError):
    """The object store of `artifacts` cannot be reached, refuses, or has no such bucket; what was made is kept here."""


class CorruptArtifact(UdrlError):
    """A version's folder does not hold what its manifest says."""


class QualityError(UdrlError):
    """A dataset did not pass its blocking expectations, so nothing may be trained on it."""


class StudentError(UdrlError):
    """A student cannot be built, loaded or commanded as asked."""


class PlanError(UdrlError):
    """A plan is asked for with figures that cannot be, or needs a rate that was not measured."""


class HookError(UdrlError):
    """The user's hook for failed runs cannot be called, or did not accept the message."""
