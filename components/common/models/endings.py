"""The ends of Keras models: the activation that turns logits into probabilities, and the model without it."""

from collections.abc import Callable
from typing import Any, NamedTuple

SOFTMAX, SIGMOID, LOG_SOFTMAX, LINEAR, OTHER = "softmax", "sigmoid", "log_softmax", "linear", ""
"""What an end can be: an activation whose input can be had, a layer without one, or anything else."""


class Ending(NamedTuple):
    """The end of a model.

    Attributes:
        activation: `SOFTMAX`, `SIGMOID`, `LOG_SOFTMAX`, `LINEAR` (a layer with weights and no activation) or `OTHER`.
        before: The model that ends before that activation; the model itself if there is none.
    """

    activation: str
    before: Any


def is_graph(layer: Any) -> bool:
    """Return whether a layer is one of Keras's own models, not of a custom class with a `call` of its own."""
    import keras

    return isinstance(layer, keras.Model) and type(layer).__module__.startswith("keras.")


def ending_of(model: Any) -> Ending:
    """Return the end of a model of one output, looking into models that are its last layer."""
    import keras

    if not is_graph(model):
        return Ending(OTHER, model)
    activation, tensor = _split(model.outputs[0])
    if tensor is model.outputs[0]:
        return Ending(activation, model)
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs  # Keras warns of a call on a list of one
    return Ending(activation, keras.Model(inputs, tensor))


def _split(tensor: Any) -> tuple[str, Any]:
    """Return the activation that a tensor comes from, and the tensor before it, or the tensor itself."""
    import keras

    layer, node_index, _ = tensor._keras_history
    parents = layer._inbound_nodes[node_index].input_tensors
    if isinstance(layer, keras.layers.InputLayer) or len(parents) != 1:
        return OTHER, tensor
    parent = parents[0]
    if is_graph(layer):
        activation, before = ending_of(layer)
        return (activation, tensor) if before is layer else (activation, before(parent))
    if isinstance(layer, keras.layers.Softmax):
        return (SOFTMAX, parent) if layer.axis in (-1, len(parent.shape) - 1) else (OTHER, tensor)
    if type(layer).__name__ in _OPERATIONS and not isinstance(layer, keras.layers.Layer):
        return _OPERATIONS[type(layer).__name__], parent
    known = _activation_of(layer)
    if isinstance(layer, keras.layers.Activation):
        if known == LINEAR:  # as it is put last to convert the outputs to float32
            inner, before = _split(parent)
            return inner, tensor if before is parent else before
        return (known, parent) if known else (OTHER, tensor)
    if known is None or not hasattr(layer, "kernel"):
        return OTHER, tensor
    return known, tensor if known == LINEAR else _without_activation(layer)(parent)


# Functions of `keras.ops` in a graph are operations of these classes.
_OPERATIONS = {"Softmax": SOFTMAX, "Sigmoid": SIGMOID, "LogSoftmax": LOG_SOFTMAX}


def _activation_of(layer: Any) -> str | None:
    """Return a layer's activation as one of those here; None for another one, or a layer that has none."""
    import keras

    names: dict[Callable[..., Any], str] = {
        keras.activations.softmax: SOFTMAX,
        keras.activations.sigmoid: SIGMOID,
        keras.activations.log_softmax: LOG_SOFTMAX,
        keras.activations.linear: LINEAR,
    }
    return names.get(getattr(layer, "activation", None))  # type: ignore[arg-type]


def _without_activation(layer: Any) -> Callable[[Any], Any]:
    """Return a layer of the same weights without its activation."""

    def apply(x: Any) -> Any:
        # A name of its own, since the layer itself may be elsewhere in the model too.
        config = layer.get_config() | {"activation": "linear", "name": f"{layer.name}_logits"}
        linear = type(layer).from_config(config)
        outputs = linear(x)
        linear.set_weights(layer.get_weights())
        return outputs

    return apply
