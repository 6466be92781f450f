"""`books_agree`: Dagster's record of each asset against the ledger's. One step for all assets of a run, after them."""

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg
from dagster._core.definitions.data_version import CODE_VERSION_TAG, DATA_VERSION_TAG, INPUT_DATA_VERSION_TAG_PREFIX

from assets.store import Store
from udrl_pipeline.store.workspace import Version

NAME = "books_agree"


def books_check(assets: Sequence[dg.AssetsDefinition]) -> dg.AssetChecksDefinition:
    """The check of these assets."""
    specs = [
        dg.AssetCheckSpec(
            NAME, asset=asset.key, description="Data version, code version and inputs are the same in Dagster's history and in the ledger"
        )
        for asset in assets
    ]

    @dg.multi_asset_check(name=NAME, specs=specs, can_subset=True)
    def check(context: dg.AssetCheckExecutionContext, store: Store) -> Iterator[dg.AssetCheckResult]:
        workspace = store.workspace()
        for key in sorted(context.selected_asset_check_keys, key=lambda key: key.asset_key.to_user_string()):
            entry = context.instance.get_latest_materialization_event(key.asset_key)
            made = entry.asset_materialization if entry else None
            found = disagreements(made.tags or {} if made else {}, workspace.current(key.asset_key.to_user_string()))
            yield dg.AssetCheckResult(
                asset_key=key.asset_key,
                check_name=NAME,
                passed=not found,
                description="; ".join(found) or None,
                metadata={"disagreements": dg.MetadataValue.json(found)},
            )

    return check


def disagreements(tags: Mapping[str, str], version: Version | None) -> list[str]:
    """What Dagster's newest materialisation (by its tags) tells otherwise than the ledger's current version of the asset."""
    if not tags or version is None:
        missing = [book for book, empty in (("Dagster", not tags), ("the ledger", version is None)) if empty]
        return [] if len(missing) == 2 else [f"{missing[0]} knows no version of it"]
    told = {"version": (tags.get(DATA_VERSION_TAG), version.version), "code version": (tags.get(CODE_VERSION_TAG), version.code_version)}
    for name, parent in version.parents.items():
        key = "/".join([INPUT_DATA_VERSION_TAG_PREFIX, *name.split("/")])
        if key in tags:  # a student that another goes on from is no input in Dagster's graph
            told[f"input {name}"] = (tags[key], parent)
    return [
        f"{what} {in_dagster} in Dagster, {in_ledger} in the ledger"
        for what, (in_dagster, in_ledger) in told.items()
        if in_dagster != in_ledger
    ]
