"""The step `load_model`."""

from kfp.dsl import Model, Output

from evasion.components.step import step


@step
def load_model(
    model: Output[Model],
    name: str,
    model_architecture: str = "",
    sha256: str = "",
    input_range: str = "0,1",
    image_size: str = "",
    class_names: str = "",
    package: str = "",
    interpolation: str = "bilinear",
    crop_to_aspect_ratio: bool = False,
    pad_to_aspect_ratio: bool = False,
) -> None:
    """Take any Keras classifier, from MLflow or a file, and bring it into the form that later steps know.

    The model becomes one from pixels in [0, 1] to probabilities over named classes. Whether it returns probabilities,
    logits, log-probabilities or the probability of the second of two classes is recognised and recorded. No code of
    the file is run. A model that `train` or `init_model` registered keeps its description.

    Args:
        model: The model: `model.keras` and its description.
        name: A name in MLflow (its newest version), name/version, name@alias, a models:/ or runs:/ URI, or a .keras or
            .h5 file, local or gs://.
        model_architecture: The architecture that the model must have, or blank.
        sha256: The hash that the model's file must have, or blank.
        input_range: The values that the model takes for black and white: 0,1 or 0,255 or -1,1; or caffe, torch or tf,
            as the models of keras.applications are preprocessed. A model with its own Rescaling or Normalization layer
            takes what that layer takes.
        image_size: Height,width of the images, or one side, for a model that takes any size; height,width,channels
            for one that does not say what it takes. Blank for the model's own.
        class_names: The names of the outputs in order, separated by commas, or a file, local or gs://: a name a line,
            or JSON. Blank for those of the model's description, or of ImageNet for 1,000 outputs, or the dataset's
            class folders in sorted order.
        package: An installed Python package that registers the model's own layers with
            keras.saving.register_keras_serializable; it is imported. Blank for none.
        interpolation: How images of another size are resized: nearest, bilinear, bicubic, area or lanczos3.
        crop_to_aspect_ratio: Whether to cut such images to the model's aspect ratio instead of distorting them.
        pad_to_aspect_ratio: Whether to pad them with black instead.
    """
    from evasion.components.body import call

    model.metadata.update(call("load_model", locals()))
