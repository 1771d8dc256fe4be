"""The seven entry points of the original demo as pipelines, with its parameter names, and `pgd` beside its `fgm`.

They are chained through MLflow: a stage logs its dataset as `<stage>.tar`, whose folder is `<stage>`, and the next
pipeline takes it by `run_id` (of the pipeline or of the stage), `dataset_tar_name` and `dataset_name`; models go by
their registered names. Parameters that the original does not have: `weights` and `weights_sha256` (a mirrored file
in place of a download), `eps`, `eps_step`, `max_iter` of `train` (its PGD), and `dataset_split` of the defenses
(whether `data_dir` is training or testing data, of which `apply_fit` and `apply_predict` speak).

    evasion run train --data-dir-train data/mnist/training --data-dir-test data/mnist/testing
    evasion run fgm --data-dir data/mnist/testing --model evasion_le_net --model-architecture le_net
"""

from typing import Any

from kfp import dsl

from evasion.components.fgm.component import fgm as fgm_step
from evasion.components.gaussian_augmentation.component import gaussian_augmentation as gaussian_augmentation_step
from evasion.components.infer.component import infer as infer_step
from evasion.components.init_model.component import init_model as init_model_step
from evasion.components.jpeg_compression.component import jpeg_compression as jpeg_compression_step
from evasion.components.load_dataset.component import load_dataset
from evasion.components.load_model.component import load_model
from evasion.components.pgd.component import pgd as pgd_step
from evasion.components.spatial_smoothing.component import spatial_smoothing as spatial_smoothing_step
from evasion.components.train.component import train as train_step
from evasion.pipelines.defaults import default


@dsl.pipeline(name="init-model")
def init_model(
    data_dir: str,
    model_tag: str = default(init_model_step, "model_tag"),
    model_architecture: str = default(init_model_step, "model_architecture"),
    batch_size: int = default(infer_step, "batch_size"),
    weights: str = default(init_model_step, "weights"),
    weights_sha256: str = default(init_model_step, "weights_sha256"),
    seed: int = default(init_model_step, "seed"),
) -> None:
    """Load a pretrained ImageNet model into MLflow and evaluate it on a test set.

    Args:
        data_dir: Test set, a folder of one folder a class named by WordNet id (n01440764 …), local or gs://.
        model_tag: Part of the registered name {experiment}_{model_tag}_{model_architecture}, or blank.
        model_architecture: resnet50 or vgg16.
        batch_size: Images predicted at a time.
        weights: imagenet (downloaded by Keras), none (random, for trials), or a weights file, local or gs://.
        weights_sha256: What the hash of that file must be, or blank.
        seed: From 0 to 4294967295; -1 draws one and records it.
    """
    data = load_dataset(data_dir=data_dir, model_architecture=model_architecture)
    model = init_model_step(
        model_tag=model_tag,
        model_architecture=model_architecture,
        weights=weights,
        weights_sha256=weights_sha256,
        seed=seed,
    )
    infer_step(dataset=data.outputs["dataset"], model=model.outputs["model"], batch_size=batch_size, seed=seed)


