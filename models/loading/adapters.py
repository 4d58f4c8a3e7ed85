"""Refuse adapters (LoRA and others of the package peft): they are no models, but changes to the weights of one."""

from collections.abc import Iterable
from pathlib import Path

from models.errors import CheckpointMismatch

MARKS = ("lora_A", "lora_B", "lora_down", "lora_up", "lora_embedding_A", "hada_w1_a", "lokr_w1")
CONFIG = "adapter_config.json"


def refuse_adapter_weights(names: Iterable[str]) -> None:
    """Raises: CheckpointMismatch if one of the names is that of an adapter's tensor."""
    if found := next((name for name in names if any(mark in name.split(".") for mark in MARKS)), None):
        raise CheckpointMismatch(_text(f"The checkpoint is an adapter (tensor {found[:200]})"), tensor=found[:200])


def refuse_adapter_folder(folder: Path) -> None:
    """Raises: CheckpointMismatch for a folder with the configuration of an adapter."""
    if (folder / CONFIG).is_file():
        raise CheckpointMismatch(_text(f"The folder holds an adapter ({CONFIG})"), file=CONFIG)


def _text(found: str) -> str:
    return (
        f"{found}, such as LoRA. It only changes the weights of another model. Merge the adapter first, with the"
        " package peft:\n"
        "    model = peft.PeftModel.from_pretrained(base_model, 'ADAPTER_FOLDER').merge_and_unload()\n"
        "    model.save_pretrained('merged')\n"
        "Then give the folder 'merged'. For a timm model, save the weights instead:"
        " torch.save(model.state_dict(), 'merged.pth')."
    )
