"""The defense-aware attacker, PGD, and what attacks share."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from evasion.components.common.attacks import runner
from evasion.components.common.attacks.defense_aware import Defended
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.pixels import to_float, to_pixels, towards
from evasion.components.common.defenses import known
from evasion.components.common.models import classifier
from evasion.components.fgm import task as fgm_task
from evasion.components.fgm.compiled import fast_gradient_step
from evasion.components.gaussian_augmentation import task as gaussian
from evasion.components.jpeg_compression import task as jpeg
from evasion.components.pgd import compiled
from evasion.components.pgd import task as pgd_task
from evasion.components.spatial_smoothing import task as smoothing

FGM = {"batch_size": 32, "eps": 0.2, "eps_step": 0.1, "minimal": False, "norm": "inf", "eot_samples": 4, "seed": 3}
PGD = {
    "batch_size": 32,
    "eps": 0.2,
    "eps_step": 0.05,
    "max_iter": 8,
    "num_random_init": 1,
    "norm": "inf",
    "eot_samples": 4,
    "seed": 3,
}
SPLIT = {"apply_fit": False, "apply_predict": True, "seed": 5}
KNOWN = {
    "spatial_smoothing": {"window_size": 3},
    "jpeg_compression": {"quality": 50, "channels_first": False},
    "gaussian_augmentation": {"sigma": 0.1},
}
TRANSFORMATIONS = {
    "spatial_smoothing": smoothing.transformation(window_size=3),
    "jpeg_compression": jpeg.transformation(quality=50, channels_first=False),
}


def labels_of(target, x):
    return np.eye(10, dtype=np.float32)[target.probabilities(x).argmax(axis=1)]


def gradient_step(target, x, **changed):
    parameters = {"norm": "inf", "eps": 0.2, "eps_step": 0.1, "minimal": False, "batch_size": 16} | changed
    return fgm_task.fast_gradient_method(target.art, **parameters).generate(x, y=labels_of(target, x))


@pytest.fixture
def defend(run_stage, digits_tar):
    """Run a defense over the digits; give its dataset."""

    def run(stage, dataset=digits_tar, others=(), **parameters):
        task = {
            "spatial_smoothing": smoothing.spatial_smoothing,
            "jpeg_compression": jpeg.jpeg_compression,
            "gaussian_augmentation": gaussian.gaussian_augmentation,
        }[stage]
        usual = KNOWN[stage] | SPLIT | parameters
        if stage == "gaussian_augmentation":
            usual |= {"perform_data_augmentation": False, "ratio": 1.0}
        return run_stage(task, dataset=dataset, others=list(others), out="defended", **usual)

    return run


@pytest.fixture
def attack(run_stage, le_net_artifact, digits_tar):
    """Run an attack on the digits; give the tar of all attackers, which later runs do not write over."""

    def run(out="attacked", task=fgm_task.fgm, defenses="", **parameters):
        arguments = {"dataset": digits_tar, "model": le_net_artifact, **(FGM if task is fgm_task.fgm else PGD)}
        text = defenses if isinstance(defenses, str) else json.dumps(defenses)
        tar = run_stage(task, out="adversarial", defenses=text, **arguments | parameters)
        return tar.rename(tar.with_name(out))

    return run


def samples_of(tar, name=""):
    with Dataset(tar, name) as data:
        return list(data.samples())


def test_straight_through_is_arts_own_where_art_is_right(le_net, digits):
    """ART's median smoothing is exact on 8-bit images, and its gradient is the identity's."""
    import keras
    from art.attacks.evasion import FastGradientMethod
    from art.defences.preprocessor import SpatialSmoothing
    from art.estimators.classification import TensorFlowV2Classifier

    x = to_float(digits.pixels[:40])
    estimator = TensorFlowV2Classifier(
        model=le_net,
        nb_classes=10,
        input_shape=(28, 28, 1),
        loss_object=keras.losses.CategoricalCrossentropy(),
        clip_values=(0.0, 1.0),
        preprocessing_defences=[SpatialSmoothing(window_size=3)],
    )
    expected = FastGradientMethod(estimator, norm=np.inf, eps=0.2, batch_size=16).generate(x)
    target = Defended(le_net, TRANSFORMATIONS["spatial_smoothing"], eot_samples=1, seed=0)
    assert np.isclose(gradient_step(target, x), expected, rtol=0, atol=2e-6).mean() >= 0.999


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_gradient_is_the_models_at_the_defended_image(le_net, digits, name):
    bare, transformation = classifier.Classifier(le_net), TRANSFORMATIONS[name]
    target = Defended(le_net, transformation, eot_samples=7, seed=0)
    x = to_float(digits.pixels[:16])
    defended = to_float(np.stack([transformation.apply(image, None) for image in to_pixels(x)]))
    y = labels_of(target, x)
    assert np.array_equal(target.outputs(x), bare.outputs(defended))
    assert np.array_equal(target.loss_gradient(x, y), bare.loss_gradient(defended, y))
    assert not np.array_equal(target.loss_gradient(x, y), bare.loss_gradient(x, y))


def test_expectation_over_noise_comes_nearer_with_more_draws(le_net, digits):
    x = to_float(digits.pixels[:16])
    y = labels_of(classifier.Classifier(le_net), x)

    def gradient(draws, seed):
        return Defended(le_net, gaussian.transformation(sigma=0.3), eot_samples=draws, seed=seed).loss_gradient(x, y)

    reference = gradient(256, 1)
    few, many = (np.linalg.norm(gradient(draws, 2) - reference) for draws in (1, 64))
    assert many < few / 3  # a mean of 64 draws strays an eighth as far
    assert np.array_equal(gradient(4, 3), gradient(4, 3))
    assert not np.array_equal(gradient(4, 3), gradient(4, 4))


def test_outputs_over_draws_are_the_mean_probability(le_net, digits):
    x = to_float(digits.pixels[:8])
    target = Defended(le_net, gaussian.transformation(sigma=0.2), eot_samples=3, seed=0)
    bare = classifier.Classifier(le_net)
    drawn = [
        bare.probabilities(noisy)
        for noisy in Defended(le_net, target._transformation, eot_samples=3, seed=0)._defended(x)
    ]
    assert np.allclose(target.probabilities(x), np.mean(drawn, axis=0), atol=1e-6)


@pytest.mark.parametrize("stage", KNOWN)
def test_an_aware_attack_says_what_it_knows(attack, stage):
    oblivious, aware = Dataset.all_in(attack(defenses={stage: KNOWN[stage]}))
    with oblivious, aware:
        blind, knowing = oblivious.header.provenance[-1], aware.header.provenance[-1]
        assert (blind["knowledge"], blind["defense"]) == ("oblivious", None)
        assert knowing["knowledge"] == "defense-aware"
        assert knowing["defense"] == {"stage": stage, "parameters": KNOWN[stage]}
        assert knowing["parameters"] == blind["parameters"]
        assert (oblivious.header.awaited_defense, aware.header.awaited_defense) == ("", stage)
        rows = list(zip(oblivious.samples(), aware.samples(), strict=True))
    # The same images were right before, whatever the attacker knows; the attacked ones differ.
    assert all(a.fields["clean_prediction"] == b.fields["clean_prediction"] for a, b in rows)
    assert any(not np.array_equal(a.pixels, b.pixels) for a, b in rows)


@pytest.mark.parametrize("task", [fgm_task.fgm, pgd_task.pgd], ids=["fgm", "pgd"])
def test_every_attacker_makes_the_same_alone_and_among_others(attack, task):
    """To the last byte: seeds, draws and gradients of one do not depend on the others."""
    name = task.__name__
    together = Dataset.all_in(attack(task=task, defenses=KNOWN))
    assert [dataset.header.name for dataset in together] == [name, *(f"{name}_aware_of_{stage}" for stage in KNOWN)]
    hashes = []
    for dataset in together:
        with dataset:
            hashes.append(dataset.sha256)
    assert len(set(hashes)) == 4
    with Dataset(attack("oblivious", task)) as alone:
        assert alone.header.name == name
        assert alone.sha256 == hashes[0]
    for place, (stage, settings) in enumerate(KNOWN.items(), 1):
        with Dataset(attack(stage, task, {stage: settings}), f"{name}_aware_of_{stage}") as alone:
            assert alone.sha256 == hashes[place]


@pytest.mark.parametrize("stage", TRANSFORMATIONS)
def test_an_aware_attack_follows_the_gradient_at_what_the_defense_itself_makes(
    attack, defend, le_net, digits_tar, stage
):
    """The oracle takes the defended images from the defense's own stage, and one step of FGM from the books."""
    before, met = samples_of(digits_tar), samples_of(defend(stage))
    attacked = samples_of(attack(defenses={stage: KNOWN[stage]}), f"fgm_aware_of_{stage}")
    bare = classifier.Classifier(le_net)
    x, x_met = (to_float(classifier.stack(rows)) for rows in (before, met))
    gradient = bare.gradient(x_met, labels_of(bare, x_met)).numpy()
    expected = towards(np.clip(x + np.float32(FGM["eps"]) * np.sign(gradient), 0, 1), classifier.stack(before))
    assert (classifier.stack(attacked) == expected).mean() >= 0.9999  # a gradient of about zero has no sure sign
    assert [sample.fields["clean_prediction"] for sample in attacked] == [
        str(n) for n in labels_of(bare, x).argmax(axis=1)
    ]
    assert [sample.source for sample in attacked] == [sample.source.replace("/", "/adv_") for sample in before]