@dsl.pipeline(name="train")
def train(
    data_dir_test: str,
    data_dir_train: str = default(load_dataset, "data_dir"),
    model_tag: str = default(train_step, "model_tag"),
    model_architecture: str = default(train_step, "model_architecture"),
    epochs: float = default(train_step, "epochs"),
    batch_size: int = default(train_step, "batch_size"),
    register_model: bool = default(train_step, "register_model"),
    learning_rate: float = default(train_step, "learning_rate"),
    optimizer: str = default(train_step, "optimizer"),
    validation_split: float = default(train_step, "validation_split"),
    load_dataset_from_mlruns: bool = default(load_dataset, "load_dataset_from_mlruns"),
    training_dataset_run_id: str = default(load_dataset, "dataset_run_id"),
    dataset_tar_name: str = default(load_dataset, "dataset_tar_name"),
    dataset_name: str = default(load_dataset, "dataset_name"),
    apply_defense: bool = default(train_step, "apply_defense"),
    eps: float = default(train_step, "eps"),
    eps_step: float = default(train_step, "eps_step"),
    max_iter: int = default(train_step, "max_iter"),
    weights: str = default(train_step, "weights"),
    weights_sha256: str = default(train_step, "weights_sha256"),
    seed: int = default(train_step, "seed"),
) -> None:
    """Train a model and evaluate it on a test set.

    Args:
        data_dir_test: Test set, a folder of one folder a class, local or gs://.
        data_dir_train: Training set, likewise; needed unless load_dataset_from_mlruns is true.
        model_tag: Part of the registered name {experiment}_{model_tag}_{model_architecture}, or blank.
        model_architecture: shallow_net, le_net, alex_net, resnet50 or vgg16.
        epochs: Passes over the data, a positive float: 2.5 are two and half of a third.
        batch_size: Images in a training step and in testing.
        register_model: Whether to register the model in MLflow.
        learning_rate: Initial learning rate, positive.
        optimizer: rmsprop, adam, adagrad or sgd.
        validation_split: Share of the training images held out for validation, in [0, 1).
        load_dataset_from_mlruns: Train on a dataset that an MLflow run logged instead of data_dir_train.
        training_dataset_run_id: That run, of a stage or a pipeline.
        dataset_tar_name: Name of its artifact, such as gaussian_augmentation.tar.
        dataset_name: Name of the folder in that tar, such as gaussian_augmentation.
        apply_defense: Whether to train against PGD (Madry et al. 2018).
        eps: With apply_defense, the largest change of a pixel, in (0, 1].
        eps_step: With apply_defense, the change of one PGD step, in (0, 1].
        max_iter: With apply_defense, the number of PGD steps.
        weights: Of the base of resnet50 and vgg16: imagenet, none, or a weights file without top, local or gs://.
        weights_sha256: What the hash of that file must be, or blank.
        seed: From 0 to 4294967295; -1 draws one and records it.
    """
    training = load_dataset(
        data_dir=data_dir_train,
        model_architecture=model_architecture,
        split="training",
        load_dataset_from_mlruns=load_dataset_from_mlruns,
        dataset_run_id=training_dataset_run_id,
        dataset_tar_name=dataset_tar_name,
        dataset_name=dataset_name,
    ).set_display_name("load_dataset training")
    testing = load_dataset(data_dir=data_dir_test, model_architecture=model_architecture)
    testing.set_display_name("load_dataset testing")
    model = train_step(
        dataset=training.outputs["dataset"],
        model_tag=model_tag,
        model_architecture=model_architecture,
        epochs=epochs,
        batch_size=batch_size,
        register_model=register_model,
        learning_rate=learning_rate,
        optimizer=optimizer,
        validation_split=validation_split,
        apply_defense=apply_defense,
        eps=eps,
        eps_step=eps_step,
        max_iter=max_iter,
        weights=weights,
        weights_sha256=weights_sha256,
        seed=seed,
    )
    infer_step(dataset=testing.outputs["dataset"], model=model.outputs["model"], batch_size=batch_size, seed=seed)


@dsl.pipeline(name="infer")
def infer(
    run_id: str,
    model: str,
    model_architecture: str,
    batch_size: int = default(infer_step, "batch_size"),
    seed: int = default(infer_step, "seed"),
    dataset_tar_name: str = "fgm.tar",
    dataset_name: str = "fgm",
) -> None:
    """Evaluate a registered model on a dataset that another MLflow run made.

    Args:
        run_id: The MLflow run of the stage that made the dataset, or of its pipeline.
        model: name (its newest version), name/version, name@alias, or a models:/ URI.
        model_architecture: shallow_net, le_net, alex_net, resnet50 or vgg16: what the model must be.
        batch_size: Images predicted at a time.
        seed: Recorded; nothing here is random.
        dataset_tar_name: Name of the run's artifact: fgm.tar, spatial_smoothing.tar, …
        dataset_name: Name of the folder in that tar: fgm, spatial_smoothing, …
    """
    data = load_dataset(
        model_architecture=model_architecture,
        load_dataset_from_mlruns=True,
        dataset_run_id=run_id,
        dataset_tar_name=dataset_tar_name,
        dataset_name=dataset_name,
    )
    loaded = load_model(name=model, model_architecture=model_architecture)
    infer_step(dataset=data.outputs["dataset"], model=loaded.outputs["model"], batch_size=batch_size, seed=seed)


