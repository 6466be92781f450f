"""Task files: what a user can get wrong, and what must never change by accident."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from udrl_pipeline.errors import TaskError
from udrl_pipeline.settings import Settings
from udrl_pipeline.tasks import Task, load_tasks

Load = Callable[..., Settings]

HAIKU = {
    "task": "haiku",
    "label": "Haiku",
    "system": "You write haiku.",
    "request": "Idea: {intent}\nWords: {words}",
    "examples": [{"intent": f"idea {n}", "text": " ".join(["word"] * n)} for n in (4, 6, 8, 10, 12, 14, 16)],
}


@pytest.fixture
def own_task(params: Path, load: Load) -> Callable[..., Task]:
    """Load a user's task file with this content (a mapping, or the text of the file)."""

    def load_own(content: object, name: str = "haiku") -> Task:
        folder = params.parent / "tasks"
        folder.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        return load_tasks(load({"tasks.names": [name], "tasks.folder": "tasks"}))[name]

    return load_own


def test_built_in_template_hashes_are_those_of_the_recorded_rows(settings: Settings) -> None:
    # a changed hash asks the teacher for every row of that task again, and makes the recorded rows useless
    assert {name: task.template_hash for name, task in load_tasks(settings).items()} == {
        "image": "b524e1dc89d66321",
        "template": "6df2784f0288434f",
        "search": "3f919ab7dbf4db0c",
    }


def test_every_built_in_task_has_examples_around_every_asked_length(settings: Settings) -> None:
    for task in load_tasks(settings).values():
        assert len(task.examples) >= 6
        assert len({example.intent for example in task.examples}) == len(task.examples)
        assert all("\n" not in example.text for example in task.examples)
        for asked in settings.teacher.asked_words:
            assert min(abs(example.words - asked) for example in task.examples) <= 5


def test_a_users_task_is_one_more_file(own_task: Callable[..., Task]) -> None:
    task = own_task(HAIKU)
    assert task.messages("old pond", 9, [task.examples[0]]) == [
        {"role": "system", "content": "You write haiku."},
        {"role": "user", "content": "Idea: idea 4\nWords: 4"},
        {"role": "assistant", "content": "word word word word"},
        {"role": "user", "content": "Idea: old pond\nWords: 9"},
    ]


def test_a_users_file_goes_before_a_built_in_one(own_task: Callable[..., Task]) -> None:
    assert own_task({**HAIKU, "task": "image"}, "image").system == "You write haiku."


def test_a_label_is_no_part_of_the_template_hash(own_task: Callable[..., Task]) -> None:
    assert own_task({**HAIKU, "label": "Short poem"}).template_hash == own_task(HAIKU).template_hash


@pytest.mark.parametrize(
    "change",
    [
        {"system": "You write haiku!"},
        {"request": "Idea: {intent}"},
        {"examples": HAIKU["examples"][:6]},
        {"examples": HAIKU["examples"][::-1]},
    ],
)
def test_anything_else_is(own_task: Callable[..., Task], change: dict[str, object]) -> None:
    assert own_task({**HAIKU, **change}).template_hash != own_task(HAIKU).template_hash


def test_an_intent_that_holds_a_slot_is_not_filled_in_twice(own_task: Callable[..., Task]) -> None:
    assert own_task(HAIKU).messages("{words} of {intent}", 9, [])[-1]["content"] == "Idea: {words} of {intent}\nWords: 9"


@given(st.text(max_size=20), st.integers(0, 50), st.integers(1, 40), st.integers(0, 6))
def test_drawn_examples_are_distinct_nearest_and_the_same_each_time(intent: str, sample: int, asked: int, count: int) -> None:
    task = Task.model_validate(HAIKU | {"examples": [{"intent": str(n), "text": " ".join("w" * n)} for n in range(1, 21)]})
    drawn = task.drawn_examples(asked, count, intent, sample)
    assert drawn == task.drawn_examples(asked, count, intent, sample)
    assert len(set(drawn)) == count
    assert all(abs(example.words - asked) <= max(6, asked - 14) for example in drawn)
    assert [task.examples.index(example) for example in drawn] == sorted(task.examples.index(example) for example in drawn)


