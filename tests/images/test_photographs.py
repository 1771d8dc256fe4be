"""An evaluation of photographs in containers; in a file of its own to run in parallel with the other tests."""

from evasion.pipelines import catalog
from evasion.pipelines.local import runner


def test_photographs_and_a_mirrored_weights_file_give_the_numbers_of_processes(run, table, photographs, tmp_path):
    import keras

    keras.utils.set_random_seed(1)
    weights = tmp_path / "resnet50.weights.h5"
    keras.applications.ResNet50(weights=None).save_weights(weights)
    arguments = {
        "data_dir_test": str(photographs),
        "model_architecture": "resnet50",
        "weights": str(weights),
        "eps": 8 / 255,
        "batch_size": 4,
        "seed": 1,
        # A ResNet50 is slow.
        "auto_attack_max_iter": 1,
        "auto_attack_n_target_classes": 1,
        "auto_attack_n_queries": 1,
        "curve_pgd_max_iter": 1,
        "eps_values": "0.1",
    }
    pipeline = catalog.evaluation("pretrained", defenses=["jpeg_compression"])
    contained = run(pipeline, **arguments)
    assert table(contained) == table(runner.run(pipeline, arguments, output=tmp_path))
    assert [row["judged"]["robust_accuracy"]["n"] for row in table(contained)] == 6 * [4]