def test_an_attack_and_a_defense_of_the_same_settings_belong_together(attack, defend, digits_tar):
    """What was aimed at a defense goes through that dataset alone, and the images are those of either run by itself."""
    tar = attack(defenses=KNOWN)
    for stage in KNOWN:
        defended = Dataset.all_in(defend(stage, others=[tar]))
        assert [dataset.header.name for dataset in defended] == [
            stage,
            f"{stage}_of_fgm",
            f"{stage}_of_fgm_aware_of_{stage}",
        ]
        assert [dataset.header.provenance[-1]["stage"] for dataset in defended] == [stage] * 3
        aim = defended[2].header.provenance[-2]["defense"]["parameters"]
        assert aim.items() <= defended[2].header.provenance[-1]["parameters"].items()
        for dataset in defended:
            assert dataset.header.awaited_defense == ""


def test_numbers_of_further_attackers_have_their_dataset_as_prefix(le_net_artifact, digits_tar, mlflow_store, tmp_path):
    tar, settings = tmp_path / "fgm.tar", {stage: KNOWN[stage] for stage in TRANSFORMATIONS}
    arguments = {"dataset": digits_tar, "model": le_net_artifact, "adversarial": tar, **FGM}
    numbers = fgm_task.fgm(**arguments, defenses=json.dumps(settings))
    assert len(numbers) == 3 * 5 * 6
    for place, dataset in enumerate(Dataset.all_in(tar)):
        with dataset:
            norms = [float(sample.fields["l_2_norm"]) for sample in dataset.samples()]
        before = f"{dataset.header.name}/" if place else ""
        assert numbers[f"{before}l_2_norm_mean"] == pytest.approx(np.mean(norms))
        assert numbers[f"{before}l_2_norm_max"] == pytest.approx(max(norms))
    (run,) = mlflow_store.search_runs([mlflow_store.get_experiment_by_name("evasion").experiment_id])
    assert run.data.metrics == pytest.approx(numbers)
    assert json.loads(run.data.params["defenses"]) == settings
    assert Path(mlflow_store.download_artifacts(run.info.run_id, "fgm.tar")).read_bytes() == tar.read_bytes()


