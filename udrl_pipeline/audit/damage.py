"""Which file is damaged, where a library only says that it cannot read one."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import duckdb

from udrl_pipeline.audit.book import Key
from udrl_pipeline.errors import CorruptArtifact
from udrl_pipeline.store.workspace import Workspace

REMEDY = "`udrl audit verify` names everything that was changed; restore it, or move the folder away and run again"


@contextmanager
def damage_named(workspace: Workspace, versions: Iterable[Key]) -> Iterator[None]:
    """Name the file where tables of these versions cannot be read in the block.

    Raises:
        CorruptArtifact: One is not what its manifest says, or is no table.
    """
    try:
        yield
    except (duckdb.Error, OSError, ValueError) as error:
        known = list(versions)
        for asset, version in known:
            try:
                workspace.check_files(asset, version)
            except CorruptArtifact as found:
                raise CorruptArtifact(found.what, where=found.where, remedy=REMEDY) from error
        told = ", ".join(f"{asset} {version}" for asset, version in known[:5])
        raise CorruptArtifact(f"a table cannot be read ({str(error).splitlines()[0]})", where=told, remedy=REMEDY) from error
