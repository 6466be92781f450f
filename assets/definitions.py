"""All that Dagster knows, on one screen."""

import dagster as dg

from assets import jobs, sensors
from assets.automation import by_data_version
from assets.books import books_check
from assets.evaluation_report import evaluation_report
from assets.explored_rows import explored_rows
from assets.intents import intents
from assets.labeled_dataset import labeled_dataset
from assets.promotion import promotion
from assets.store import Store
from assets.student import students
from assets.student_export import student_exports
from assets.teacher_corpus import teacher_corpus

assets = [intents, teacher_corpus, labeled_dataset, *students, explored_rows, evaluation_report, *student_exports, promotion]

defs = dg.Definitions(
    assets=assets,
    asset_checks=[books_check(assets)],
    resources={"store": Store()},
    jobs=jobs.JOBS,
    schedules=[jobs.retraining],
    sensors=[sensors.new_intents, sensors.tell_of_failures, sensors.lost_runs, by_data_version],
)
