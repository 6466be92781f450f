"""What each round of exploring brought and cost, read from the ledger: the students and pools behind the newest one."""

from collections.abc import Mapping
from typing import Any

from udrl_pipeline import exploration
from udrl_pipeline.store.workspace import Version, Workspace


def rounds(workspace: Workspace, students: Mapping[str, Version]) -> list[dict[str, Any]]:
    """The rounds that led to the current student of rounds, the first one first; empty if there is none.

    Returns:
        One mapping a round: round, student and pool (versions), sampled_from, sampled and kept (texts), mean_reward of the kept
        texts and mean_reward_before of the pool before (both by task), sampling_seconds, sequences (of the training).
    """
    found: list[dict[str, Any]] = []
    student = next((version for version in students.values() if exploration.ASSET in version.parents), None)
    while student and exploration.ASSET in student.parents:
        pool = workspace.find(exploration.ASSET, student.parents[exploration.ASSET])
        assert pool is not None, f"{student.parents} are in the ledger"
        shown = ("round", "sampled_from", "sampled", "kept", "mean_reward", "mean_reward_before", "sampling_seconds")
        found.append(
            {name: pool.facts[name] for name in shown}
            | {"student": student.version, "pool": pool.version, "sequences": student.facts["sequences"]}
        )
        student = workspace.find(*pool.facts["sampled_from"].split("@"))
    return found[::-1]
