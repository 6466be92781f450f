"""The usual work as jobs, and the daily retraining, which skips a day with nothing new."""

from collections.abc import Callable

import dagster as dg

from assets.evaluation_report import evaluation_report
from assets.explored_rows import explored_rows
from assets.intents import intents
from assets.labeled_dataset import labeled_dataset
from assets.promotion import promotion
from assets.store import Store
from assets.student import students
from assets.teacher_corpus import teacher_corpus
from udrl_pipeline import steps
from udrl_pipeline.audit.pending import pending
from udrl_pipeline.settings import load
from udrl_pipeline.store.workspace import Version, Workspace

DATA = [intents, teacher_corpus, labeled_dataset]
#: What `udrl run` makes unless it is told otherwise. The report also shows the other students that exist.
DEFAULT = [*DATA, students[0], evaluation_report, promotion]
#: The same, as what the library does for each.
BUILDS: list[Callable[[Workspace], Version]] = [steps.BUILDS[name] for name in steps.DEFAULT]

refresh_data = dg.define_asset_job("refresh_data", DATA, description="Intents, teacher corpus and labelled dataset")
retrain = dg.define_asset_job("retrain", DEFAULT, description="What `udrl run` does: data, the udrl student, the report and the promotion")
retrain_all = dg.define_asset_job(
    "retrain_all",
    [*DATA, *students, explored_rows, evaluation_report, promotion],
    description="All recipes, the report, the promotion",
)


@dg.schedule(job=retrain, cron_schedule=load().schedule, execution_timezone="UTC")
def daily_retraining(context: dg.ScheduleEvaluationContext, store: Store) -> dg.RunRequest | dg.SkipReason:
    """Retrain when an intent, a setting or the code has changed, or rows are missing. Off until it is switched on."""
    workspace = store.workspace()
    news = pending(workspace, BUILDS)
    if news is None:
        names = [asset.key.to_user_string() for asset in DEFAULT]
        return dg.SkipReason("nothing is new: " + ", ".join(f"{name} {version}" for name, version in workspace.parents(*names).items()))
    context.log.info(f"{news.asset}: {news.reason}")
    return dg.RunRequest(tags={"udrl/new": news.asset.replace("/", "-")})
