"""ART's own attacks, as its users call them: the oracles of the tests."""

import numpy as np


def projected_gradient_descent(model, *, norm, eps, eps_step, max_iter, batch_size, num_random_init=0):
    """ART's PGD over the whole model with its softmax."""
    import keras
    from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_numpy import (
        ProjectedGradientDescentNumpy,
    )
    from art.estimators.classification import TensorFlowV2Classifier

    estimator = TensorFlowV2Classifier(
        model=model,
        nb_classes=model.output_shape[-1],
        input_shape=model.input_shape[1:],
        loss_object=keras.losses.CategoricalCrossentropy(),
        clip_values=(0.0, 1.0),
    )
    return ProjectedGradientDescentNumpy(
        estimator,
        norm=np.inf if norm == "inf" else int(norm),
        eps=eps,
        eps_step=eps_step,
        max_iter=max_iter,
        num_random_init=num_random_init,
        batch_size=batch_size,
        verbose=False,
    )
