"""The quicker model against the model itself: outputs to the bit, gradients by the images to float rounding."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from evasion.components.common.models import architectures
from evasion.components.common.models.optimized import _Convolution, optimized

RNG = np.random.default_rng(0)
DIRECTION = RNG.standard_normal(1000).astype(np.float32)  # of the outputs: what the gradient is taken of


def computed(model, x):
    with tf.GradientTape() as tape:
        x = tf.constant(x)
        tape.watch(x)
        outputs = model(x, training=False)
        value = tf.reduce_sum(outputs * DIRECTION[: outputs.shape[-1]])
    return outputs.numpy(), tape.gradient(value, x).numpy()


def assert_same(model, quick):
    x = RNG.random((3, *model.input_shape[1:]), np.float32)
    (outputs, gradient), (quick_outputs, quick_gradient) = (
        computed(model, x),
        computed(quick, x),
    )
    np.testing.assert_array_equal(quick_outputs, outputs)
    np.testing.assert_allclose(quick_gradient, gradient, rtol=0, atol=1e-5 * np.abs(gradient).max())
    assert gradient.any()


def replaced(model):
    """The convolutions that were, in the model and the models in it."""
    inside = [inner for layer in model.layers if isinstance(layer, keras.Model) for inner in replaced(layer)]
    return [layer for layer in model.layers if isinstance(layer, _Convolution)] + inside


def randomized(model):
    """Statistics and factors as training leaves them, none of them 0 or 1."""
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([RNG.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    return model


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (7, 7), (11, 5)])
@pytest.mark.parametrize("shape", [(28, 28, 1), (23, 18, 3), (16, 17, 4)])
def test_a_convolution_of_images_is_followed_back_by_blocks(shape, kernel, stride, padding):
    inputs = keras.Input(shape)
    y = layers.Conv2D(5, kernel, strides=stride, padding=padding, activation="tanh")(inputs)
    model = keras.Model(inputs, layers.Dense(4)(layers.Flatten()(y)))
    model.layers[1].bias.assign(RNG.random(5))
    quick = optimized(model)
    assert len(replaced(quick)) == 1
    assert_same(model, quick)


@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False, "epsilon": 0.1}], ids=str)
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("channels", [3, 6])
@pytest.mark.parametrize(("stride", "padding"), [(1, "same"), (2, "valid"), (2, "same")])
def test_batch_normalization_goes_into_the_kernel(options, use_bias, channels, stride, padding):
    inputs = keras.Input((13, 14, channels))
    y = layers.Conv2D(8, 3, strides=stride, padding=padding, use_bias=use_bias)(inputs)
    y = layers.Activation("tanh")(layers.BatchNormalization(**options)(y))
    model = randomized(keras.Model(inputs, layers.Dense(4)(layers.Flatten()(y))))
    quick = optimized(model)
    assert len(replaced(quick)) == 1
    assert_same(model, quick)


def test_a_convolution_whose_output_goes_elsewhere_too_keeps_both_ways():
    inputs = keras.Input((9, 9, 6))
    y = layers.Conv2D(8, 3)(inputs)
    y = layers.Add()([layers.BatchNormalization()(y), layers.BatchNormalization()(y), y])
    model = randomized(keras.Model(inputs, layers.GlobalAveragePooling2D()(y)))
    quick = optimized(model)
    assert len(replaced(quick)) == 2
    assert_same(model, quick)


def left_alone():
    inputs = keras.Input((12, 12, 6))
    yield "activation before it", inputs, layers.BatchNormalization()(layers.Conv2D(8, 3, activation="relu")(inputs))
    yield "dilation", inputs, layers.BatchNormalization()(layers.Conv2D(8, 3, dilation_rate=2)(inputs))
    yield "groups", inputs, layers.BatchNormalization()(layers.Conv2D(8, 3, groups=2)(inputs))
    yield "depthwise", inputs, layers.BatchNormalization()(layers.DepthwiseConv2D(3)(inputs))
    yield "statistics of the batch", inputs, layers.BatchNormalization()(layers.Conv2D(8, 3)(inputs), training=True)
    images = keras.Input((12, 12, 3))
    yield "one pixel", images, layers.Conv2D(8, 1)(images)
    sides = keras.Input((None, None, 3))
    yield "any size", sides, layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(sides))


@pytest.mark.parametrize(("inputs", "outputs"), [pytest.param(i, o, id=name) for name, i, o in left_alone()])
def test_what_it_does_not_know_is_left_alone(inputs, outputs):
    model = randomized(keras.Model(inputs, outputs))
    assert replaced(optimized(model)) == []


def test_weights_that_change_are_followed():
    inputs = keras.Input((12, 12, 3))
    y = layers.BatchNormalization()(layers.Conv2D(8, 3)(inputs))
    model = randomized(keras.Model(inputs, layers.GlobalAveragePooling2D()(y)))
    quick = optimized(model, fixed=False)
    for layer in model.layers:
        layer.set_weights([RNG.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    assert len(replaced(quick)) == 1
    assert_same(model, quick)


def test_a_model_of_layers_in_a_row_and_models_in_models_are_gone_through():
    block = keras.Sequential([keras.Input((14, 14, 8)), layers.Conv2D(8, 3), layers.BatchNormalization()])
    model = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(8, 3), block, layers.Flatten(), layers.Dense(3)])
    randomized(block)
    quick = optimized(model)
    assert len(replaced(quick)) == 2
    assert_same(model, quick)


def test_a_model_of_a_class_of_its_own_is_left_alone():
    class Own(keras.Model):
        def call(self, x):
            return x

    model = Own()
    assert optimized(model) is model
    inputs = keras.Input((4, 4, 3))
    around = keras.Model(inputs, layers.Flatten()(model(inputs)))
    assert model in optimized(around).layers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "convolutions"), [("le_net", 1), ("alex_net", 1), ("shallow_net", 0), ("vgg16", 1), ("resnet50", 53)]
)
def test_every_architecture(name, convolutions):
    model = architectures.build(name, 5, "none", "", 0)
    quick = optimized(model)
    assert len(replaced(quick)) == convolutions
    assert_same(model, quick)
