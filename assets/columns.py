"""The columns of the assets that are tables, as the UI shows them: what each is, and which columns it is made from.

Dagster's own UI shows column lineage in Dagster+ alone (docs.dagster.io, Column-level lineage), so a column's description tells it too.
"""

import dagster as dg

_SAME = ("row_key", "task", "intent", "intent_key", "text", "tokens", "asked_words", "source", "run_id")
_LABELS = ("split", "words", "relevance", "fidelity", "gain", "repetition", "reward", "quality")
#: asset -> column -> the columns that it is made from (`asset.column`, separated by commas).
_MADE_FROM = {
    "teacher_corpus": {
        "row_key": "intents.intent_key",
        "task": "intents.tasks",
        "intent": "intents.intent",
        "intent_key": "intents.intent_key",
        "text": "intents.intent",
    },
    "labeled_dataset": {
        **{name: f"teacher_corpus.{name}" for name in _SAME},
        "split": "intents.split",
        "words": "teacher_corpus.text",
        "relevance": "teacher_corpus.intent, teacher_corpus.text",
        "fidelity": "teacher_corpus.intent, teacher_corpus.text",
        "gain": "teacher_corpus.intent, teacher_corpus.text",
        "repetition": "teacher_corpus.text",
        "reward": "teacher_corpus.intent, teacher_corpus.text",
        "quality": "teacher_corpus.intent, teacher_corpus.text, intents.split",
    },
    "explored_rows": {**{name: f"labeled_dataset.{name}" for name in (*_SAME, *_LABELS)}, "round": "labeled_dataset.row_key"},
}


def _dep(column: str) -> dg.TableColumnDep:
    asset, name = column.split(".")
    return dg.TableColumnDep(dg.AssetKey(asset), name)


COLUMN_LINEAGE = {
    asset: dg.TableColumnLineage({name: [_dep(column) for column in columns.split(", ")] for name, columns in made_from.items()})
    for asset, made_from in _MADE_FROM.items()
}


def _schema(asset: str, *columns: tuple[str, str, str]) -> dict[str, dg.TableSchema]:
    made_from = _MADE_FROM.get(asset, {})
    told = [(name, kind, f"{what}; from {made_from[name]}" if name in made_from else what) for name, kind, what in columns]
    return {"dagster/column_schema": dg.TableSchema([dg.TableColumn(*column) for column in told])}


INTENTS = _schema(
    "intents",
    ("intent_key", "string", "normalised intent: what makes two intents the same"),
    ("intent", "string", "the idea, as the teacher is given it"),
    ("tasks", "string", "the tasks that it is for, separated by commas"),
    ("split", "string", "train, validation or test; by a hash of intent_key, or as its file says"),
    ("source", "string", "builtin:number, or file:line"),
)

_ROW = (
    ("row_key", "string", "identity: intent, task, teacher, template, sampling, asked length and sample index"),
    ("task", "string", "what kind of prompt it is"),
    ("intent", "string", "the idea, as the teacher was given it"),
    ("intent_key", "string", "normalised intent"),
)

TEACHER_CORPUS = _schema(
    "teacher_corpus",
    *_ROW,
    ("text", "string", "what the teacher wrote"),
    ("tokens", "int", "the teacher's own tokens"),
    ("finish_reason", "string", "stop: the teacher ended it; length: it was cut off"),
    ("engine", "string", "transformers, vllm or server"),
    ("engine_version", "string", "version of that package"),
    ("source", "string", "digest of the teacher's weights"),
    ("template_hash", "string", "hash of the task's prompt template"),
    ("sampling", "json", "temperature, top_p, repetition penalty, most tokens"),
    ("asked_words", "int", "the length that the teacher was asked for (words)"),
    ("examples", "json", "intents of the example pairs that it was shown"),
    ("sample", "int", "which of the intent's samples it is"),
    ("run_id", "string", "the run that generated it"),
    ("created_at", "timestamp", "when it was generated"),
    ("recorded", "bool", "imported from a file of rows, not generated here"),
)

_LABELED = (
    *_ROW,
    ("split", "string", "train, validation or test"),
    ("text", "string", "what the teacher wrote"),
    ("words", "int", "achieved length (words)"),
    ("tokens", "int", "the teacher's own tokens"),
    ("asked_words", "int", "the length that the teacher was asked for (words)"),
    ("source", "string", "digest of the teacher's weights"),
    ("run_id", "string", "the run that wrote it"),
    ("relevance", "float", "cosine of the sentence embeddings of intent and text"),
    ("fidelity", "float", "relevance up to its cap, 0 to 1"),
    ("gain", "float", "share of new content words up to its cap, 0 to 1"),
    ("repetition", "float", "share of repeated content words, 0 to 1"),
    ("reward", "float", "fidelity and gain minus repetition, weighted"),
    ("quality", "int", "the task's quantile bin of the reward, 1 to K"),
)

LABELED_DATASET = _schema("labeled_dataset", *_LABELED)
EXPLORED_ROWS = _schema("explored_rows", *_LABELED, ("round", "int", "0: the teacher's; n: written in round n"))
