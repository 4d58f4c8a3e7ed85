"""Choose which output of a Hugging Face model is pruned for, and wrap the model so that it gives this output alone."""

from typing import Any

import torch
from torch import Tensor, nn

from models.errors import UnsupportedModel

ROWS = ("logits", "image_embeds", "pooler_output")
"""Outputs that have one row for each image, the most wanted first."""
CLASS_TOKEN, MEAN_TOKEN, MEAN_PIXEL = "class token", "mean of the tokens", "mean over the map"
HOW = {
    CLASS_TOKEN: "vitfit takes the first token of last_hidden_state, the class token",
    MEAN_TOKEN: "vitfit takes the mean of the tokens of last_hidden_state",
    MEAN_PIXEL: "vitfit takes the mean of last_hidden_state over height and width",
}
CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")


class OneOutput(nn.Module):
    """Wraps a Hugging Face model: returns one output, as one row for each image.

    output: one of `ROWS`, or one of the keys of `HOW`.
    """

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, images: Tensor) -> Tensor:
        found = self.model(pixel_values=images)
        if self.output in ROWS:
            row: Tensor = getattr(found, self.output)
            return row
        tokens: Tensor = found.last_hidden_state
        if self.output == CLASS_TOKEN:
            return tokens[:, 0]
        return tokens.mean(1) if self.output == MEAN_TOKEN else tokens.mean((2, 3))


def one_output(model: Any, name: str, image: tuple[int, int, int]) -> tuple[OneOutput, list[str]]:
    """Return the wrapped model, and sentences that say what was assumed and what is left out.

    Raises: UnsupportedModel for a model without one row of outputs for each image.
    """
    kind = type(model).__name__
    try:
        with torch.inference_mode():
            found = model(pixel_values=torch.zeros(2, *image))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UnsupportedModel(
            f"{name} is a {kind}, which does not run on images alone ({type(error).__name__}: {str(error)[:200]})."
            " Upload a model that needs only pixel_values, such as the image encoder of this model.",
            reasons=[f"{kind} does not run on images alone"],
        ) from error
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    output = _chosen(model, tensors)
    if output is None:
        shown = ", ".join(f"{key} {tuple(value.shape)}" for key, value in tensors.items())
        raise UnsupportedModel(
            f"{name} is a {kind}. It gives {shown} for 2 images. vitfit needs one row of outputs for each image, such"
            " as logits (2, classes). Upload the classifier or the encoder of this family.",
            reasons=[f"{kind} gives no row for each image"],
        )
    said = [] if output in ROWS else [f"The model has no pooled output: {HOW[output]}."]
    left = [key for key in tensors if key not in (output, "last_hidden_state")]
    if output in ROWS and left:
        said.append(f"The model has several outputs. vitfit takes {output!r} and leaves out: {', '.join(left)}.")
    return OneOutput(model, output).eval(), said


def _chosen(model: nn.Module, tensors: dict[str, Tensor]) -> str | None:
    for key in ROWS:
        if key in tensors:
            return key if tensors[key].ndim == 2 else None
    if "ForPreTraining" in type(model).__name__ or "last_hidden_state" not in tensors:
        return None
    rank = tensors["last_hidden_state"].ndim
    if rank == 4:
        return MEAN_PIXEL
    names = {key.rpartition(".")[2] for key, _ in model.named_parameters()}
    return CLASS_TOKEN if names & set(CLASS_TOKENS) else MEAN_TOKEN
