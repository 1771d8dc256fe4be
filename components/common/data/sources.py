"""Reads images in class folders, and single files, from this machine or from Google Cloud Storage.

`list_images` lists `data_dir/<class>/<file>` and reads no file; `ImageFolder.read` reads one file and may be called
from several threads. With `ordered_map`, images are read ahead with bounded memory and without a copy on disk:

    folder = list_images("gs://bucket/digits")
    for pixels in ordered_map(lambda image: decode(folder.read(image), shape), folder.images, threads=8, ahead=16):
        ...

The content decides whether a file is an image, not its name: every file below a class folder is listed, so that
`decode` reports a stray file instead of leaving it out silently. Ignored are hidden files and folders, files of file
managers and archivers (Thumbs.db, desktop.ini, __MACOSX, …), and, beside the class folders, files that are not images
(a README, a list of labels).
"""

import io
import os
import shutil
import stat
import threading
import unicodedata
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from evasion.components.common import files, validate
from evasion.components.common.data.images import UnreadableImage

# Otherwise a thread of Google's client requests the bucket's metadata for traces, which are not collected here. It
# needs a further permission, retries for minutes, and takes random numbers from the generator that Keras uses.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")

MAX_FILE_BYTES = 256 * 2**20
"""The largest file that is read as an image. A stray archive among images must not fill the memory."""

_EXPECTED = "data_dir must contain images as <class>/<file>, in a local folder or at gs://bucket/prefix."
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
_JUNK = frozenset({"Thumbs.db", "desktop.ini", "Icon\r", "__MACOSX", "@eaDir", "lost+found"})
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
_UNSAFE_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
# File systems allow 255 bytes, which must also hold the prefixes of several stages and ".png".
_MAX_NAME_BYTES = 200
_RETRY_SECONDS = 120.0
_CUT_TRIES = 4  # of an object whose body ends too early: unlike a busy service, what cuts bodies does not pass


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One file of an image folder.

    Attributes:
        class_index: Position of its class in `ImageFolder.class_names`.
        path: Its path below the class folder, with "/" between folders.
        stem: Its name in a dataset, without extension; unique in its class.
    """

    class_index: int
    path: str
    stem: str


class _Store(Protocol):
    def paths(self) -> Iterator[str]:
        """Yield every file's path below the root, in any order; a folder's path ends with a slash."""

    def read(self, path: str) -> bytes:
        """Return one file's content."""


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, as `list_images` lists it.

    Attributes:
        data_dir: The argument of `list_images`.
        class_names: The names of the class folders, sorted as text: "10" comes before "2".
        images: Every image, by class and then by path.
    """

    data_dir: str
    class_names: tuple[str, ...]
    images: tuple[SourceImage, ...]
    _store: _Store

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of images of each class, in the order of `class_names`."""
        totals = Counter(image.class_index for image in self.images)
        return tuple(totals[index] for index in range(len(self.class_names)))

    def locate(self, image: SourceImage) -> str:
        """Return the full path or gs:// address of an image, for messages and records."""
        return f"{self.data_dir.rstrip('/')}/{self._path(image)}"

    def read(self, image: SourceImage) -> bytes:
        """Read one file. Several threads may call it at once.

        Raises:
            UnreadableImage: If it is larger than `MAX_FILE_BYTES`, a broken link, or not a regular file.
            OSError: If this machine, the network or Cloud Storage fails, after retries.
            ValueError: If the object does not exist or permission is denied.
        """
        return self._store.read(self._path(image))

    def _path(self, image: SourceImage) -> str:
        return f"{self.class_names[image.class_index]}/{image.path}"


def list_images(data_dir: str) -> ImageFolder:
    """List the images in class folders without reading them.

    Folders below a class folder are searched too. Symbolic links to files and folders are followed.

    Args:
        data_dir: A local folder, or `gs://bucket` or `gs://bucket/prefix`.

    Returns:
        The class names and the images, in a stable order, with a unique stem for each.

    Raises:
        ValueError: If data_dir is missing or empty, an image is outside the class folders, a class has no image, a
            name is unsafe, two images would have the same stem, a link leads to a folder above it, the bucket does
            not exist, or permission is denied.
        OSError: If a folder cannot be read or Cloud Storage cannot be reached.
    """
    store = _open_store(data_dir)
    classes: dict[str, list[str]] = {}
    for path in store.paths():
        class_name, slash, relative = path.partition("/")
        if _is_ignored(path):
            continue
        _check_name(data_dir, path.removesuffix("/"))
        if slash:
            classes.setdefault(class_name, [])
            if relative and not relative.endswith("/"):
                classes[class_name].append(relative)
        elif PurePosixPath(path).suffix.lower() in _IMAGE_SUFFIXES:
            raise ValueError(
                f"{_EXPECTED} Received: data_dir={data_dir!r}, with the image {path!r} outside the class folders. "
                "Move it into a folder named after its class."
            )
    if not classes:
        raise ValueError(f"{_EXPECTED} Received: data_dir={data_dir!r}, which has no class folders.")
    images: list[SourceImage] = []
    for index, (name, paths) in enumerate(sorted(classes.items())):
        if not paths:
            raise ValueError(
                f"Every class folder must contain an image. Received: data_dir={data_dir!r}, whose class {name!r} "
                "is empty. Add images or remove the folder."
            )
        paths.sort()
        try:
            stems = unique_stems(paths)
        except ValueError as error:
            raise ValueError(f"{error} Received: data_dir={data_dir!r}, class {name!r}.") from None
        images.extend(SourceImage(index, path, stem) for path, stem in zip(paths, stems, strict=True))
    return ImageFolder(data_dir, tuple(sorted(classes)), tuple(images), store)


