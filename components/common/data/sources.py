"""Images in class folders, and single files, from this machine or from Google Cloud Storage.

`list_images` lists `data_dir/<class>/<file>` and reads nothing; `ImageFolder.read` reads one file and may be
called from several threads. Together with `ordered_map`, that reads ahead with bounded memory and no copy on disk:

    folder = list_images("gs://bucket/digits")
    for pixels in ordered_map(lambda image: decode(folder.read(image), shape), folder.images, threads=8, ahead=16):
        ...

What counts as an image is decided by its content, not by its name: every file below a class folder is listed,
so that a stray one is found by `decode` and named instead of being left out in silence. Ignored are hidden
files and folders, what file managers and unpackers leave behind (Thumbs.db, desktop.ini, __MACOSX, …), and,
beside the class folders, files that are no images (a README, a list of labels).
"""

import io
import os
import shutil
import stat
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

# A thread of Google's client that asks for the bucket's metadata, for traces that nobody collects here, needs a
# permission more, tries for minutes, and draws its pauses from the generator that Keras draws weights from.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")

MAX_FILE_BYTES = 256 * 2**20
"""The largest file read as an image. A forgotten archive among images must not fill the memory."""

_EXPECTED = "data_dir must hold images as <class>/<file>, in a local folder or at gs://bucket/prefix."
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
_JUNK = frozenset({"Thumbs.db", "desktop.ini", "Icon\r", "__MACOSX", "@eaDir", "lost+found"})
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
_UNSAFE_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
# File systems allow 255 bytes; the prefixes of a few stages and ".png" are to fit as well.
_MAX_NAME_BYTES = 200
_RETRY_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One file of an image folder.

    Attributes:
        class_index: Position of its class in `ImageFolder.class_names`.
        path: Where it lies below its class folder, with "/" between folders.
        stem: Its name in a dataset, without extension: no other image of its class has the same.
    """

    class_index: int
    path: str
    stem: str


class _Store(Protocol):
    def paths(self) -> Iterator[str]:
        """Every file's path below the root, in any order; a folder's path ends with a slash."""

    def read(self, path: str) -> bytes:
        """One file's content."""


@dataclass(frozen=True)
class ImageFolder:
    """What `list_images` found.

    Attributes:
        data_dir: As it was given.
        class_names: Names of the class folders, sorted as text: "10" comes before "2".
        images: Every image, by class and then by path.
    """

    data_dir: str
    class_names: tuple[str, ...]
    images: tuple[SourceImage, ...]
    _store: _Store

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of images of each class, in the order of `class_names`."""
        counted = Counter(image.class_index for image in self.images)
        return tuple(counted[index] for index in range(len(self.class_names)))

    def locate(self, image: SourceImage) -> str:
        """The full path or gs:// address of an image, for messages and records."""
        return f"{self.data_dir.rstrip('/')}/{self._path(image)}"

    def read(self, image: SourceImage) -> bytes:
        """Read one file. Safe to call from several threads at once.

        Raises:
            UnreadableImage: If it is larger than `MAX_FILE_BYTES`, a broken link, or no regular file.
            OSError: If this machine, the network or Cloud Storage fails, after retries.
            ValueError: If the object is gone or may not be read.
        """
        return self._store.read(self._path(image))

    def _path(self, image: SourceImage) -> str:
        return f"{self.class_names[image.class_index]}/{image.path}"


def list_images(data_dir: str) -> ImageFolder:
    """List images that lie in class folders, without reading any.

    Below a class folder, folders are searched too. Symbolic links are followed, to files and to folders.

    Args:
        data_dir: A local folder, or `gs://bucket` or `gs://bucket/prefix`.

    Returns:
        The class names and the images, in a stable order, with a unique stem for each.

    Raises:
        ValueError: If data_dir is missing or empty, images lie outside class folders, a class has no image, a
            name is unsafe, two images cannot be given different stems, a link leads back to a folder
            above it, or the bucket does not exist or may not be read.
        OSError: If a folder cannot be read or Cloud Storage cannot be reached.
    """
    store = _open_store(data_dir)
    classes: dict[str, list[str]] = {}
    for path in store.paths():
        class_name, slash, below = path.partition("/")
        if _is_ignored(path):
            continue
        _check_name(data_dir, path.removesuffix("/"))
        if slash:
            classes.setdefault(class_name, [])
            if below and not below.endswith("/"):
                classes[class_name].append(below)
        elif PurePosixPath(path).suffix.lower() in _IMAGE_SUFFIXES:
            raise ValueError(
                f"{_EXPECTED} Received: data_dir={data_dir!r}, with the image {path!r} in no class folder. "
                "Move it into a folder named after its class."
            )
    if not classes:
        raise ValueError(f"{_EXPECTED} Received: data_dir={data_dir!r}, which has no class folder.")
    images: list[SourceImage] = []
    for index, (name, paths) in enumerate(sorted(classes.items())):
        if not paths:
            raise ValueError(
                f"Every class folder must hold an image. Received: data_dir={data_dir!r}, whose class {name!r} "
                "has none. Add images or remove the folder."
            )
        paths.sort()
        try:
            stems = unique_stems(paths)
        except ValueError as error:
            raise ValueError(f"{error} Received: data_dir={data_dir!r}, class {name!r}.") from None
        images.extend(SourceImage(index, path, stem) for path, stem in zip(paths, stems, strict=True))
    return ImageFolder(data_dir, tuple(sorted(classes)), tuple(images), store)


