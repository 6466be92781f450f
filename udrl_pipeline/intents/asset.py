"""The `intents` asset: params.yaml and the users' files -> one version of intents, with what was set aside."""

import time

import pandas as pd

from udrl_pipeline.errors import IntentsError
from udrl_pipeline.intents import EDITIONS, Intent, collect, sources
from udrl_pipeline.intents.readers import digests
from udrl_pipeline.store.names import INTENTS
from udrl_pipeline.store.tables import write_table
from udrl_pipeline.store.workspace import Expected, Quarantined, Version, Workspace
from udrl_pipeline.versioning import code_version, rows_hash

ASSET = INTENTS
MODULES = ("characters.py", "intents/__init__.py", "intents/readers.py", "intents/asset.py")
SOURCES = (*MODULES, *(f"intents/{edition}" for edition in EDITIONS))


def build(workspace: Workspace) -> Version:
    """Collect, normalise, deduplicate and split the intents. Reads the users' files every time, so that a change is seen.

    Raises:
        IntentsError: A file cannot be read at all, or no intent is left.
    """
    started, settings = time.monotonic(), workspace.settings
    code = code_version(SOURCES)
    params = {**settings.intents.model_dump(mode="json"), "tasks": list(settings.tasks.names)}
    with workspace.lock(ASSET):
        intents = collect(settings).without(workspace.forgotten())
        if not intents.kept:
            refused = [f"{s.where}: {s.reason}" for s in intents.set_aside]
            told = f" ({len(refused):,} lines were set aside, such as {'; '.join(refused[:5])})" if refused else ""
            raise IntentsError(f"no intent is left{told}", where="params.yaml: intents", remedy="set intents.builtin or intents.sources")
        # what the files hold counts, not when they were written; a new bad line must reach the quarantine too
        set_aside = rows_hash(f"{s.where}\t{s.reason}\t{s.text}" for s in intents.set_aside)
        fingerprint = workspace.fingerprint(ASSET, code, params | {"content": intents.version, "set_aside": set_aside}, {})
        if made := workspace.reuse(ASSET, fingerprint):
            return made
        frame = pd.DataFrame(
            [(i.key, i.text, ",".join(i.tasks), i.split, i.source) for i in intents.kept],
            columns=["intent_key", "intent", "tasks", "split", "source"],
        )
        counts = frame.split.value_counts()
        return workspace.record(
            ASSET,
            version=intents.version,
            fingerprint=fingerprint,
            code_version=code,
            rows=len(frame),
            params=params,
            parents={},
            facts={
                "splits": {str(split): int(n) for split, n in counts.items()},
                "builtin": int(frame.source.str.startswith("builtin:").sum()),
                "duplicates": intents.duplicates,
                "set_aside": len(intents.set_aside),
                "digests": digests(sources(settings), settings.root),  # as they were when this was made: a blank line is no new version
            },
            expectations=[
                Expected(
                    "no_intent_on_two_sides",
                    bool(frame.intent_key.is_unique),
                    True,
                    {"intents": len(frame)},
                    "Every intent is in one split",
                ),
                Expected(
                    "lines_are_usable",
                    not intents.set_aside,
                    False,
                    {"set_aside": len(intents.set_aside), "first": [f"{s.where}: {s.reason}" for s in intents.set_aside[:5]]},
                    "No line of the users' files had to be set aside",
                ),
            ],
            quarantined=[Quarantined(s.where, s.reason, "", s.text) for s in intents.set_aside],
            write=lambda folder: write_table(frame, folder / "intents.parquet"),
            started=started,
        )


def read_intents(workspace: Workspace, version: str) -> list[Intent]:
    """The intents of a version, checked against its manifest."""
    workspace.check_files(ASSET, version)
    frame = pd.read_parquet(workspace.version_folder(ASSET, version) / "intents.parquet")
    return [
        Intent(key, text, tuple(tasks.split(",")), split, source)
        for key, text, tasks, split, source in frame.itertuples(index=False, name=None)
    ]
