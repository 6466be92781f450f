"""The names of assets, of files in their folders, and of a row's columns: all that a question to the ledger needs of what makes them.

The modules that make them load pandas, which takes longer than most answers.
"""

INTENTS, CORPUS, DATASET, EXPLORED, REPORT = "intents", "teacher_corpus", "labeled_dataset", "explored_rows", "evaluation_report"
#: How the names of students and of their exports begin; a recipe follows.
STUDENTS, EXPORTS = "student/", "student_export/"
#: Under this name the student that ships with the package stands in the ledgers of those who start from it.
RECORDED_STUDENT = "student/recorded"

#: The tables of ideas and of rows, and the file of a student that says which rows it has seen.
INTENTS_FILE, ROWS_FILE, SEEN_FILE = "intents.parquet", "rows.parquet", "seen.parquet"

#: A row as the teacher's asset writes it.
ROW_COLUMNS = (
    "row_key", "task", "intent", "intent_key", "text", "tokens", "finish_reason", "engine", "engine_version", "source",
    "template_hash", "sampling", "asked_words", "examples", "sample", "run_id", "created_at", "recorded",
)  # fmt: skip


def is_student(asset: str) -> bool:
    """Whether the versions of an asset are students that can be in use; the one that ships with the package is a start alone."""
    return asset.startswith(STUDENTS) and asset != RECORDED_STUDENT
