"""When an asset is made without a click: automation by data version, and how old an asset may grow."""

from datetime import timedelta
from typing import Any

import dagster as dg

from udrl_pipeline.settings import load


def on_new_data(*, not_needed: dg.AssetSelection | None = None) -> dg.AutomationCondition[Any]:
    """Make an asset when what it is made from has a new data version, its code has changed, or there is none yet.

    A parent that was materialised again with the same data version asks for nothing. Nothing starts while a parent is missing or
    being made, or has failed a blocking check.

    Args:
        not_needed: Parents that the asset does without.
    """
    condition = dg.AutomationCondition
    missing = condition.any_deps_missing()
    if not_needed is not None:
        missing = missing.ignore(not_needed)
    changed = condition.any_deps_match(condition.data_version_changed())
    new: dg.AutomationCondition[Any] = changed | condition.code_version_changed() | condition.newly_missing()
    return (
        new.since(condition.newly_requested() | condition.newly_updated())
        & ~missing
        & ~condition.any_deps_in_progress()
        & ~condition.in_progress()
        & condition.all_deps_blocking_checks_passed()
    ).with_label("on new data")


#: Nobody has looked for as long as the schedule lets a student grow old: warn; for twice as long: fail.
LOOKED_AT = dg.FreshnessPolicy.time_window(
    warn_window=timedelta(days=load().schedule.age_days), fail_window=timedelta(days=2 * load().schedule.age_days)
)

by_data_version = dg.AutomationConditionSensorDefinition(
    "by_data_version",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.STOPPED,
    run_tags={"udrl/because": "new data version"},
    description="Makes each asset when what it is made from has a new data version; off until it is turned on",
)
