"""The student that a server asks: the one in use (student/channel.py), and the next one as soon as that is in use."""

import asyncio
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.errors import StudentError, UdrlError
from udrl_pipeline.serving.meters import Meters
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.names import STUDENTS
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student.channel import promoted
from udrl_pipeline.student.engines import DESCRIPTION, Engine, engine_folder, export_of, load_student
from udrl_pipeline.student.recipes import RECIPES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Serving:
    """A loaded student, which one it is, and the folder that it was loaded from: its own, or that of its export."""

    student: Any
    recipe: str
    version: str
    folder: Path

    @property
    def space(self) -> CommandSpace:
        space: CommandSpace = self.student.space
        return space

    @property
    def engine(self) -> Engine:
        return "export" if (self.folder / DESCRIPTION).exists() else "transformers"


class Students:
    """Which student is asked now.

    Args:
        engine: With what it writes.
        folder: A student's or an export's folder; it is then asked whatever is in use.

    Attributes:
        now: The student to ask; None until there is one.
        problem: Why the one in use is not asked; None where it is.
    """

    def __init__(
        self,
        settings: Settings,
        recipe: str,
        meters: Meters,
        *,
        engine: Engine = "auto",
        folder: Path | None = None,
        load: Callable[[Path], Any] = load_student,
    ) -> None:
        if folder is None and recipe not in RECIPES:
            raise StudentError(f"unknown recipe {recipe!r}", where="--recipe", remedy=f"recipes: {', '.join(RECIPES)}")
        self._settings, self.meters, self._engine, self._folder, self._load = settings, meters, engine, folder, load
        self._workspace = Workspace(settings)
        self.recipe, self.now = recipe, None  # type: str, Serving | None
        self.problem: UdrlError | None = None
        self._replaced = False

    def refresh(self) -> bool:
        """Load the student in use unless it is the one that is asked. Takes seconds, from any thread; returns whether there is another.

        Raises:
            UdrlError: There is none, or it cannot be loaded; the one before is asked on.
        """
        try:
            found, before = self._find(), self.now
            if before and self._folder_of(found) == before.folder:
                self.problem = None
                self._clear()
                return False
            self.now = self._open(found)
        except UdrlError as error:
            self.problem = error
            raise
        self.problem, self._replaced = None, before is not None
        self.meters.reloads.labels("ok").inc()
        self.meters.student.info({"recipe": self.now.recipe, "version": self.now.version})
        logger.info("%s %s is asked from now on%s", self.now.recipe, self.now.version, f", in place of {before.version}" if before else "")
        return True

    def _clear(self) -> None:
        """At the look after a change the last texts of the student before are written. It holds itself in circles."""
        if self._replaced:
            gc.collect()
            self._replaced = False

    async def watch(self, every_s: float) -> None:
        """Look again and again which student is in use, and load it beside the one that is asked meanwhile."""
        told = str(self.problem or "")
        while True:
            await asyncio.sleep(every_s)
            try:
                await asyncio.to_thread(self.refresh)
                told = ""
            except Exception as error:  # whatever it is: a server goes on with the student that it has
                if str(error) != told:
                    self.meters.reloads.labels("failed").inc()
                    logger.warning("the student in use is not taken up: %s", error, exc_info=not isinstance(error, UdrlError))
                told = str(error)

    def _find(self) -> Version | None:
        """The student in use; the newest where none was ever promoted. None where a folder was named instead."""
        if self._folder:
            return None
        asset = STUDENTS + self.recipe
        chosen = promoted(self._workspace, asset) or self._workspace.current(asset)
        if chosen is None:
            raise NoStudent(
                f"there is no student of recipe {self.recipe} yet",
                where=str(self._workspace.folder),
                remedy=f"run `udrl run --select {asset}`; it is taken up when it is there",
            )
        return chosen

    def _folder_of(self, chosen: Version | None) -> Path:
        """Where it is loaded from; nothing is read there."""
        if chosen is None:
            assert self._folder, "or one would have been found"
            return self._folder
        export = export_of(self._workspace, chosen) if self._engine != "transformers" else None
        found = export or chosen
        return self._workspace.version_folder(found.asset, found.version)

    def _open(self, chosen: Version | None) -> Serving:
        folder = engine_folder(self._workspace, chosen, self._engine) if chosen else self._folder_of(None)
        student = self._load(folder)
        command = Command(student.space.tasks[0], "a lighthouse")
        student.generate([command], **self._settings.evaluation.sampling)  # the first call is a slow one
        return Serving(student, student.recipe, chosen.version if chosen else folder.name, folder)


class NoStudent(StudentError):
    """There is no student yet."""