def test_knowing_the_noise_makes_the_attack_stronger(le_net, digits):
    """Robust accuracy behind the defense: lower for the attacker who knows it."""
    transformation = gaussian.transformation(sigma=0.3)
    x, labels = to_float(digits.pixels[:300]), digits.labels[:300]
    bare = classifier.Classifier(le_net)

    def robust(target):
        pixels, random = to_pixels(gradient_step(target, x, eps=0.15)), np.random.default_rng(9)
        met = to_float(np.stack([transformation.apply(image, random) for image in pixels]))
        return (bare.probabilities(met).argmax(axis=1) == labels).mean()

    assert robust(Defended(le_net, transformation, eot_samples=16, seed=1)) < robust(bare) - 0.02


SAME = [
    ("jpeg_compression", {"quality": 50, "channels_first": False}),
    ("jpeg_compression", {"quality": 50.0, "channels_first": "false"}),
    ("jpeg_compression", {"quality": "50", "channels_first": "False"}),
    ("jpeg_compression", {"quality": "50.0", "channels_first": False}),
    ("gaussian_augmentation", {"sigma": 1, "perform_data_augmentation": False, "ratio": 1}),
    ("gaussian_augmentation", {"sigma": 1.0, "perform_data_augmentation": "false", "ratio": "1"}),
    ("gaussian_augmentation", {"sigma": "1", "perform_data_augmentation": "False", "ratio": 1.0}),
]