@dsl.pipeline(name="fgm")
def fgm(
    data_dir: str,
    model: str,
    model_architecture: str,
    batch_size: int = default(fgm_step, "batch_size"),
    eps: float = default(fgm_step, "eps"),
    eps_step: float = default(fgm_step, "eps_step"),
    minimal: bool = default(fgm_step, "minimal"),
    norm: str = default(fgm_step, "norm"),
    seed: int = default(fgm_step, "seed"),
) -> None:
    """Attack a dataset with the Fast Gradient Method and evaluate the model on the result.

    Args:
        data_dir: The images, a folder of one folder a class, local or gs://.
        model: name (its newest version), name/version, name@alias, or a models:/ URI.
        model_architecture: shallow_net, le_net, alex_net, resnet50 or vgg16: what the model must be.
        batch_size: Images attacked at a time.
        eps: Size of the attack in its norm, pixels counting from 0 to 1: in (0, 1] for inf, positive for 1 and 2.
        eps_step: With minimal, by how much the size grows from try to try, positive, at most eps.
        minimal: Whether to look for the smallest multiple of eps_step, up to eps, that changes the prediction.
        norm: inf, 1 or 2.
        seed: Recorded; nothing here is random.
    """
    data = load_dataset(data_dir=data_dir, model_architecture=model_architecture)
    loaded = load_model(name=model, model_architecture=model_architecture)
    attacked = fgm_step(
        dataset=data.outputs["dataset"],
        model=loaded.outputs["model"],
        batch_size=batch_size,
        eps=eps,
        eps_step=eps_step,
        minimal=minimal,
        norm=norm,
        seed=seed,
    )
    infer_step(dataset=attacked.outputs["adversarial"], model=loaded.outputs["model"], batch_size=batch_size, seed=seed)


@dsl.pipeline(name="pgd")
def pgd(
    data_dir: str,
    model: str,
    model_architecture: str,
    batch_size: int = default(pgd_step, "batch_size"),
    eps: float = default(pgd_step, "eps"),
    eps_step: float = default(pgd_step, "eps_step"),
    max_iter: int = default(pgd_step, "max_iter"),
    num_random_init: int = default(pgd_step, "num_random_init"),
    norm: str = default(pgd_step, "norm"),
    seed: int = default(pgd_step, "seed"),
) -> None:
    """Attack a dataset with Projected Gradient Descent and evaluate the model on the result.

    Args:
        data_dir: The images, a folder of one folder a class, local or gs://.
        model: name (its newest version), name/version, name@alias, or a models:/ URI.
        model_architecture: shallow_net, le_net, alex_net, resnet50 or vgg16: what the model must be.
        batch_size: Images attacked at a time.
        eps: Size of the attack in its norm, pixels counting from 0 to 1: in (0, 1] for inf, positive for 1 and 2.
        eps_step: Size of one step, positive, at most eps.
        max_iter: Number of steps.
        num_random_init: Random starting points, of which each image keeps the best; 0 starts at the image itself.
        norm: inf, 1 or 2.
        seed: Of the starting points, from 0 to 4294967295; -1 draws one and records it.
    """
    data = load_dataset(data_dir=data_dir, model_architecture=model_architecture)
    loaded = load_model(name=model, model_architecture=model_architecture)
    attacked = pgd_step(
        dataset=data.outputs["dataset"],
        model=loaded.outputs["model"],
        batch_size=batch_size,
        eps=eps,
        eps_step=eps_step,
        max_iter=max_iter,
        num_random_init=num_random_init,
        norm=norm,
        seed=seed,
    )
    infer_step(dataset=attacked.outputs["adversarial"], model=loaded.outputs["model"], batch_size=batch_size, seed=seed)


def _source(
    data_dir: str,
    model_architecture: str,
    dataset_split: str,
    load_dataset_from_mlruns: bool,
    dataset_run_id: str,
    dataset_tar_name: str,
    dataset_name: str,
) -> Any:
    """Return the dataset that a defense is to work on."""
    return load_dataset(
        data_dir=data_dir,
        model_architecture=model_architecture,
        split=dataset_split,
        load_dataset_from_mlruns=load_dataset_from_mlruns,
        dataset_run_id=dataset_run_id,
        dataset_tar_name=dataset_tar_name,
        dataset_name=dataset_name,
    ).outputs["dataset"]


def _evaluate(defended: Any, model: str, model_architecture: str, batch_size: int, seed: int) -> None:
    """Evaluate a registered model on defended images, as the original's defenses do."""
    loaded = load_model(name=model, model_architecture=model_architecture)
    infer_step(dataset=defended.outputs["defended"], model=loaded.outputs["model"], batch_size=batch_size, seed=seed)


