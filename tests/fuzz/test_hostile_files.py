"""Whatever is in a file, reading it returns or raises the reader's own error, on one line and at once."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from hostile import damaged, fuzzed, json_files, refuses
from hypothesis import given
from hypothesis import strategies as st
from lab import FGM, MEDIAN, Lab, Report, aware

from evasion.components.common.data import writer
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.header import DatasetError, Header, Sample
from evasion.components.common.files import sha256_of
from evasion.components.common.models.artifact import CARD, FILE, Card, ModelError
from evasion.components.common.results import shards
from evasion.components.common.results.collection import collect
from evasion.components.common.results.curve import read_curve
from evasion.pipelines.gate import threshold
from evasion.pipelines.gate.gate import gate
from evasion.pipelines.gate.settings import settings
from evasion.pipelines.gate.verdict import Judgement

ENTRY = {"stage": "load_dataset", "kind": "load", "parameters": {"a": None}, "seed": 1, "versions": {"numpy": "2"}}
ATTACK = ENTRY | {"stage": "fgm", "kind": "attack", "defense": {"stage": "jpeg", "parameters": {}}, "iterates": True}
HEADER = Header(
    name="data",
    class_names=("a", "b"),
    counts=(2, 1),
    image_shape=(3, 3, 1),
    split="testing",
    prefix="adv_",
    provenance=(ENTRY, ATTACK),
)
FIELDS = {"l_1_norm": 0.5, "zero_gradient": 0, "clean_confidence": 0.5, "fooled_best": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def tar(folder):
    pixels = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
    samples = [Sample(label, stem, pixels, "from", FIELDS) for label, stem in ((0, "x"), (0, "y"), (1, "z"))]
    writer.write(folder / "data.tar", HEADER, samples)
    return (folder / "data.tar").read_bytes()


@pytest.fixture(scope="module")
def lab(folder):
    """A model's evaluations, beside their curve."""
    lab = Lab(folder / "lab", images=40)
    evaluations = [
        lab.evaluate("clean", wrong=2, pictures=False),
        lab.evaluate("adv", FGM, wrong=20, wrong_before=2, pictures=False),
        lab.evaluate("aware", aware(FGM, MEDIAN), MEDIAN, wrong=15, wrong_before=2, pictures=False),
    ]
    lab.curve(right=(38, 30, 20, 10, 0))
    return evaluations


@pytest.fixture(scope="module")
def report(folder):
    """A report, made with a store of runs of its own."""
    root = folder / "reported"
    lab = Lab(root / "model", images=400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("EVASION_ARTIFACT_ROOT", str(folder / "artifacts"))
        made = [lab.evaluate("clean", wrong=8), lab.evaluate("adv", FGM, wrong=300, wrong_before=8)]
        Report(root, made, curve=lab.curve())
    return json.loads((root / "out" / "report.json").read_text())


def read_all(path):
    for dataset in Dataset.all_in(path):
        with dataset:
            for sample in dataset.samples():
                _ = sample.pixels, dataset.header.title, dataset.header.awaited_defense


@fuzzed
@given(json_files(json.loads(HEADER.to_json())))
def test_dataset_json(text):
    refuses(lambda: Header.from_json(text).to_json(), DatasetError)


@fuzzed
@given(st.data())
def test_tar(folder, tar, data):
    path = folder / "hostile.tar"
    path.write_bytes(data.draw(damaged(tar)))
    refuses(lambda: read_all(path), DatasetError)


@fuzzed
@given(st.data())
def test_samples_csv(folder, tar, data):
    """The table is damaged, the rest of the tar is whole."""
    source, path = folder / "data.tar", folder / "hostile.tar"
    with tarfile.open(source) as whole, tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as changed:
        for member in whole:
            content = whole.extractfile(member).read()
            if member.name.endswith("samples.csv"):
                content = data.draw(damaged(content))
            member.size = len(content)
            changed.addfile(member, io.BytesIO(content))
    refuses(lambda: read_all(path), DatasetError)


@fuzzed
@given(st.data())
def test_model_json(folder, data):
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / FILE).write_bytes(b"weights")
    card = {"architecture": "le_net", "input_shape": [28, 28, 1], "class_names": ["a", "b"], "weights": "trained"}
    card |= {"sha256": sha256_of(model / FILE), "name": "", "version": "1"}
    (model / CARD).write_bytes(data.draw(json_files(card)))
    refuses(lambda: Card.read(model), ModelError)


@fuzzed
@given(st.data())
def test_evaluation_json(folder, lab, data):
    evaluation = folder / "evaluation"
    shutil.copytree(lab[2], evaluation, dirs_exist_ok=True)
    content = json.loads((lab[2] / "evaluation.json").read_text())
    (evaluation / "evaluation.json").write_bytes(data.draw(json_files(content)))
    refuses(lambda: shards.read_evaluation([evaluation]).title, ValueError)


@fuzzed
@given(st.data())
def test_curve_json(folder, lab, data):
    evaluations = collect([[each] for each in lab])
    curve = folder / "lab" / "curve"
    content = json.loads((curve / "curve.json").read_text())
    hostile = folder / "curve"
    shutil.copytree(curve, hostile, dirs_exist_ok=True)
    (hostile / "curve.json").write_bytes(data.draw(json_files(content)))
    refuses(lambda: read_curve([hostile], evaluations), ValueError)


@fuzzed
@given(st.data())
def test_report_json(folder, report, data):
    """The gate says "cannot tell" of a report that it cannot read, and never raises."""
    path = folder / "report.json"
    path.write_bytes(data.draw(json_files(report)))
    asked = settings(["robust_accuracy >= 0.1", "gain >= 0"], None, path, None, [])
    judged = gate(path, asked)
    assert isinstance(judged.judgement, Judgement)
    json.dumps(judged.to_json(), allow_nan=False)
    assert judged.report is not None or judged.judgement is Judgement.UNKNOWN


WORDS = (
    *("robust_accuracy", "gain", "clean_accuracy", "clean_accuracy_drop", "attack_success_rate"),
    *(">=", ">", "<=", "<", "at eps", "for", "with", "by", "none", "fgm", "jpeg_compression", "+", "defense-aware"),
    *("0.3", "30 %", "8/255", "1e999999999", "1/0", "-1", "nan", "9" * 400, "  ", "\n", "quality=75", "eps=8/255"),
)


@fuzzed
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=12).map(" ".join) | st.text(max_size=2_000))
def test_threshold(text):
    refuses(lambda: threshold.parse(text), ValueError)


TOML = b"""\
thresholds = ["robust_accuracy >= 0.2", 'gain > 0']
allowed_drop = 0.01
accept_checks = ["a"]
baseline = "x"
"""


@fuzzed
@given(damaged(TOML) | st.binary(max_size=200) | damaged(TOML * 100))
def test_gate_toml(folder, content):
    config = folder / "gate.toml"
    config.write_bytes(content)
    refuses(lambda: settings(["gain > 0"], config, None, None, []), ValueError)