def test_all_lengths_and_all_examples_are_drawn_about_equally_often() -> None:
    task = Task.model_validate(HAIKU)
    asked = [task.asked_words((5, 10, 20), f"idea {n}", 0) for n in range(600)]
    assert all(150 < asked.count(words) < 250 for words in (5, 10, 20))
    shown = [example.intent for n in range(600) for example in task.drawn_examples(9, 3, f"idea {n}", 0)]
    assert all(230 < shown.count(f"idea {n}") < 370 for n in (4, 6, 8, 10, 12, 14))


# -- what a user can get wrong ------------------------------------------------------------------------------------------


def test_a_missing_task_file_names_the_setting_and_where_it_looked(load: Load, params: Path) -> None:
    (params.parent / "tasks").mkdir()
    with pytest.raises(TaskError) as caught:
        load_tasks(load({"tasks.names": ["haiku"], "tasks.folder": "tasks"}))
    assert caught.value.what == "no task file haiku.yaml"
    assert caught.value.where == "params.yaml: tasks.names"
    assert str(params.parent / "tasks") in caught.value.remedy


def test_a_missing_folder_names_the_folder(load: Load, params: Path) -> None:
    with pytest.raises(TaskError) as caught:
        load_tasks(load({"tasks.folder": "nowhere"}))
    assert (caught.value.what, caught.value.where) == ("no such folder", str(params.parent / "nowhere"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({**HAIKU, "request": "Words: {words}"}, "request: must hold the slot {intent} exactly once"),
        ({**HAIKU, "request": "{intent} {intent}"}, "request: must hold the slot {intent} exactly once"),
        ({**HAIKU, "examples": HAIKU["examples"][:5]}, "examples: Tuple should have at least 6 items"),
        ({**HAIKU, "examples": None}, "examples: Input should be a valid tuple"),
        ({**HAIKU, "examples": [{"intent": "a"}, *HAIKU["examples"]]}, "examples.0.text: Field required"),
        ({**HAIKU, "examples": [{"intent": 5, "text": "a"}, *HAIKU["examples"]]}, "examples.0.intent: Input should be a valid string"),
        ({**HAIKU, "examples": [{"intent": "", "text": "a"}, *HAIKU["examples"]]}, "examples.0.intent: String should have at least 1"),
        ({**HAIKU, "sistem": "x"}, "sistem: Extra inputs are not permitted"),
        ({key: value for key, value in HAIKU.items() if key != "system"}, "system: Field required"),
        ({**HAIKU, "task": "Hai Ku"}, "task: String should match pattern"),
        ({**HAIKU, "task": "tanka"}, "calls itself 'tanka'"),
        ([1, 2], "(top level): Input should be a valid dictionary"),
        ("", "(top level): Input should be a valid dictionary"),
        ({**HAIKU, "task": "../haiku"}, "task: String should match pattern"),
        ({**HAIKU, "task": "haiku\0"}, "task: String should match pattern"),
        ({**HAIKU, "../system": "x"}, "../system: Extra inputs are not permitted"),
        ("task: !!python/object/apply:os.system [ls]", "cannot be read: could not determine a constructor"),
        ("a: &a [x, x]\nb: &b [*a, *a]", "cannot be read: *a: aliases are not read"),
        ("task: " + "[" * 20_000, "cannot be read: is nested too deeply"),
        ("task: haiku\0", "cannot be read: unacceptable character"),
        ("task: [haiku", "cannot be read: while parsing a flow sequence"),
        ("task: haiku\n\tlabel: x", "cannot be read: while scanning"),
    ],
)
def test_a_wrong_task_file_names_file_and_key(own_task: Callable[..., Task], params: Path, content: object, says: str) -> None:
    with pytest.raises(TaskError) as caught:
        own_task(content)
    assert caught.value.what.startswith(says)
    assert caught.value.where == str(params.parent / "tasks" / "haiku.yaml")
    assert caught.value.remedy


def test_a_task_file_that_is_not_utf_8_is_named(own_task: Callable[..., Task], params: Path, load: Load) -> None:
    own_task(HAIKU)
    (params.parent / "tasks" / "haiku.yaml").write_bytes("task: haiku\nlabel: Küchenlied".encode("latin-1"))
    with pytest.raises(TaskError, match="cannot be read: 'utf-8' codec"):
        load_tasks(load({"tasks.names": ["haiku"], "tasks.folder": "tasks"}))
