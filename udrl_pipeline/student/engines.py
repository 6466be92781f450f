"""Which engine a student writes with: transformers, or the fast export that was made from it (`student_export/<recipe>`).

Both have the same `generate` and `stream`. The folder of an export holds all that it needs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from udrl_pipeline.errors import StudentError
from udrl_pipeline.store.names import EXPORTS
from udrl_pipeline.store.workspace import Version, Workspace

if TYPE_CHECKING:
    from udrl_pipeline.student.generation import Student

#: auto: the export where there is one, else transformers.
Engine = Literal["auto", "export", "transformers"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
#: The file by which a folder is known to hold an export.
DESCRIPTION = "export.json"


def load_student(folder: Path) -> "Student":
    """Load a student from its own folder, or from that of an export.

    Raises:
        StudentError: The folder is neither, or its files are damaged.
    """
    if (folder / DESCRIPTION).exists():
        from udrl_pipeline.student.fast import FastStudent

        return FastStudent.load(folder)
    from udrl_pipeline.student.generation import Student

    return Student.load(folder)


def export_of(workspace: Workspace, student: Version) -> Version | None:
    """The newest export of a student that passed its checks and whose files are there."""
    asset = EXPORTS + student.asset.rpartition("/")[2]
    of_it = (m for m in workspace.makings(asset) if m.parents.get(student.asset) == student.version and m.facts.get("exported"))
    return next((made for made in of_it if workspace.is_there(asset, made.version)), None)


def engine_folder(workspace: Workspace, student: Version, engine: Engine) -> Path:
    """The folder from which `load_student` loads a student with this engine; its files were compared with their manifest.

    Raises:
        StudentError: The export is asked for, and there is none.
        CorruptArtifact: Its files are not what its manifest says.
    """
    chosen = export_of(workspace, student) if engine != "transformers" else None
    if chosen is None and engine == "export":
        raise StudentError(
            f"there is no export of {student.asset} {student.version}",
            where=str(workspace.folder),
            remedy=f"run `udrl run --select {EXPORTS}{student.asset.rpartition('/')[2]}`, or ask with --engine transformers",
        )
    found = chosen or student
    workspace.check_files(found.asset, found.version)
    return workspace.version_folder(found.asset, found.version)
