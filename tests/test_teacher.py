"""Which engine answers, and what is said when it cannot start."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from udrl_pipeline import models, teacher
from udrl_pipeline.errors import ModelError, TeacherError
from udrl_pipeline.models import LocalModel
from udrl_pipeline.settings import ModelRef, ServerSettings, Settings
from udrl_pipeline.teacher import engine_name, open_engine, server_engine, transformers_engine, vllm_engine

Load = Callable[..., Settings]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether vllm can be found."""

    def set_installed(found: bool) -> None:
        spec = importlib.util.find_spec("json") if found else None
        monkeypatch.setattr(teacher.importlib.util, "find_spec", lambda name: spec if name == "vllm" else importlib.util.find_spec(name))

    return set_installed


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[object, ...]]:
    """The engines that were started, in place of starting them."""
    calls: list[tuple[object, ...]] = []
    for module, name in ((vllm_engine, "VllmEngine"), (transformers_engine, "TransformersEngine"), (server_engine, "ServerEngine")):
        monkeypatch.setattr(module, name, lambda *arguments, name=name: calls.append((name, *arguments)))
    monkeypatch.setattr(models, "resolve", lambda ref, _: LocalModel(tmp_path / ref.ref, "digest"))
    return calls


def test_auto_is_vllm_where_it_is_installed_and_transformers_elsewhere(installed: Callable[[bool], None]) -> None:
    installed(True)
    assert [engine_name(asked) for asked in ("auto", "transformers", "server")] == ["vllm", "transformers", "server"]
    installed(False)
    assert [engine_name(asked) for asked in ("auto", "vllm")] == ["transformers", "vllm"]


@pytest.mark.parametrize(("engine", "name"), [("vllm", "VllmEngine"), ("transformers", "TransformersEngine")])
def test_an_engine_starts_with_the_folder_of_the_teachers_model(
    load: Load, installed, started, tmp_path: Path, engine: str, name: str
) -> None:
    installed(True)
    settings = load({"teacher.engine": engine})
    open_engine(settings)
    assert started == [(name, tmp_path / settings.teacher.model.ref, settings.teacher)]


def test_a_server_needs_no_model_here(load: Load, started: list[tuple[object, ...]]) -> None:
    settings = load({"teacher.engine": "server", "teacher.model.ref": "hf:nobody/nothing"})
    open_engine(settings)
    assert started == [("ServerEngine", settings.teacher.server)]


def test_another_model_engine_and_server_can_be_asked_for(settings: Settings, installed, started, tmp_path: Path) -> None:
    installed(True)
    server = ServerSettings(model="other")
    open_engine(settings, ModelRef(ref="path:other"), "vllm")
    open_engine(settings, engine="server", server=server)
    assert started == [("VllmEngine", tmp_path / "path:other", settings.teacher), ("ServerEngine", server)]


def test_vllm_that_is_not_installed_is_a_typed_error(load: Load, installed, started) -> None:
    installed(False)
    with pytest.raises(TeacherError) as caught:
        open_engine(load({"teacher.engine": "vllm"}))
    assert str(caught.value) == "params.yaml: teacher.engine: vllm is not installed\n  -> run `make vllm`, or set engine: transformers"
    assert started == []


def test_a_wrong_reference_is_told_before_anything_starts(load: Load) -> None:
    with pytest.raises(ModelError, match="nothing is there"):
        open_engine(load({"teacher.model": {"ref": "path:nowhere", "file": "", "sha256": None}}))
