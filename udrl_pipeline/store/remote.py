"""Published versions in an object store: any that fsspec knows (s3, gs, az).

Work is done in a local folder; a version is sent when it is whole, and fetched where the ledger names it and it is not here. An object
is named by its content (`<asset>/<version>/<16 digits of its sha256>/<file>`) and the manifest comes last, put only where there is none:
so a version is there whole or not at all, two who publish the same one do not mix, and what was sent already is not sent again.
"""

import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from udrl_pipeline.errors import CorruptArtifact, RemoteError, UdrlError
from udrl_pipeline.store.database import FULL_NUMBERS, translate, typed_errors
from udrl_pipeline.versioning import file_sha256

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
#: What stands at the URL itself; a store that refuses it refuses everything.
MARKER, LAYOUT = "udrl.json", b'{"layout": 1}\n'
#: Hex digits of the sha256 in an object's name; a fetched file is compared with all of them.
DIGITS = 16
CHUNK = 2**22
#: Nobody fetches one file for so long (s).
OLD_S = 86_400
KEY = "params.yaml: artifacts"
#: What the clients behind fsspec raise for credentials that are missing or refused, by name: none of them has to be installed.
REFUSED = (
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound", "ClientAuthenticationError",
    "DefaultCredentialsError", "RefreshError", "GoogleAuthError",
)  # fmt: skip
UNREACHABLE = ("EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "ClientConnectorError", "ServiceRequestError")


class Remote:
    """The versions at a URL.

    Args:
        url: Such as `s3://bucket/prefix`. Who may read and write there is told by the environment, as the store's own tools read it.
        cache: The local folder of versions; half fetched ones stay in a hidden folder of it.
    """

    def __init__(self, url: str, cache: Path) -> None:
        self.url, self._cache = url.rstrip("/"), cache

    def prepare(self) -> None:
        """Make sure that versions can be published, before any work is done.

        Raises:
            RemoteError: It cannot be reached, refuses, or has no such bucket.
        """
        for left in (self._cache / ".fetched").glob("*"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > OLD_S:
                shutil.rmtree(left, ignore_errors=True)
        path = f"{self._root}/{MARKER}"
        with self._typed(f"{self.url}/{MARKER}"):
            if self._read(path) is None:
                try:
                    self._filesystem.pipe_file(path, LAYOUT, mode="create")
                except FileExistsError:
                    pass  # another run was first

    def manifest(self, asset: str, version: str) -> dict[str, Any] | None:
        """The manifest of a version; None where it was not published.

        Raises:
            CorruptArtifact: It is unreadable.
        """
        where = f"{self.url}/{asset}/{version}/{MANIFEST}"
        with self._typed(where):
            told = self._read(f"{self._folder(asset, version)}/{MANIFEST}")
        return None if told is None else _parse(told, where)

    def publish(self, folder: Path, asset: str, version: str) -> bool:
        """Send a version: files first, manifest last. What is there already is not sent again.

        Returns:
            Whether it is published as it stands in `folder`; if not, somebody else was first, with files that differ in some bytes.
        """
        manifest = (folder / MANIFEST).read_bytes()
        if self._stands(asset, version, manifest) is None:
            self._send_files(folder, asset, version)
            with self._typed(f"{self.url}/{asset}/{version}/{MANIFEST}"):
                self._create(asset, version, manifest)
        return bool(self._stands(asset, version, manifest))

    def replace(self, folder: Path, asset: str, version: str) -> None:
        """Make a published version what `folder` holds, because some of it had to be forgotten; it is never half of either."""
        self._send_files(folder, asset, version)
        root, where = self._folder(asset, version), f"{self.url}/{asset}/{version}"
        manifest = (folder / MANIFEST).read_bytes()
        with self._typed(where):
            self._filesystem.pipe_file(f"{root}/{MANIFEST}", manifest)
            kept = {f"{root}/{MANIFEST}", *(self._object(asset, version, *file) for file in _parse(manifest, where)["files"].items())}
            for path in self._objects(asset, version).keys() - kept:
                self._filesystem.rm_file(path)

    def remove(self, asset: str, version: str) -> None:
        """Delete a version, the manifest first."""
        with self._typed(f"{self.url}/{asset}/{version}"):
            there, manifest = self._objects(asset, version), f"{self._folder(asset, version)}/{MANIFEST}"
            for path in sorted(there, key=lambda path: path != manifest):
                self._filesystem.rm_file(path)

    def fetch(self, asset: str, version: str, folder: Path) -> bool:
        """Bring a version here, whole or not at all, in place of what `folder` holds. Returns whether it was published.

        Raises:
            CorruptArtifact: An object is missing, or is not what the manifest says.
            StoreFull, StoreUnwritable: The local folder cannot take it.
        """
        manifest = self.manifest(asset, version)
        if manifest is None:
            return False
        staged = self._cache / ".fetched" / uuid.uuid4().hex
        logger.info("fetching %s %s from %s", asset, version, self.url)
        try:
            for name, digest in manifest["files"].items():
                where = f"{self.url}/{asset}/{version}/{digest[:DIGITS]}/{name}"
                with typed_errors(staged):
                    (staged / name).parent.mkdir(parents=True, exist_ok=True)
                with self._typed(where):
                    try:
                        self._filesystem.get_file(self._object(asset, version, name, digest), str(staged / name))
                    except FileNotFoundError:
                        raise CorruptArtifact("the object is missing", where=where, remedy=_restore(asset, version)) from None
                if file_sha256(staged / name) != digest:
                    raise CorruptArtifact("the object was changed", where=where, remedy=_restore(asset, version))
            with typed_errors(folder):
                (staged / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
                folder.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
                try:
                    staged.rename(folder)
                except OSError:
                    if not (folder / MANIFEST).exists():  # or another process has fetched it meanwhile
                        raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return True

    def faults(self, asset: str, version: str, expected: dict[str, str]) -> Iterator[str]:
        """What is not there as it was published, every byte read.

        Args:
            expected: The sha256 of each file; empty where it is not known.
        """
        where = f"{self.url}/{asset}/{version}"
        try:
            manifest = self.manifest(asset, version)
        except CorruptArtifact as error:
            yield f"{error.where}: {error.what}"
            return
        if manifest is None:
            yield f"{where}/{MANIFEST}: the object is missing"
            return
        if expected and manifest["files"] != expected:
            yield f"{where}/{MANIFEST}: its files are not the ledger's"
        for name, digest in sorted(manifest["files"].items()):
            with self._typed(where):
                found = self._digest(self._object(asset, version, name, digest))
            if found != digest:
                yield f"{where}/{digest[:DIGITS]}/{name}: the object {'is missing' if found is None else 'was changed'}"

    def published(self) -> list[tuple[str, str]]:
        """Every published version as (asset, version), sorted."""
        with self._typed(self.url):
            self._filesystem.invalidate_cache()
            paths = [path.removeprefix(f"{self._root}/") for path in self._filesystem.find(self._root)]
        found = [path.removesuffix(f"/{MANIFEST}").rpartition("/") for path in paths if path.endswith(f"/{MANIFEST}")]
        return sorted((asset, version) for asset, _, version in found if asset)

    # -- objects ----------------------------------------------------------------------------------------------------

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        import fsspec

        with self._typed(self.url):
            filesystem, root = fsspec.url_to_fs(self.url)
            return filesystem, root.rstrip("/")

    @property
    def _filesystem(self) -> Any:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    def _folder(self, asset: str, version: str) -> str:
        return f"{self._root}/{asset}/{version}"

    def _object(self, asset: str, version: str, name: str, digest: str) -> str:
        return f"{self._folder(asset, version)}/{digest[:DIGITS]}/{name}"

    def _objects(self, asset: str, version: str) -> dict[str, int]:
        """The objects of a version, published or not, and their sizes."""
        self._filesystem.invalidate_cache()  # others write there, too
        found = self._filesystem.find(self._folder(asset, version), detail=True)
        return {path: about["size"] for path, about in found.items()}

    def _read(self, path: str) -> bytes | None:
        try:
            return bytes(self._filesystem.cat_file(path))
        except FileNotFoundError:
            return None

    def _digest(self, path: str) -> str | None:
        digest = sha256()
        self._filesystem.invalidate_cache(path)  # or it asks for what it saw when it listed the folder
        try:
            with self._filesystem.open(path, "rb", block_size=CHUNK) as file:
                while piece := file.read(CHUNK):
                    digest.update(piece)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def _stands(self, asset: str, version: str, manifest: bytes) -> bool | None:
        """Whether a version was published with the files of this manifest; None where it was not published at all."""
        theirs = self.manifest(asset, version)
        return None if theirs is None else theirs["files"] == json.loads(manifest)["files"]

    def _send_files(self, folder: Path, asset: str, version: str) -> None:
        files = _parse((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))["files"]
        with self._typed(f"{self.url}/{asset}/{version}"):
            there = self._objects(asset, version)
            for name, digest in files.items():
                path = self._object(asset, version, name, digest)
                if (
                    there.get(path) != (folder / name).stat().st_size
                ):  # an object is there whole or not at all, and its name tells what it holds
                    self._filesystem.put_file(str(folder / name), path)

    def _create(self, asset: str, version: str, manifest: bytes) -> None:
        """Put the manifest where there is none; of two who do so at once one does, where the store can tell them apart."""
        path = f"{self._folder(asset, version)}/{MANIFEST}"
        try:
            self._filesystem.pipe_file(path, manifest, mode="create")
        except FileExistsError:
            pass  # another run was first
        except OSError:  # some stores refuse the second of two with words of their own, and some know no such condition
            if self._read(path) is None:
                logger.warning(
                    "%s knows no conditional put: two runs that publish the same version are told apart by a look alone", self.url
                )
                self._filesystem.pipe_file(path, manifest)

    @contextmanager
    def _typed(self, where: str) -> Iterator[None]:
        """Raise what the block raises, in its typed form: each client behind fsspec has errors of its own."""
        try:
            yield
        except UdrlError:
            raise
        except ImportError as error:
            raise RemoteError(
                f"needs a package that is not installed ({error})", where=KEY,
                remedy="s3: pip install 'udrl_pipeline[s3]'; gs: pip install gcsfs; az: pip install adlfs",
            ) from error  # fmt: skip
        except Exception as error:
            if isinstance(error, OSError) and (error.filename or error.errno in FULL_NUMBERS):
                raise translate(error, self._cache) from error  # the local folder's
            raise _told(error, where) from error


def _told(error: Exception, where: str) -> RemoteError:
    name, line = type(error).__name__, (str(error).splitlines() or [""])[0]
    where = f"{where} ({KEY})"
    if isinstance(error, PermissionError) or name in REFUSED:
        return RemoteError(
            f"the object store refuses ({name}: {line})", where=where,
            remedy="give it credentials that may list, read, write and delete there, as its own tools read them (s3: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role); nothing is lost, run again",
        )  # fmt: skip
    if isinstance(error, FileNotFoundError):
        return RemoteError(
            f"there is no such bucket ({line})", where=where, remedy="create it, or correct the URL; nothing is lost, run again"
        )
    if isinstance(error, ConnectionError | TimeoutError) or name in UNREACHABLE:
        return RemoteError(
            f"the object store cannot be reached ({name}: {line})", where=where,
            remedy="check the network and the endpoint (s3: AWS_ENDPOINT_URL); nothing is lost, run again",
        )  # fmt: skip
    if isinstance(error, ValueError) and "rotocol" in line:
        return RemoteError(f"fsspec knows no such store ({line})", where=KEY, remedy="name a folder, or a URL such as s3://bucket/prefix")
    return RemoteError(f"the object store failed ({name}: {line})", where=where, remedy="nothing is lost: run again when it works")


def _parse(manifest: bytes, where: str) -> dict[str, Any]:
    try:
        told = json.loads(manifest)
    except ValueError as error:
        raise CorruptArtifact(f"no readable manifest ({error})", where=where, remedy="restore the object from a backup") from error
    if not isinstance(told, dict) or not isinstance(told.get("files"), dict):
        raise CorruptArtifact("no readable manifest (it lists no files)", where=where, remedy="restore the object from a backup")
    return told


def _restore(asset: str, version: str) -> str:
    return f"restore it from a backup, or delete all of {asset}/{version} there and run again: it is made anew from its inputs"
