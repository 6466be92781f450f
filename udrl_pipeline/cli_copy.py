"""`udrl run --copy-to`: a version under a name that stays, for tools that track paths, such as DVC."""

import json
import shutil
from pathlib import Path

from udrl_pipeline.errors import UdrlError
from udrl_pipeline.store.database import translate


def copy_version(folder: Path, target: Path) -> None:
    """Replace `target` by a copy of a version's folder.

    A student's loss.json comes apart into loss.training.json and loss.validation.json beside it: `dvc plots` draws rows only
    where all have the same keys.

    Raises:
        UdrlError: The target cannot be written.
    """
    try:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        if (target / "loss.json").exists():
            points = json.loads((target / "loss.json").read_text(encoding="utf-8"))
            for key, name in (("loss", "training"), ("validation_loss", "validation")):
                curve = [{"step": point["step"], "loss": point[key]} for point in points if key in point]
                (target / f"loss.{name}.json").write_text(json.dumps(curve), encoding="utf-8")
    except OSError as error:
        translated = translate(error, target)
        if isinstance(translated, UdrlError):
            raise translated from error
        raise UdrlError(f"cannot be written: {error}", where=str(target), remedy="name another --copy-to") from error