@dsl.pipeline(name="spatial-smoothing")
def spatial_smoothing(
    model: str,
    model_architecture: str,
    data_dir: str = default(load_dataset, "data_dir"),
    batch_size: int = default(infer_step, "batch_size"),
    spatial_smoothing_window_size: int = default(spatial_smoothing_step, "window_size"),
    spatial_smoothing_apply_fit: bool = default(spatial_smoothing_step, "apply_fit"),
    spatial_smoothing_apply_predict: bool = default(spatial_smoothing_step, "apply_predict"),
    load_dataset_from_mlruns: bool = default(load_dataset, "load_dataset_from_mlruns"),
    dataset_run_id: str = default(load_dataset, "dataset_run_id"),
    dataset_tar_name: str = default(load_dataset, "dataset_tar_name"),
    dataset_name: str = default(load_dataset, "dataset_name"),
    dataset_split: str = default(load_dataset, "split"),
    seed: int = default(spatial_smoothing_step, "seed"),
) -> None:
    """Smooth a dataset with a median filter and evaluate a model on it.

    Args:
        model: name (its newest version), name/version, name@alias, or a models:/ URI.
        model_architecture: shallow_net, le_net, alex_net, resnet50 or vgg16: what the model must be.
        data_dir: The images, a folder of one folder a class, local or gs://; not with load_dataset_from_mlruns.
        batch_size: Images predicted at a time.
        spatial_smoothing_window_size: Side of the square whose median each pixel becomes, a positive integer.
        spatial_smoothing_apply_fit: Whether to smooth training data.
        spatial_smoothing_apply_predict: Whether to smooth testing data.
        load_dataset_from_mlruns: Whether to take the images from an MLflow run instead, such as attacked ones.
        dataset_run_id: That run, of a stage or a pipeline.
        dataset_tar_name: Name of its artifact, such as fgm.tar.
        dataset_name: Name of the folder in that tar, such as fgm.
        dataset_split: training or testing: what data_dir holds, of which apply_fit and apply_predict speak.
        seed: From 0 to 4294967295; -1 draws one and records it.
    """
    source = _source(
        data_dir,
        model_architecture,
        dataset_split,
        load_dataset_from_mlruns,
        dataset_run_id,
        dataset_tar_name,
        dataset_name,
    )
    defended = spatial_smoothing_step(
        dataset=source,
        window_size=spatial_smoothing_window_size,
        apply_fit=spatial_smoothing_apply_fit,
        apply_predict=spatial_smoothing_apply_predict,
        seed=seed,
    )
    _evaluate(defended, model, model_architecture, batch_size, seed)


@dsl.pipeline(name="jpeg-compression")
def jpeg_compression(
    model: str,
    model_architecture: str,
    data_dir: str = default(load_dataset, "data_dir"),
    batch_size: int = default(infer_step, "batch_size"),
    jpeg_compression_channels_first: bool = default(jpeg_compression_step, "channels_first"),
    jpeg_compression_quality: int = default(jpeg_compression_step, "quality"),
    jpeg_compression_apply_fit: bool = default(jpeg_compression_step, "apply_fit"),
    jpeg_compression_apply_predict: bool = default(jpeg_compression_step, "apply_predict"),
    load_dataset_from_mlruns: bool = default(load_dataset, "load_dataset_from_mlruns"),
    dataset_run_id: str = default(load_dataset, "dataset_run_id"),
    dataset_tar_name: str = default(load_dataset, "dataset_tar_name"),
    dataset_name: str = default(load_dataset, "dataset_name"),
    dataset_split: str = default(load_dataset, "split"),
    seed: int = default(jpeg_compression_step, "seed"),
) -> None:
    """Compress the images of a dataset as JPEG and evaluate a model on them.

    Args:
        model: name (its newest version), name/version, name@alias, or a models:/ URI.
        model_architecture: shallow_net, le_net, alex_net, resnet50 or vgg16: what the model must be.
        data_dir: The images, a folder of one folder a class, local or gs://; not with load_dataset_from_mlruns.
        batch_size: Images predicted at a time.
        jpeg_compression_channels_first: Hand images to the compression with channels first; same pixels.
        jpeg_compression_quality: From 1 (worst) to 100 (best); 95 or lower is advised.
        jpeg_compression_apply_fit: Whether to compress training data.
        jpeg_compression_apply_predict: Whether to compress testing data.
        load_dataset_from_mlruns: Whether to take the images from an MLflow run instead, such as attacked ones.
        dataset_run_id: That run, of a stage or a pipeline.
        dataset_tar_name: Name of its artifact, such as fgm.tar.
        dataset_name: Name of the folder in that tar, such as fgm.
        dataset_split: training or testing: what data_dir holds, of which apply_fit and apply_predict speak.
        seed: From 0 to 4294967295; -1 draws one and records it.
    """
    source = _source(
        data_dir,
        model_architecture,
        dataset_split,
        load_dataset_from_mlruns,
        dataset_run_id,
        dataset_tar_name,
        dataset_name,
    )
    defended = jpeg_compression_step(
        dataset=source,
        channels_first=jpeg_compression_channels_first,
        quality=jpeg_compression_quality,
        apply_fit=jpeg_compression_apply_fit,
        apply_predict=jpeg_compression_apply_predict,
        seed=seed,
    )
    _evaluate(defended, model, model_architecture, batch_size, seed)