def test_settings_that_mean_the_same_are_the_same():
    """Kubeflow fills parameters in as texts, and knows one kind of number."""
    described = {"jpeg_compression": set(), "gaussian_augmentation": set()}
    for stage, settings in SAME:
        (defense,) = known.defenses_of(json.dumps({stage: settings}))
        described[stage].add(repr(defense.describe()))
    assert described == {
        stage: {repr({"stage": stage, "parameters": parameters})}
        for stage, parameters in (
            ("jpeg_compression", {"quality": 50, "channels_first": False}),
            ("gaussian_augmentation", {"sigma": 1.0, "perform_data_augmentation": False, "ratio": 1.0}),
        )
    }


def test_an_attack_is_the_same_however_its_settings_are_written(attack):
    tars = [attack(f"attacked {place}", defenses={stage: settings}) for place, (stage, settings) in enumerate(SAME[:4])]
    assert len({tar.read_bytes() for tar in tars}) == 1


@pytest.mark.parametrize("text", ["", "  ", "{}", "{ }"])
def test_no_defense_is_known_where_none_is_named(text):
    assert known.defenses_of(text) == []


RULE = re.escape(
    'defenses must be a JSON object of settings by defense, such as {"spatial_smoothing": {"window_size": 3}}'
)
WINDOW = r"window_size must be an integer in \[1, 255\]. Received: window_size="
REFUSED = [
    ("{", rf"{RULE}: .*\. Received: defenses='{{'$"),
    ("jpeg_compression", rf"{RULE}: .*\. Received: defenses='jpeg_compression'$"),
    ("[]", rf"{RULE}\. Received: defenses='\[\]'$"),
    ('"jpeg_compression"', rf"{RULE}\. Received: "),
    ({"jpeg_compression": 50}, rf"{RULE}\. Received: "),
    ({"jpeg_compression": None}, rf"{RULE}\. Received: "),
    ({"jpeg_compression": {"quality": 50}}, r"^defenses: jpeg_compression needs channels_first\. Received: quality$"),
    ({"spatial_smoothing": {}}, r"^defenses: spatial_smoothing needs window_size\. Received: nothing$"),
    (
        {"jpeg_compression": {"quality": 50, "channels_first": False, "sigma": 1, "x": 2}},
        r"^defenses: jpeg_compression has no sigma, x\. "
        r"Its parameters: quality, channels_first$",
    ),
    ({"spatial_smoothing": {"window_size": 3, "dataset": "/x"}}, "spatial_smoothing has no dataset"),
    ({"spatial_smoothing": {"window_size": 3, "return": "/x"}}, "spatial_smoothing has no return"),
    ({"spatial_smoothing": {"window_size": "three"}}, f"{WINDOW}'three'"),
    ({"spatial_smoothing": {"window_size": 2.5}}, f"{WINDOW}2.5"),
    (
        {"spatial_smoothing": {"window_size": "NaN"}},
        f"{WINDOW}nan",
    ),
    (
        {"spatial_smoothing": {"window_size": True}},
        f"{WINDOW}True",
    ),
    ({"spatial_smoothing": {"window_size": [3]}}, rf"{WINDOW}\[3\]"),
    ({"jpeg_compression": {"quality": "101", "channels_first": False}}, r"quality must be an integer in \[1, 100\]"),
    ({"gaussian_augmentation": {"sigma": "-1"}}, r"sigma must be in \(0, 10\]. Received: sigma=-1.0"),
    ({"gaussian_augmentation": {"sigma": 0, "ratio": 1.0}}, r"sigma must be in \(0, 10\]. Received: sigma=0.0"),
    (
        {"gaussian_augmentation": {"sigma": 0.1, "ratio": 1.0, "perform_data_augmentation": "true"}},
        "turns each image into exactly one. Received: perform_data_augmentation=True",
    ),
    *(
        (
            {stage: {}},
            rf"must name steps that have a `transformation`. Received: defenses={re.escape(repr(stage))}$",
        )
        for stage in ("os", "../fgm", "no_such_stage", "fgm", "common", "", "jpeg_compression.task", "__init__")
    ),
]


