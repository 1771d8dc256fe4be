"""The whole evaluation: how far attacks fool a model, and what each defense gives back.

    make demo

trains le_net on 4,000 MNIST digits and attacks 1,000 others. The README shows the table that it prints.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from kfp import dsl

from evasion.components.fgm.component import fgm
from evasion.components.gaussian_augmentation.component import gaussian_augmentation
from evasion.components.infer.component import infer
from evasion.components.init_model.component import init_model
from evasion.components.jpeg_compression.component import jpeg_compression
from evasion.components.load_dataset.component import load_dataset
from evasion.components.load_model.component import load_model
from evasion.components.pgd.component import pgd
from evasion.components.report.component import report
from evasion.components.security_curve.component import security_curve
from evasion.components.spatial_smoothing.component import spatial_smoothing
from evasion.components.train.component import train
from evasion.pipelines.defaults import default

ATTACKS = {"fgm": fgm, "pgd": pgd}
DEFENSES = {
    "spatial_smoothing": spatial_smoothing,
    "jpeg_compression": jpeg_compression,
    "gaussian_augmentation": gaussian_augmentation,
}


def evaluation(attacks: Sequence[str] = ("fgm",), defenses: Sequence[str] = tuple(DEFENSES)) -> Any:
    """Return the pipeline that puts these defenses to these attacks.

    Which steps there are is settled when a pipeline is compiled: in a condition that is decided later, Kubeflow
    cannot hand a step's artifact to the report.

    Args:
        attacks: Names from `ATTACKS`, at least one.
        defenses: Names from `DEFENSES`.

    Raises:
        ValueError: A name is unknown or given twice, or there is no attack.
    """
    _require("attacks", attacks, ATTACKS)
    _require("defenses", defenses, DEFENSES)
    if not attacks:
        raise ValueError(f"attacks must name one of {', '.join(ATTACKS)} at least. Received: none")

    @dsl.pipeline(name=f"{'-'.join(attacks)}-evaluation")
    def fgm_evaluation(
        data_dir_test: str,
        data_dir_train: str = "",
        model: str = "",
        model_architecture: str = default(train, "model_architecture"),
        model_tag: str = default(train, "model_tag"),
        batch_size: int = default(infer, "batch_size"),
        eps: float = default(fgm, "eps"),
        eps_step: float = default(fgm, "eps_step"),
        minimal: bool = default(fgm, "minimal"),
        norm: str = default(fgm, "norm"),
        pgd_attack_eps_step: float = default(pgd, "eps_step"),
        pgd_attack_max_iter: int = default(pgd, "max_iter"),
        pgd_attack_num_random_init: int = default(pgd, "num_random_init"),
        eot_samples: int = default(fgm, "eot_samples"),
        eps_values: str = default(security_curve, "eps_values"),
        spatial_smoothing_window_size: int = default(spatial_smoothing, "window_size"),
        jpeg_compression_quality: int = default(jpeg_compression, "quality"),
        gaussian_augmentation_sigma: float = default(gaussian_augmentation, "sigma"),
        epochs: float = default(train, "epochs"),
        register_model: bool = default(train, "register_model"),
        learning_rate: float = default(train, "learning_rate"),
        optimizer: str = default(train, "optimizer"),
        validation_split: float = default(train, "validation_split"),
        apply_defense: bool = default(train, "apply_defense"),
        pgd_eps: float = default(train, "eps"),
        pgd_eps_step: float = default(train, "eps_step"),
        pgd_max_iter: int = default(train, "max_iter"),
        weights: str = default(train, "weights"),
        weights_sha256: str = default(train, "weights_sha256"),
        skip_unreadable: bool = default(load_dataset, "skip_unreadable"),
        shards: int = default(load_dataset, "shards"),
        clean_accuracy_floor: float = default(report, "clean_accuracy_floor"),
        seed: int = default(train, "seed"),
    ) -> None:
        """Measure how far attacks fool a model and what defenses give back, and draw the report.

        The model is the registered one if `model` is given; else it is trained if `data_dir_train` is given; else it is
        the pretrained ImageNet model of `model_architecture`. Each defense is put to two attackers: an oblivious one,
        who does not know it, and a defense-aware one, who aims at the model behind it.

            evasion run fgm_evaluation --data-dir-train data/train --data-dir-test data/test --model-architecture le_net
            evasion run fgm_evaluation --data-dir-test data/test --model evasion_le_net --attacks fgm,pgd --eps 0.1

        Args:
            data_dir_test: The images to attack, a folder of one folder a class, local or gs://.
            data_dir_train: Training set, likewise; blank to train nothing.
            model: A registered model: name, name/version, name@alias or a models:/ URI; blank for none.
            model_architecture: shallow_net, le_net, alex_net, resnet50 or vgg16.
            model_tag: Part of the registered name {experiment}_{model_tag}_{model_architecture}, or blank.
            batch_size: Images at a time, in training, attack and inference.
            eps: Size of the attack in its norm, pixels counting from 0 to 1: in (0, 1] for inf, positive for 1 and 2.
            eps_step: With minimal, by how much the size grows from try to try, positive, at most eps.
            minimal: Whether fgm looks for the smallest multiple of eps_step, up to eps, that changes the prediction.
            norm: inf, 1 or 2.
            pgd_attack_eps_step: Of the attack pgd, the size of one step, positive, at most eps.
            pgd_attack_max_iter: Of the attack pgd, the number of steps.
            pgd_attack_num_random_init: Of the attack pgd, random starting points; 0 starts at the image itself.
            eot_samples: For a defense that is random, the draws of it that the defense-aware attacker averages over.
            eps_values: Points of the security curve, numbers separated by commas; blank for sixteen up to 1.
            spatial_smoothing_window_size: Side of the median window, a positive integer.
            jpeg_compression_quality: From 1 (worst) to 100 (best).
            gaussian_augmentation_sigma: Standard deviation of the noise, a share of the pixel range, positive.
            epochs: Of training, a positive float.
            register_model: Whether to register the trained model in MLflow.
            learning_rate: Of training, positive.
            optimizer: rmsprop, adam, adagrad or sgd.
            validation_split: Share of the training images held out for validation, in [0, 1).
            apply_defense: Whether to train against PGD (Madry et al. 2018).
            pgd_eps: With apply_defense, the largest change of a pixel, in (0, 1].
            pgd_eps_step: With apply_defense, the change of one PGD step, in (0, 1].
            pgd_max_iter: With apply_defense, the number of PGD steps.
            weights: For resnet50 and vgg16: imagenet, none, or a weights file, local or gs://; without top to train.
            weights_sha256: What the hash of that file must be, or blank.
            skip_unreadable: Leave out images that cannot be read, and record them, instead of failing.
            shards: Into how many parts the images to attack are dealt out, at most as many as there are batches. Each
                is attacked, defended and evaluated by steps of its own, in a cluster at once, to the same numbers.
            clean_accuracy_floor: The report warns if the clean accuracy is below, in [0, 1].
            seed: From 0 to 4294967295; -1 draws one in each stage and records it.
        """
        packed = load_dataset(
            data_dir=data_dir_test,
            model_architecture=model_architecture,
            skip_unreadable=skip_unreadable,
            shards=shards,
            batch_size=batch_size,
        )

        with dsl.If(model != "", "registered"):
            registered = load_model(name=model, model_architecture=model_architecture)
        with dsl.Elif(data_dir_train != "", "trained"):
            training = load_dataset(
                data_dir=data_dir_train,
                model_architecture=model_architecture,
                split="training",
                skip_unreadable=skip_unreadable,
            ).set_display_name("load_dataset training")
            trained = train(
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
                eps=pgd_eps,
                eps_step=pgd_eps_step,
                max_iter=pgd_max_iter,
                weights=weights,
                weights_sha256=weights_sha256,
                seed=seed,
            )
        with dsl.Else("pretrained"):
            pretrained = init_model(
                model_tag=model_tag,
                model_architecture=model_architecture,
                weights=weights,
                weights_sha256=weights_sha256,
                seed=seed,
            )
        # Of the three the address is handed on: kfp.local knows no `OneOf` of artifacts.
        found = dsl.OneOf(registered.outputs["uri"], trained.outputs["uri"], pretrained.outputs["uri"])

        # A new attack or defense is one line here, its settings, and one in the table above.
        size = {"batch_size": batch_size, "eps": eps, "norm": norm, "eot_samples": eot_samples}
        settings: dict[str, dict[str, Any]] = {
            "fgm": {**size, "eps_step": eps_step, "minimal": minimal},
            "pgd": {
                **size,
                "eps_step": pgd_attack_eps_step,
                "max_iter": pgd_attack_max_iter,
                "num_random_init": pgd_attack_num_random_init,
            },
            "spatial_smoothing": {"window_size": spatial_smoothing_window_size},
            "jpeg_compression": {"quality": jpeg_compression_quality},
            "gaussian_augmentation": {"sigma": gaussian_augmentation_sigma},
        }
        evaluations: list[Any] = []
        # Over addresses, of which each shard imports its own: a step would be given all shards of one artifact, and
        # Kubeflow has no loop over artifacts. Its importer takes an address from a loop, not from a step.
        with dsl.ParallelFor(packed.outputs["Output"], name="shard") as address:
            # Importers keep their names: the launcher records a display name as the task's, and the driver of a
            # consumer, which looks for the task's key, then finds no producer.
            clean = dsl.importer(artifact_uri=address, artifact_class=dsl.Dataset).output
            target = dsl.importer(artifact_uri=found, artifact_class=dsl.Model).output

            def evaluate(dataset: Any, name: str) -> None:
                made = infer(dataset=dataset, model=target, batch_size=batch_size, seed=seed)
                evaluations.append(made.set_display_name(f"infer {name}").outputs["evaluation"])

            def defended(name: str, dataset: Any, of: str) -> Any:
                made = DEFENSES[name](dataset=dataset, **settings[name], seed=seed)
                return made.set_display_name(f"{name} {of}").outputs["defended"]

            clean_defended = {name: defended(name, clean, "clean") for name in defenses}
            evaluate(clean, "clean")
            for name, made in clean_defended.items():
                evaluate(made, f"{name} clean")
            for attack in attacks:

                def attacked(title: str, attack: str = attack, **known: Any) -> Any:
                    made = ATTACKS[attack](dataset=clean, model=target, **known, **settings[attack], seed=seed)
                    return made.set_display_name(title).outputs["adversarial"]

                oblivious = attacked(attack)
                evaluate(oblivious, attack)
                for name, made in clean_defended.items():
                    aware = attacked(f"{attack} aware of {name}", defense=made)
                    for images, title in ((oblivious, attack), (aware, f"{attack} aware")):
                        evaluate(defended(name, images, title), f"{name} {title}")
            curve = security_curve(
                dataset=clean,
                model=target,
                **{f"defended_{number}": made for number, made in enumerate(clean_defended.values(), 1)},
                batch_size=batch_size,
                eps=eps,
                norm=norm,
                eps_values=eps_values,
                eot_samples=eot_samples,
                seed=seed,
            ).outputs["curve"]
        report(
            **{f"evaluation_{number}": dsl.Collected(made) for number, made in enumerate(evaluations, 1)},
            curve=dsl.Collected(curve),
            clean_accuracy_floor=clean_accuracy_floor,
        )

    return fgm_evaluation


def _require(what: str, names: Sequence[str], known: Iterable[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{what} must be of {', '.join(known)}. Received: {', '.join(unknown)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{what} must name each once. Received: {', '.join(names)}")


fgm_evaluation = evaluation()