def unique_stems(paths: Sequence[str]) -> list[str]:
    """Names for the files of one class that stay unique without folders and extensions.

    `a/b.jpg` becomes `a__b`. Where that is not unique, the extension stays: `a.jpg` and `a.png` become `a_jpg`
    and `a_png`.

    Args:
        paths: Different paths below the class folder, with "/" between folders.

    Returns:
        A stem for each path, in the same order.

    Raises:
        ValueError: If two files still have the same stem, or one is too long for a file name.
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
                f"The images {owners[stem]!r} and {path!r} would both be called {stem!r} in the dataset. Rename one."
            )
        if len(stem.encode()) > _MAX_NAME_BYTES:
            raise ValueError(f"The name of {path!r} is longer than {_MAX_NAME_BYTES} bytes. Rename it.")
        owners[stem] = path
    return stems


def fetch_file(uri: str, destination: Path, *, sha256: str = "") -> Path:
    """Copy or download one file.

    The destination appears only when it is complete and verified; a file that was there before stays until then.

    Args:
        uri: A local path or a `gs://bucket/object` address.
        destination: The file to write; missing folders are made.
        sha256: The hash that the file must have, as 64 hexadecimal digits; not verified if empty.

    Returns:
        The destination.

    Raises:
        ValueError: If the file does not exist or may not be read, or its hash is another one.
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
        found = files.sha256_of(partial) if sha256 else ""
        if found != sha256.lower():
            raise ValueError(f"{uri!r} must have sha256 {sha256.lower()}. Received: {found}")
    return destination


def _open_store(data_dir: str) -> _Store:
    if data_dir.startswith(validate.REMOTE):
        return _Bucket(data_dir)
    root = _local_path(data_dir, "data_dir")
    if not data_dir or not root.is_dir():
        problem = "is no folder" if data_dir and root.exists() else "does not exist"
        raise ValueError(f"{_EXPECTED} Received: data_dir={data_dir!r}, which {problem}.")
    return _Directory(root)


def _local_path(text: str, what: str) -> Path:
    if "://" in text:
        raise ValueError(f"{what} must be a local path or start with gs://. Received: {text!r}")
    return Path(text)


def _is_ignored(path: str) -> bool:
    return any(part in _JUNK or (part.startswith(".") and part not in {".", ".."}) for part in path.split("/") if part)


def _check_name(data_dir: str, path: str) -> None:
    """Refuse names that a tar, a CSV or an HTML page could not carry safely."""
    if any(part in {"", ".", ".."} for part in path.split("/")):
        problem = "which is no plain relative path"
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
            raise UnreadableImage("not a regular file: a broken link, or removed since it was listed") from error
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImage("not a regular file")  # reading a pipe would wait forever
        if status.st_size > MAX_FILE_BYTES:
            raise _too_large()
        return file.read_bytes()

    def _walk(self, folder: Path, prefix: str, above: list[os.stat_result]) -> Iterator[str]:
        here = folder.stat()
        if any(os.path.samestat(here, other) for other in above):
            raise ValueError(f"A link must not lead to a folder above it. Received: {str(folder)!r}. Remove it.")
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir():
                    yield f"{path}/"
                    if not _is_ignored(entry.name):
                        yield from self._walk(Path(entry.path), f"{path}/", [*above, here])
                else:
                    yield path


class _Bucket:
    def __init__(self, uri: str) -> None:
        bucket, _, prefix = uri.removeprefix(validate.REMOTE).partition("/")
        if not bucket:
            raise ValueError(f"{_EXPECTED} Received: data_dir={uri!r}, which names no bucket.")
        self._uri = uri.rstrip("/")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        with _explained(self._uri):
            client = _client()
        weakref.finalize(self, client.close)
        self._bucket: Any = client.bucket(bucket)

    def paths(self) -> Iterator[str]:
        with _explained(self._uri):
            blobs: Iterable[Any] = self._bucket.list_blobs(
                prefix=self._prefix, fields="items(name),nextPageToken", retry=_retry()
            )
            for blob in blobs:
                if path := blob.name.removeprefix(self._prefix):
                    yield path

    def read(self, path: str) -> bytes:
        buffer = _BoundedBuffer()
        with _explained(f"{self._uri}/{path}"):
            self._bucket.blob(self._prefix + path).download_to_file(buffer, checksum="auto", retry=_retry())
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
    with _explained(uri), closing(_client()) as client:
        blob = client.bucket(bucket).blob(name)
        blob.download_to_filename(str(destination), checksum="auto", retry=_retry())


def _client() -> Any:
    # Imported here because it takes a second that only gs:// addresses are worth.
    from google.cloud import storage

    # Reading needs no project; without a word about it, the client would insist on finding one. With
    # STORAGE_EMULATOR_HOST set, it goes there, without credentials.
    return storage.Client(project=None)


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(_RETRY_SECONDS)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn the many exceptions of Google's libraries into one sentence each that says what to do."""
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
            f"{uri!r} may not be read with these credentials. Grant them the role Storage Object Viewer "
            f"(roles/storage.objectViewer) on the bucket. ({error})"
        ) from error
    except DataCorruption as error:
        raise OSError(f"{uri!r} arrived damaged: its checksum is wrong. Run again. ({error})") from error
    except (api.GoogleAPIError, auth.GoogleAuthError, OSError) as error:
        if getattr(error, "errno", None):  # the disk's failure, not the network's
            raise
        raise OSError(f"{uri!r} could not be read, retries included. ({error})") from error