@dsl.pipeline(name="gaussian-augmentation")
def gaussian_augmentation(
    model: str,
    model_architecture: str,
    data_dir: str = default(load_dataset, "data_dir"),
    batch_size: int = default(infer_step, "batch_size"),
    gaussian_augmentation_perform_data_augmentation: bool = default(
        gaussian_augmentation_step, "perform_data_augmentation"
    ),
    gaussian_augmentation_ratio: float = default(gaussian_augmentation_step, "ratio"),
    gaussian_augmentation_sigma: float = default(gaussian_augmentation_step, "sigma"),
    gaussian_augmentation_apply_fit: bool = default(gaussian_augmentation_step, "apply_fit"),
    gaussian_augmentation_apply_predict: bool = default(gaussian_augmentation_step, "apply_predict"),
    load_dataset_from_mlruns: bool = default(load_dataset, "load_dataset_from_mlruns"),
    dataset_run_id: str = default(load_dataset, "dataset_run_id"),
    dataset_tar_name: str = default(load_dataset, "dataset_tar_name"),
    dataset_name: str = default(load_dataset, "dataset_name"),
    dataset_split: str = default(load_dataset, "split"),
    seed: int = default(gaussian_augmentation_step, "seed"),
) -> None:
    """Add Gaussian noise to a dataset and evaluate a model on it.

    Args:
        model: name (its newest version), name/version, name@alias, or a models:/ URI.
        model_architecture: shallow_net, le_net, alex_net, resnet50 or vgg16: what the model must be.
        data_dir: The images, a folder of one folder a class, local or gs://; not with load_dataset_from_mlruns.
        batch_size: Images predicted at a time.
        gaussian_augmentation_perform_data_augmentation: Whether to keep every image and add noisy copies of some.
        gaussian_augmentation_ratio: With perform_data_augmentation, the share of images, in [0, 1], to copy.
        gaussian_augmentation_sigma: Standard deviation of the noise, a share of the pixel range, positive.
        gaussian_augmentation_apply_fit: Whether to add noise to training data.
        gaussian_augmentation_apply_predict: Whether to add noise to testing data.
        load_dataset_from_mlruns: Whether to take the images from an MLflow run instead, such as attacked ones.
        dataset_run_id: That run, of a stage or a pipeline.
        dataset_tar_name: Name of its artifact, such as fgm.tar.
        dataset_name: Name of the folder in that tar, such as fgm.
        dataset_split: training or testing: what data_dir holds, of which apply_fit and apply_predict speak.
        seed: From 0 to 4294967295; -1 draws one and records it.
    """
    source = _source(
        data_dir,
        model_architecture,
        dataset_split,
        load_dataset_from_mlruns,
        dataset_run_id,
        dataset_tar_name,
        dataset_name,
    )
    defended = gaussian_augmentation_step(
        dataset=source,
        perform_data_augmentation=gaussian_augmentation_perform_data_augmentation,
        ratio=gaussian_augmentation_ratio,
        sigma=gaussian_augmentation_sigma,
        apply_fit=gaussian_augmentation_apply_fit,
        apply_predict=gaussian_augmentation_apply_predict,
        seed=seed,
    )
    _evaluate(defended, model, model_architecture, batch_size, seed)