@pytest.mark.parametrize(("defenses", "message"), REFUSED, ids=[str(defenses) for defenses, _ in REFUSED])
def test_defenses_that_cannot_be_aimed_at_are_refused_before_anything_is_read(
    tmp_path, mlflow_store, defenses, message
):
    nowhere = tmp_path / "nowhere"
    text = defenses if isinstance(defenses, str) else json.dumps(defenses)
    with pytest.raises(ValueError, match=message):
        fgm_task.fgm(dataset=nowhere, model=nowhere, adversarial=nowhere, defenses=text, **FGM)
    assert mlflow_store.get_experiment_by_name("evasion") is None
    assert not nowhere.exists()


@pytest.mark.parametrize("name", ["fgm", "fgm_aware_of_spatial_smoothing"])
def test_minimal_records_the_smallest_size_that_succeeded(attack, le_net, digits_tar, name):
    """Of the images as they are saved."""
    defenses = {"spatial_smoothing": KNOWN["spatial_smoothing"]}
    bare = classifier.Classifier(le_net)
    smoothed = Defended(le_net, TRANSFORMATIONS["spatial_smoothing"], eot_samples=1, seed=0)
    rows = samples_of(attack(defenses=defenses, minimal=True, eps_step=0.05), name)
    sizes = [row.fields["minimal_eps"] for row in rows]
    assert {size for size in sizes if size} <= {"0.05", "0.1", "0.15", "0.2"}
    assert len(set(sizes)) > 2
    for row in rows:
        largest = float(row.fields["minimal_eps"] or 0.2)
        assert largest - 1 / 255 - 1e-6 <= float(row.fields["l_infinity_norm"]) <= largest + 1e-6
    target = smoothed if "aware" in name else bare
    before = target.outputs(to_float(classifier.stack(samples_of(digits_tar)))).argmax(axis=1)
    after = target.outputs(to_float(classifier.stack(rows))).argmax(axis=1)
    assert [bool(size) for size in sizes] == (before != after).tolist()


@pytest.mark.parametrize("num_random_init", [0, 2])
def test_pgd_keeps_the_bound_repeats_itself_and_beats_fgm(attack, le_net_artifact, num_random_init):
    eps = 26 / 255
    mine = {"eps": eps, "eps_step": 6 / 255, "num_random_init": num_random_init}
    first, second = (attack(out, pgd_task.pgd, **mine) for out in ("first", "second"))
    single = attack("single", eps=eps)
    assert first.read_bytes() == second.read_bytes()
    target = classifier.load(le_net_artifact)

    def right(path):
        with Dataset(path) as data:
            rows = list(data.samples())
        assert max(float(row.fields["l_infinity_norm"]) for row in rows) <= eps + 1e-6
        predicted = target.probabilities(classifier.stack(rows)).argmax(axis=1)
        return int((predicted == [row.label for row in rows]).sum())

    assert right(first) <= right(single)