def unique_stems(paths: Sequence[str]) -> list[str]:
    """Return names for the files of one class that are unique without folders and extensions.

    `a/b.jpg` becomes `a__b`. If that is not unique, the extension is kept: `a.jpg` and `a.png` become `a_jpg` and
    `a_png`.

    Args:
        paths: Different paths below the class folder, with "/" between folders.

    Returns:
        A stem for each path, in the same order.

    Raises:
        ValueError: If two files still have the same stem, or a stem is too long for a file name.
    """
    pure = [PurePosixPath(path) for path in paths]
    short = [str(path.with_suffix("")).replace("/", "__") for path in pure]
    uses = Counter(short)
    stems = [
        f"{stem}_{path.suffix[1:]}" if uses[stem] > 1 and path.suffix else stem
        for path, stem in zip(pure, short, strict=True)
    ]
    owners: dict[str, str] = {}
    for path, stem in zip(paths, stems, strict=True):
        if stem in owners:
            raise ValueError(
                f"The images {owners[stem]!r} and {path!r} would both be named {stem!r} in the dataset. Rename one."
            )
        if len(stem.encode()) > _MAX_NAME_BYTES:
            raise ValueError(f"The name of {path!r} is longer than {_MAX_NAME_BYTES} bytes. Rename it.")
        owners[stem] = path
    return stems


def fetch_file(uri: str, destination: Path, *, sha256: str = "") -> Path:
    """Copy or download one file.

    The destination appears only when it is complete and verified; an existing file stays until then.

    Args:
        uri: A local path or a `gs://bucket/object` address.
        destination: The file to write; missing folders are created.
        sha256: The hash that the file must have, as 64 hexadecimal digits; not verified if empty.

    Returns:
        The destination.

    Raises:
        ValueError: If the file does not exist, permission is denied, or its hash differs.
        OSError: If the copy or the download fails, after retries.
    """
    validate.sha256("sha256", sha256)
    with files.replacing(destination) as partial:
        if uri.startswith(validate.REMOTE):
            _download(uri, partial)
        elif _local_path(uri, "A file").is_file():
            shutil.copyfile(uri, partial)
        else:
            raise ValueError(f"A file must exist, as a local path or at gs://bucket/object. Received: {uri!r}")
        actual = files.sha256_of(partial) if sha256 else ""
        if actual != sha256.lower():
            raise ValueError(f"{uri!r} must have sha256 {sha256.lower()}. Received: {actual}")
    return destination


def _open_store(data_dir: str) -> _Store:
    if data_dir.startswith(validate.REMOTE):
        return _Bucket(data_dir)
    root = _local_path(data_dir, "data_dir")
    if not data_dir or not root.is_dir():
        problem = "is not a folder" if data_dir and root.exists() else "does not exist"
        raise ValueError(f"{_EXPECTED} Received: data_dir={data_dir!r}, which {problem}.")
    return _Directory(root)


def _local_path(text: str, name: str) -> Path:
    if "://" in text:
        raise ValueError(f"{name} must be a local path or start with gs://. Received: {text!r}")
    return Path(text)


def _is_ignored(path: str) -> bool:
    return any(part in _JUNK or (part.startswith(".") and part not in {".", ".."}) for part in path.split("/") if part)


def _check_name(data_dir: str, path: str) -> None:
    """Reject names that are unsafe in a tar, a CSV or an HTML page."""
    if any(part in {"", ".", ".."} for part in path.split("/")):
        problem = "which is not a plain relative path"
    elif any(
        unicodedata.category(char) in _UNSAFE_CATEGORIES or unicodedata.bidirectional(char) in _UNSAFE_DIRECTIONS
        for char in path
    ):
        problem = "whose name has control characters or is not UTF-8"
    else:
        return
    raise ValueError(f"Names of classes and images must be plain text. Received: {path!r} in {data_dir!r}, {problem}.")


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root

    def paths(self) -> Iterator[str]:
        return self._walk(self._root, "", [])

    def read(self, path: str) -> bytes:
        file = self._root / path
        try:
            status = file.stat()
        except FileNotFoundError as error:
            raise UnreadableImage("not a regular file: a broken link, or removed after it was listed") from error
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImage("not a regular file")  # reading a pipe would block forever
        if status.st_size > MAX_FILE_BYTES:
            raise _too_large()
        return file.read_bytes()

    def _walk(self, folder: Path, prefix: str, parents: list[os.stat_result]) -> Iterator[str]:
        status = folder.stat()
        if any(os.path.samestat(status, parent) for parent in parents):
            raise ValueError(f"A link must not lead to a folder above it. Received: {str(folder)!r}. Remove it.")
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir():
                    yield f"{path}/"
                    if not _is_ignored(entry.name):
                        yield from self._walk(Path(entry.path), f"{path}/", [*parents, status])
                else:
                    yield path


