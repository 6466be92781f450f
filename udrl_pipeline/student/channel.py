"""Which student of a recipe is in use: the promoted one, as long as it can be used at all."""

from udrl_pipeline.store import promotions
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student.training import has_learned_forgotten


def promoted(workspace: Workspace, asset: str) -> Version | None:
    """The student of an asset that is in use; None where none was ever promoted."""
    version = promotions.in_use(workspace.promotions()).get(asset)
    return workspace.find(asset, version) if version else None


def unusable(workspace: Workspace, student: Version) -> str:
    """Why a student can be used no more; empty where it can."""
    if not workspace.is_there(student.asset, student.version):
        return "its files are gone"
    if has_learned_forgotten(workspace, student):
        return "it has learned from rows that were forgotten since"
    return ""
