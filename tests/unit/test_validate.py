"""Rules of parameters: what passes, what does not, and what the error says."""

import math

import numpy as np
import pytest

from evasion.components.common import validate


def eps(value):
    validate.in_range("eps", value, 0, 1, include_low=False)


def ratio(value):
    validate.in_range("ratio", value, 0, 1)


def sigma(value):
    validate.in_range("sigma", value, 0, include_low=False)


def share(value):
    validate.in_range("validation_split", value, 0, 1, include_high=False)


def batch_size(value):
    validate.positive_integer("batch_size", value)


def quality(value):
    validate.integer_in("quality", value, 1, 100)


def norm(value):
    validate.one_of("norm", value, ("inf", "1", "2"))


def run_id(value):
    validate.required("dataset_run_id", value, "with load_dataset_from_mlruns")


def digits(value):
    validate.sha256("weights_sha256", value)


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        (eps, [1e-9, 0.3, 1, 1.0]),
        (ratio, [0, 0.5, 1, True - 0.0]),
        (sigma, [1e-9, 3, 1e30]),
        (share, [0, 0.999]),
        (batch_size, [1, 2**16]),
        (quality, [1, 50, 100]),
        (norm, ["inf", "1", "2"]),
        (validate.seed, [-1, 0, 2**32 - 1]),
        (run_id, ["a", " b "]),
        (digits, ["", "0" * 64, "aF" * 32]),
        (validate.experiment, ["evasion", "7 signs", "a.b-c_d", "\u00e9vasion"]),
    ],
)
def test_good_values_pass(rule, values):
    for value in values:
        rule(value)


@pytest.mark.parametrize(
    ("rule", "expected", "values"),
    [
        (eps, "eps must be in (0, 1]", [0, -0.3, 1.0001, 8, math.nan, math.inf, -math.inf, "0.3", None, True]),
        (ratio, "ratio must be in [0, 1]", [-1e-9, 2, math.nan, "1"]),
        (sigma, "sigma must be above 0 and finite", [0, -1, math.inf, math.nan]),
        (share, "validation_split must be in [0, 1)", [1, -0.1, math.nan]),
        (batch_size, "batch_size must be a positive integer", [0, -1, 1.0, 32.5, "32", True, None, math.nan]),
        (quality, "quality must be an integer in [1, 100]", [0, 101, 50.0, "50", False]),
        (norm, "norm must be one of inf, 1, 2", ["3", "", "Inf", 2, np.inf, None, []]),
        (validate.seed, "seed must be an integer in [-1, 4294967295]", [-2, 2**32, 1.5, "1", True]),
        (run_id, "dataset_run_id must be given with load_dataset_from_mlruns", ["", "  ", "\n"]),
        (digits, "weights_sha256 must be 64 hexadecimal digits or empty", ["0" * 63, "g" * 64, "0" * 65]),
        (
            validate.experiment,
            "experiment must be of letters, digits, spaces and _ . - alone, the first one a letter or a digit",
            ["", " ", "..", "../../../x", "a/b", "a\\b", "a:b", "a%20b"],
        ),
    ],
)
def test_bad_values_are_reported_with_their_rule(rule, expected, values):
    for value in values:
        with pytest.raises(ValueError, match="must be") as error:
            rule(value)
        message = str(error.value)
        assert message == f"{expected}. Received: {message.partition(' must')[0]}={value!r}"


def test_a_number_too_large_for_a_float_is_out_of_range():
    with pytest.raises(ValueError, match="eps must be in"):
        eps(10**400)


class TestExistingFolder:
    def test_a_folder_that_holds_something_passes(self, tmp_path):
        (tmp_path / "cat").mkdir()
        validate.existing_folder("data_dir", str(tmp_path))

    def test_a_bucket_is_looked_at_when_it_is_read(self):
        validate.existing_folder("data_dir", "gs://bucket/prefix")

    @pytest.mark.parametrize(
        ("place", "message"),
        [
            ("missing", "data_dir must be an existing folder of <class>/<image> or gs://. Received: data_dir="),
            ("file", "data_dir must be an existing folder of <class>/<image> or gs://. Received: data_dir="),
            ("empty", "data_dir must hold a folder for each class; it is empty. Received: data_dir="),
        ],
    )
    def test_another_is_reported(self, tmp_path, place, message):
        (tmp_path / "file").touch()
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="must") as error:
            validate.existing_folder("data_dir", str(tmp_path / place))
        assert str(error.value) == f"{message}{str(tmp_path / place)!r}"

    def test_no_folder_is_reported(self):
        with pytest.raises(ValueError, match=r"data_dir must be given\. Received: data_dir=''"):
            validate.existing_folder("data_dir", "")


class TestWeights:
    def test_names_files_and_buckets_pass(self, tmp_path):
        (tmp_path / "w.h5").touch()
        for value in ("imagenet", "none", "gs://bucket/w.h5", str(tmp_path / "w.h5")):
            validate.weights("weights", value)

    @pytest.mark.parametrize("value", ["", "ImageNet", "/no/such/file.h5", "."])
    def test_others_are_reported(self, value):
        with pytest.raises(ValueError, match="weights must be imagenet, none, an existing file or a gs:// file"):
            validate.weights("weights", value)
