"""timm's PyramidVisionTransformerV2: every pvt_v2_*.

Keys and values are computed from a smaller grid, and a depthwise convolution is between the two layers of the MLP. So
every layer needs the complete token grid, and no tokens can be removed.
"""

from timm.models.pvt_v2 import Attention, Block, MlpWithDepthwiseConv, PyramidVisionTransformerV2
from torch import nn

from models.families.family import Family, is_present, part
from models.families.stage_widths import pvt_streams
from models.families.vision_transformer import NORMS


def _refusals(model: nn.Module) -> list[str]:
    assert isinstance(model, PyramidVisionTransformerV2)
    reasons = []
    if model.global_pool != "avg":
        reasons.append(f"pooling {model.global_pool!r} (allowed: avg)")
    if is_present(model.head) and not isinstance(model.head, nn.Linear):
        reasons.append(f"classifier {type(model.head).__name__} (allowed: a linear layer or no classifier)")
    for number, stage in enumerate(model.stages):
        for index, block in enumerate(part(stage, "blocks").children()):
            if type(block) is not Block or type(block.attn) is not Attention:
                reasons.append(f"stage {number}, block {index}: it does not use the Block and Attention of PVTv2")
            elif type(block.mlp) is not MlpWithDepthwiseConv or not isinstance(block.norm1, NORMS):
                reasons.append(f"stage {number}, block {index}: it does not use the MLP and norm of PVTv2")
            if reasons:
                return reasons
    return reasons


PVT_V2 = Family(
    name="pvt_v2",
    title="PVTv2 (timm PyramidVisionTransformerV2)",
    matches=lambda model: type(model) is PyramidVisionTransformerV2,
    refusals=_refusals,
    blocks="stages.*.blocks",
    image=lambda model: None,
    prefix=lambda model: 0,
    norm1="norm1",
    attention_layers={"attn.q": "q", "attn.kv": "kv"},
    heads="attn.num_heads",
    scale="attn.scale",
    projection="attn.proj",
    key_reduction=("attn.pool", "attn.sr", "attn.norm", "attn.act"),
    norm2="norm2",
    fc1="mlp.fc1",
    between=("mlp.relu", "mlp.dwconv"),
    activation="mlp.act",
    fc2="mlp.fc2",
    classifiers=("head",),
    streams=pvt_streams,
    fixed=("embed", "inputs"),
    sliced=True,
    rebuilt_attention="attn",
)