BAD = [
    ({"eps": 1.5}, r"eps must be in \(0, 1\], a share of the pixel range: 1.5/255 is 0.00588. Received: eps=1.5"),
    ({"eps_step": 0.3}, r"eps_step must not exceed eps. Received: eps_step=0.3, eps=0.2"),
    ({"max_iter": 0}, r"max_iter must be a positive integer. Received: max_iter=0"),
    ({"num_random_init": -1}, r"num_random_init must be an integer of at least 0. Received: num_random_init=-1"),
    ({"eot_samples": 0}, r"eot_samples must be a positive integer. Received: eot_samples=0"),
    ({"norm": "3"}, r"norm must be one of inf, 1, 2. Received: norm='3'"),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[str(changed) for changed, _ in BAD])
def test_bad_parameters_are_refused_before_anything_is_read(changed, message):
    nowhere = Path("/nowhere")
    with pytest.raises(ValueError, match=message):
        pgd_task.pgd(dataset=nowhere, model=nowhere, adversarial=nowhere, defenses="", **PGD | changed)


def test_an_image_without_gradient_is_counted_though_pgd_starts_elsewhere(digits_tar):
    """A model that ignores its images has no gradient; a random start moves them all the same."""

    class Flat(classifier.Classifier):
        def __init__(self):
            pass

        def outputs(self, x):
            return np.tile(np.arange(10, dtype=np.float32), (len(x), 1))

        attacked_outputs = outputs

        def loss_gradient(self, x, y):
            return np.zeros_like(x)

        from_logits = True

    flat = Flat()
    attack = runner.from_floats(flat, lambda x, _: np.clip(x + 0.1, 0, 1))
    with Dataset(digits_tar) as data:
        batches = list(runner._changes(data, Flat(), flat, attack, 32, data.header.class_names))
    assert {change.fields["zero_gradient"] for batch in batches for change in batch} == {1}


def test_steps_stay_at_the_start_where_the_gradient_is_nan(digits):
    import tensorflow as tf

    x = tf.constant(to_float(digits.pixels[:4]))
    start = tf.clip_by_value(x + 0.05, 0, 1)
    result = compiled.steps(lambda images: images * math.nan, x, start, eps=0.1, eps_step=0.03, max_iter=3)
    np.testing.assert_allclose(result.numpy(), start.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["fgm", "minimal", "pgd", "from_floats"])
@pytest.mark.parametrize("defended", [False, True])
def test_an_image_that_clipping_leaves_as_it_is_has_a_gradient_all_the_same(name, defended):
    """A black image before a model that only darker pixels would fool."""
    import keras

    inputs = keras.Input((4, 4, 1))
    dense = keras.layers.Dense(2, activation="softmax")
    model = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
    dense.set_weights([np.tile(np.float32([1, -1]), (16, 1)), np.float32([1, 0])])
    target = classifier.Classifier(model)
    if defended:
        target = Defended(model, TRANSFORMATIONS["spatial_smoothing"], eot_samples=1, seed=0)
    pixels = np.stack([np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 100, np.uint8)])
    method = fgm_task.fast_gradient_method(
        target.art, norm="inf", eps=0.1, eps_step=0.05, minimal=name == "minimal", batch_size=2
    )
    attack = {
        "fgm": lambda: fast_gradient_step(target, norm="inf", eps=0.1),
        "pgd": lambda: compiled.projected_gradient_descent(
            target, norm="inf", eps=0.1, eps_step=0.05, max_iter=3, num_random_init=0, seed=0
        ),
    }.get(name, lambda: runner.from_floats(target, lambda x, y: method.generate(x, y=y)))()
    generated = attack.generate(pixels)
    np.testing.assert_array_equal(generated.pixels[0], pixels[0])
    assert (generated.pixels[1] < pixels[1]).all()
    assert not generated.without_gradient.any()