class _Bucket:
    def __init__(self, uri: str) -> None:
        bucket, _, prefix = uri.removeprefix(validate.REMOTE).partition("/")
        if not bucket:
            raise ValueError(f"{_EXPECTED} Received: data_dir={uri!r}, which has no bucket.")
        self._uri = uri.rstrip("/")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        with _readable_errors(self._uri):
            client = _client()
        weakref.finalize(self, client.close)
        self._bucket: Any = client.bucket(bucket)
        self._failed = threading.Event()

    def paths(self) -> Iterator[str]:
        with _readable_errors(self._uri):
            blobs: Iterable[Any] = self._bucket.list_blobs(
                prefix=self._prefix, fields="items(name),nextPageToken", retry=_retry()
            )
            for blob in blobs:
                if path := blob.name.removeprefix(self._prefix):
                    yield path

    def read(self, path: str) -> bytes:
        buffer = _BoundedBuffer()
        blob = self._bucket.blob(self._prefix + path)
        try:
            with _readable_errors(f"{self._uri}/{path}"):
                blob.download_to_file(buffer, checksum="auto", retry=_retry(self._failed))
        except (OSError, ValueError) as error:
            if not isinstance(error, UnreadableImage):
                self._failed.set()
            raise
        return buffer.getvalue()


class _BoundedBuffer(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + len(data) > MAX_FILE_BYTES:
            raise _too_large()
        return super().write(data)


def _too_large() -> UnreadableImage:
    return UnreadableImage(f"too large: the file has more than {MAX_FILE_BYTES:,} bytes")


def _download(uri: str, destination: Path) -> None:
    bucket, _, name = uri.removeprefix(validate.REMOTE).partition("/")
    if not bucket or not name:
        raise ValueError(f"A file in Cloud Storage must be given as gs://bucket/object. Received: {uri!r}")
    with _readable_errors(uri), closing(_client()) as client:
        blob = client.bucket(bucket).blob(name)
        blob.download_to_filename(str(destination), checksum="auto", retry=_retry())


def _client() -> Any:
    # Imported here because it takes a second, which only gs:// addresses need.
    from google.cloud import storage

    # Reading needs no project; without the argument, the client would require one. With STORAGE_EMULATOR_HOST set, it
    # connects to that host without credentials.
    return storage.Client(project=None)


def _retry(failed: threading.Event | None = None) -> Any:
    """Return when a request is repeated: not after `failed` is set, since then the whole work fails."""
    import http.client

    import urllib3
    from google.cloud.storage.retry import DEFAULT_RETRY
    from requests import exceptions  # type: ignore[import-untyped]

    cut_errors = (
        exceptions.ChunkedEncodingError,
        http.client.IncompleteRead,
        urllib3.exceptions.ProtocolError,
    )
    cuts = 0

    def again(error: Exception) -> bool:
        nonlocal cuts
        cuts += isinstance(error, cut_errors)
        stopped = failed is not None and failed.is_set()
        return bool(DEFAULT_RETRY._predicate(error)) and not stopped and cuts < _CUT_TRIES

    return DEFAULT_RETRY.with_predicate(again).with_delay(maximum=10.0).with_timeout(_RETRY_SECONDS)


@contextmanager
def _readable_errors(uri: str) -> Iterator[None]:
    """Convert the exceptions of Google's libraries to errors that say what to do."""
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth
    from google.cloud.storage.exceptions import DataCorruption

    try:
        yield
    except auth.DefaultCredentialsError as error:
        raise ValueError(
            f"No Google Cloud credentials to read {uri!r}. Run where a service account is attached, run "
            f"`gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS. ({error})"
        ) from error
    except api.NotFound as error:
        raise ValueError(f"{uri!r} does not exist. Check the names of the bucket and the object.") from error
    except (api.Forbidden, api.Unauthorized, auth.RefreshError) as error:
        raise ValueError(
            f"Permission denied to read {uri!r}. Grant the credentials the role Storage Object Viewer "
            f"(roles/storage.objectViewer) on the bucket. ({error})"
        ) from error
    except DataCorruption as error:
        raise OSError(f"{uri!r} was damaged in transfer: its checksum is wrong. Run again. ({error})") from error
    except (api.GoogleAPIError, auth.GoogleAuthError, OSError) as error:
        if getattr(error, "errno", None):  # an error of the disk, not of the network
            raise
        raise OSError(f"{uri!r} could not be read after several retries. ({error})") from error
