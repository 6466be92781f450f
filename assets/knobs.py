"""What the launchpad shows of the settings: typed, optional fields with the description and the range that settings.py gives them.

What is left empty is what params.yaml says. Every other key of params.yaml can be set in `overrides`.
"""

import typing
from enum import Enum
from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from udrl_pipeline.settings import Settings

KNOBS = (
    "intents.builtin", "intents.sources", "intents.seed",
    "tasks.names",
    "teacher.engine", "teacher.recorded", "teacher.samples", "teacher.temperature", "teacher.seed", "teacher.chunk_rows",
    "student.init_from", "student.epochs", "student.warm_epochs", "student.max_steps", "student.batch_rows", "student.learning_rate",
    "student.seed",
    "rounds.number", "rounds.intents", "rounds.epochs",
    "evaluation.intents", "evaluation.quality_intents", "evaluation.temperature", "evaluation.seed",
)  # fmt: skip
#: How pydantic calls the ends of a range, and how people do.
ENDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "min_length": "entries: at least"}


def section(name: str) -> type[dg.Config]:
    """The knobs of a section of params.yaml, as a class of Dagster's config."""
    fields: dict[str, Any] = {}
    for key in (knob.partition(".")[2] for knob in KNOBS if knob.startswith(f"{name}.")):
        described = settings_field(f"{name}.{key}")
        fields[key] = (_type(key, described.annotation) | None, Field(None, description=_description(described)))
    return create_model(name.capitalize(), __base__=dg.Config, **fields)


def settings_field(key: str) -> FieldInfo:
    """The field of the settings that a dotted key names."""
    *sections, last = key.split(".")
    model: type[BaseModel] = Settings
    for part in sections:
        found = model.model_fields[part].annotation
        assert isinstance(found, type), f"{part} is a section"
        model = found
    return model.model_fields[last]


def _type(name: str, annotation: Any) -> Any:
    """The nearest type that Dagster's config has."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return Enum(name.capitalize(), {value: value for value in arguments})
    if origin is tuple:
        return list[_type(name, arguments[0])]  # type: ignore[misc]
    if origin is typing.Annotated:
        return _type(name, arguments[0])
    assert annotation in (int, float, bool, str), f"{name}: {annotation}"
    return annotation


def _description(field: FieldInfo) -> str:
    limits = [f"{told} {getattr(limit, end):g}" for limit in field.metadata for end, told in ENDS.items() if hasattr(limit, end)]
    return f"{field.description} [{', '.join(limits)}]" if limits else str(field.description)


def chosen(sections: dict[str, dg.Config]) -> dict[str, Any]:
    """The knobs that were set, by their dotted keys."""
    values = {f"{name}.{key}": value for name, of_it in sections.items() for key, value in of_it.model_dump(exclude_none=True).items()}
    return {key: value.value if isinstance(value, Enum) else value for key, value in values.items()}
