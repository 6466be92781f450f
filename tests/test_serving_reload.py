"""The server asks the student in use, and takes the next one up without dropping a request."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving_fake import talk, until
from student_fake import FakeStudent, record_student
from udrl_pipeline.errors import CorruptArtifact, StudentError
from udrl_pipeline.promotion import promote
from udrl_pipeline.serving.app import Serve
from udrl_pipeline.serving.meters import Meters
from udrl_pipeline.serving.reload import NoStudent, Students
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace

Load = Callable[..., Settings]


def use(workspace: Workspace, version: str) -> None:
    promote(workspace, workspace.find("student/udrl", version), "it is good")  # type: ignore[arg-type]


def students(settings: Settings, loaded: dict[str, FakeStudent] | None = None) -> Students:
    """Students that are fakes, named by their versions."""

    def load(folder: Path) -> FakeStudent:
        student = FakeStudent(folder.name)
        if loaded is not None:
            loaded[folder.name] = student
        return student

    return Students(settings, "udrl", Meters(), load=load)


def test_the_student_in_use_is_asked_and_not_the_newest(workspace: Workspace) -> None:
    found = students(workspace.settings)
    record_student(workspace, "v1")
    assert found.refresh() is True
    record_student(workspace, "v2")
    assert found.refresh() is True  # none was ever promoted: the newest
    use(workspace, "v1")
    assert found.refresh() is True
    assert found.refresh() is False
    assert (found.now.version, found.now.student.name) == ("v1", "v1")  # type: ignore[union-attr]
    assert found.meters.registry.get_sample_value("udrl_serve_reloads_total", {"result": "ok"}) == 3


def test_an_export_is_taken_up_in_place_of_its_student(workspace: Workspace) -> None:
    found = students(workspace.settings)
    record_student(workspace, "v1")
    found.refresh()
    record_student(workspace, "e1", "student_export/udrl", parents={"student/udrl": "v1"}, facts={"exported": True})
    assert found.refresh() is True
    assert (found.now.version, found.now.folder.name) == ("v1", "e1")  # type: ignore[union-attr]


def test_without_a_student_the_server_waits_for_one(load: Load, workspace: Workspace) -> None:
    settings = load({"serve.reload_s": 0.02})
    found = students(settings)
    with pytest.raises(NoStudent, match="no student of recipe udrl yet"):
        found.refresh()

    async def scenario(client: httpx.AsyncClient) -> list[Any]:
        refused = [await client.get("/ready"), await client.post("/generate", json={"idea": "red kite"}), await client.get("/student")]
        record_student(workspace, "v1")
        await until(lambda: found.now)
        return [*refused, await client.get("/ready"), await client.post("/generate", json={"idea": "red kite"})]

    answers = talk(Serve(settings, found), scenario)
    assert [answer.status_code for answer in answers] == [503, 503, 503, 200, 200]
    assert answers[0].json()["error"]["code"] == "no_student"
    assert "udrl run --select student/udrl" in answers[0].json()["error"]["remedy"]
    assert answers[1].headers["Retry-After"] == "1"


def test_no_request_is_dropped_while_another_student_is_taken_up(load: Load, workspace: Workspace) -> None:
    settings, loaded = load({"serve.reload_s": 0.02, "serve.max_wait_ms": 0}), dict[str, FakeStudent]()
    record_student(workspace, "v1")
    use(workspace, "v1")
    found = students(settings, loaded)
    found.refresh()
    loaded["v1"].calls.clear()

    async def scenario(client: httpx.AsyncClient) -> list[httpx.Response]:
        loaded["v1"].gate.clear()
        asked = [asyncio.create_task(client.post("/generate", json={"idea": idea, "seed": 1})) for idea in ("first", "second", "third")]
        await until(lambda: loaded["v1"].calls)
        record_student(workspace, "v2")
        use(workspace, "v2")
        await until(lambda: found.now.version == "v2")  # type: ignore[union-attr]
        asked.append(asyncio.create_task(client.post("/generate", json={"idea": "fourth", "seed": 1})))
        await asyncio.sleep(0.05)
        loaded["v1"].gate.set()
        return [await answer for answer in asked]

    answers = talk(Serve(settings, found), scenario)
    assert [answer.status_code for answer in answers] == [200] * 4
    told = [(answer.json()["version"], answer.json()["texts"][0]["text"]) for answer in answers]
    assert told == [("v1", "first as v1 1.0"), ("v1", "second as v1 1.0"), ("v1", "third as v1 1.0"), ("v2", "fourth as v2 1.0")]


def test_a_student_that_was_replaced_is_forgotten(workspace: Workspace) -> None:
    loaded: dict[str, FakeStudent] = {}
    record_student(workspace, "v1")
    found = students(workspace.settings, loaded)
    found.refresh()
    gone = weakref.ref(loaded.pop("v1"))
    gone().myself = gone()  # type: ignore[union-attr]
    record_student(workspace, "v2")
    gc.disable()
    try:
        found.refresh()
        found.refresh()
        assert gone() is None
    finally:
        gc.enable()


def test_a_damaged_student_is_not_taken_up_and_the_one_before_answers_on(
    load: Load, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load({"serve.reload_s": 0.02})
    record_student(workspace, "v1")
    found = students(settings)
    found.refresh()

    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        record_student(workspace, "v2")
        with (workspace.version_folder("student/udrl", "v2") / "commands.json").open("a") as file:
            file.write(" ")
        await until(lambda: found.problem)
        await asyncio.sleep(0.1)  # some more looks
        return await client.post("/generate", json={"idea": "red kite"})

    answer = talk(Serve(settings, found), scenario)
    assert (answer.status_code, answer.json()["version"]) == (200, "v1")
    assert isinstance(found.problem, CorruptArtifact)
    assert caplog.text.count("the student in use is not taken up") == 1
    assert found.meters.registry.get_sample_value("udrl_serve_reloads_total", {"result": "failed"}) == 1


def test_a_look_that_breaks_ends_neither_the_looking_nor_the_server(load: Load, workspace: Workspace) -> None:
    settings = load({"serve.reload_s": 0.02})
    record_student(workspace, "v1")
    found = students(settings)
    found.refresh()
    looked: list[None] = []

    def breaks() -> bool:
        looked.append(None)
        raise RuntimeError("nobody has thought of this")

    found.refresh = breaks  # type: ignore[method-assign]

    async def scenario(client: httpx.AsyncClient) -> int:
        await until(lambda: len(looked) > 2)
        return (await client.post("/generate", json={"idea": "red kite"})).status_code

    assert talk(Serve(settings, found), scenario) == 200


def test_a_recipe_that_nobody_knows_is_an_error(settings: Settings) -> None:
    with pytest.raises(StudentError, match="unknown recipe 'dpo'"):
        Students(settings, "dpo", Meters())
