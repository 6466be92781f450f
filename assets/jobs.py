"""The usual work as jobs, and the schedule that trains again when the policy in params.yaml says so."""

from collections.abc import Callable

import dagster as dg

from assets.evaluation_report import evaluation_report
from assets.explored_rows import explored_rows
from assets.intents import intents
from assets.labeled_dataset import labeled_dataset
from assets.promotion import promotion
from assets.store import Store
from assets.student import students
from assets.student_export import student_exports
from assets.teacher_corpus import teacher_corpus
from udrl_pipeline import dataset, policy, steps
from udrl_pipeline.settings import load
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student.recipes import RECIPES, USUAL

DATA = [intents, teacher_corpus, labeled_dataset]
#: What `udrl run` makes unless it is told otherwise. The report also shows the other students that exist.
DEFAULT = [*DATA, *students[: len(USUAL)], evaluation_report, student_exports[0], promotion]
#: The same, as what the library does for each.
BUILDS: list[Callable[[Workspace], Version]] = [steps.BUILDS[name] for name in steps.DEFAULT]

everything = dg.define_asset_job("everything", DEFAULT, description="What `udrl run` does: from the ideas to the student in use")
refresh_corpus = dg.define_asset_job(
    "refresh_corpus", [intents, teacher_corpus], description="Read the ideas, ask the teacher for new rows"
)
relabel_only = dg.define_asset_job("relabel_only", [labeled_dataset], description="Score, judge and bin the rows that are there")
retrain_only = dg.define_asset_job(
    "retrain_only",
    [
        asset
        for made in (students, student_exports)
        for asset, recipe in zip(made, RECIPES.values(), strict=True)
        if recipe.data == dataset.ASSET
    ],
    description="Train on the dataset that is there, and export; `recipes` in the launchpad says which students",
    config={"resources": {"store": {"config": {"recipes": list(USUAL)}}}},
)
evaluate_only = dg.define_asset_job(
    "evaluate_only", [evaluation_report, promotion], description="Evaluate the students that are there, and decide which are in use"
)
all_recipes = dg.define_asset_job(
    "all_recipes",
    [*DATA, *students, explored_rows, evaluation_report, *student_exports, promotion],
    description="Everything, with the students of all recipes",
)
JOBS = [everything, refresh_corpus, relabel_only, retrain_only, evaluate_only, all_recipes]

UNDER_WAY = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]


@dg.schedule(job=everything, cron_schedule=load().schedule.cron, execution_timezone=load().schedule.timezone)
def retraining(context: dg.ScheduleEvaluationContext, store: Store) -> dg.RunRequest | dg.SkipReason:
    """Train again when `schedule` in params.yaml says that it is time; a tick says by which rule, or why not. Off until turned on."""
    if runs := context.instance.get_runs(dg.RunsFilter(job_name=everything.name, statuses=UNDER_WAY), limit=1):
        return dg.SkipReason(f"run {runs[0].run_id} is under way")
    workspace = store.workspace()
    decision = policy.decide(workspace, BUILDS)
    if decision.train:
        context.log.info(decision.reason)
        return dg.RunRequest(tags={"udrl/because": f"{decision.rule}: {decision.reason}"})
    if decision.rule == "nothing new":
        versions = workspace.parents(*(asset.key.to_user_string() for asset in DEFAULT))
        return dg.SkipReason("nothing is new: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return dg.SkipReason(decision.reason)
