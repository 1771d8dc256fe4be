"""Writing a dataset, and its header."""

import tracemalloc

import numpy as np
import pytest
from test_files import files_up_to

from evasion.components.common.data import writer
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.header import DatasetError, Header, Sample
from evasion.components.common.data.pixels import ahead


class TestWriting:
    HEADER = Header(name="d", class_names=("a", "b"), counts=(2, 1), image_shape=(2, 2, 1), split="testing")

    @staticmethod
    def sample(label=0, stem="x", shape=(2, 2, 1), dtype=np.uint8):
        return Sample(label, stem, np.zeros(shape, dtype))

    @pytest.mark.parametrize(
        ("last", "error"),
        [
            ([], r"wrote \[2, 0\] images of the classes instead of \[2, 1\]"),
            ([Sample(0, "z", np.zeros((2, 2, 1), np.uint8))], r"wrote \[3, 0\] images of the classes"),
            ([Sample(1, "z", np.zeros((2, 2, 3), np.uint8))], "z: uint8"),
            ([Sample(1, "z", np.zeros((2, 2, 1), np.float32))], "z: float32"),
            (
                [Sample(1, place, np.zeros((2, 2, 1), np.uint8)) for place in "zw"],
                r"wrote \[2, 2\] images",
            ),
        ],
        ids=["too few", "of another class", "of another shape", "of another type", "too many"],
    )
    def test_images_other_than_the_header_says_leave_nothing(self, tmp_path, last, error):
        with pytest.raises(RuntimeError, match=error):
            writer.write(tmp_path / "out", self.HEADER, [self.sample(), self.sample(stem="y"), *last])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt(), MemoryError()])
    def test_a_failing_producer_leaves_nothing_and_what_was_there_stays(self, tmp_path, error):
        def samples():
            yield self.sample()
            raise error

        (tmp_path / "out").write_text("before")
        with pytest.raises(type(error)):
            writer.write(tmp_path / "out", self.HEADER, samples())
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (tmp_path / "out").read_text() == "before"

    @pytest.mark.parametrize("room", [0, 512, 5_000, 60_000, 200_000])
    def test_a_full_disk_leaves_nothing(self, tmp_path, room):
        noise = np.random.default_rng(0).integers(0, 256, (300, 28, 28, 1), dtype=np.uint8)
        header = Header(name="d", class_names=("a",), counts=(300,), image_shape=(28, 28, 1), split="testing")
        samples = (Sample(0, f"{place}", image) for place, image in enumerate(noise))
        with files_up_to(room), pytest.raises(OSError, match="the incomplete file was removed") as error:
            writer.write(tmp_path / "out", header, samples)
        assert str(tmp_path / "out") in str(error.value)
        assert not list(tmp_path.iterdir())

    def test_images_wait_in_bounded_number(self, tmp_path):
        """Memory must not grow with the number of images, however much faster they come than they are encoded."""
        images, shape = 4_000, (64, 64, 3)
        header = Header(name="d", class_names=("a",), counts=(images,), image_shape=shape, split="testing")
        tracemalloc.start()
        writer.write(tmp_path / "out", header, (Sample(0, f"{n}", np.zeros(shape, np.uint8)) for n in range(images)))
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        with Dataset(tmp_path / "out") as opened:
            assert sum(1 for _ in opened.samples()) == images
        read = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        in_flight = ahead(shape)["ahead"] * 64 * 64 * 3
        assert max(written, read) < 4 * in_flight  # all of them would be 8 times as much as those ahead


GOOD = {"name": "d", "class_names": ("a", "b"), "counts": (0, 1), "image_shape": (2, 2, 1), "split": "testing"}


class TestHeader:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"name": ".."}, "dataset_name must be one plain folder name"),
            ({"name": "a/b"}, "dataset_name must be one plain folder name"),
            ({"name": ""}, "dataset_name must be one plain folder name"),
            ({"name": "a\nb"}, "dataset_name must be one plain folder name"),
            ({"class_names": ("a", "../b")}, "class name must be one plain folder name"),
            ({"class_names": ("a", "b\\c")}, "class name must be one plain folder name"),
            ({"class_names": ("a", "\udcff")}, "class name must be one plain folder name"),
            ({"class_names": ("a", "a")}, "must be unique"),
            ({"counts": (1,)}, "must have a count"),
            ({"split": "validation"}, "split must be one of training, testing"),
            ({"image_shape": (2, 2, 4)}, "image_shape must be"),
            ({"image_shape": (0, 2, 1)}, "image_shape must be"),
            ({"image_shape": (100_000, 100_000, 3)}, "image_shape must be"),
        ],
    )
    def test_what_makes_no_dataset_is_reported(self, change, message):
        with pytest.raises(DatasetError, match=message):
            Header(**{**GOOD, **change})

    def test_derive_keeps_what_it_is_and_adds_what_was_done(self):
        header = Header(**GOOD, provenance=({"stage": "load_dataset"},), prefix="adv_")
        derived = header.derive(name="e", prefix="def_", entry={"stage": "e"}, counts=[0, 2])
        assert derived == Header(
            **{**GOOD, "name": "e", "counts": (0, 2)},
            prefix="def_adv_",
            provenance=({"stage": "load_dataset"}, {"stage": "e"}),
        )
