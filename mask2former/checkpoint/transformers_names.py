"""Names of DiNAT in the transformers library, and in the checkpoints of its authors."""

import re
from collections import defaultdict

import torch

from mask2former.checkpoint.reading import CheckpointError, StateDict

# Of transformers' DinatForImageClassification, DinatModel and DinatBackbone, to those of the authors' classifiers; the
# norms of outputs have the names that they have in a detector.
_MODULES = (
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.norm\.", "patch_embed.norm."),
    (r"encoder\.levels\.(\d+)\.downsample\.", r"levels.\1.downsample."),
    (r"encoder\.levels\.(\d+)\.layers\.(\d+)\.layernorm_before\.", r"levels.\1.blocks.\2.norm1."),
    (r"encoder\.levels\.(\d+)\.layers\.(\d+)\.layernorm_after\.", r"levels.\1.blocks.\2.norm2."),
    (r"encoder\.levels\.(\d+)\.layers\.(\d+)\.attention\.self\.(?=rpb$)", r"levels.\1.blocks.\2.attn."),
    (r"encoder\.levels\.(\d+)\.layers\.(\d+)\.attention\.output\.dense\.", r"levels.\1.blocks.\2.attn.proj."),
    (r"encoder\.levels\.(\d+)\.layers\.(\d+)\.intermediate\.dense\.", r"levels.\1.blocks.\2.mlp.fc1."),
    (r"encoder\.levels\.(\d+)\.layers\.(\d+)\.output\.dense\.", r"levels.\1.blocks.\2.mlp.fc2."),
    (r"layernorm\.", "norm."),
    (r"classifier\.", "head."),
)
_PROJECTION = re.compile(r"encoder\.levels\.(\d+)\.layers\.(\d+)\.attention\.self\.(query|key|value)\.(weight|bias)")
_LAYER_SCALE = re.compile(r"encoder\.levels\.(\d+)\.layers\.(\d+)\.layer_scale_parameters")
_OUTPUT_NORM = re.compile(r"hidden_states_norms\.stage(\d+)\.(weight|bias)")
_PREFIX = "dinat."


def from_transformers(state: StateDict) -> StateDict:
    """Rename the weights of a DiNAT of transformers as its authors publish them.

    Query, key and value are joined to one projection, and a pair of layer scales is taken apart; values stay as they
    are.

    Raises:
        CheckpointError: a name that no DiNAT of transformers has, or an incomplete projection.
    """
    renamed: StateDict = {}
    projections: dict[str, StateDict] = defaultdict(dict)
    for full_name, value in state.items():
        name = full_name.removeprefix(_PREFIX)
        if match := _PROJECTION.fullmatch(name):
            level, index, part, kind = match.groups()
            projections[f"levels.{level}.blocks.{index}.attn.qkv.{kind}"][part] = value
        elif match := _LAYER_SCALE.fullmatch(name):
            for number, gamma in enumerate(value, start=1):
                renamed[f"levels.{match[1]}.blocks.{match[2]}.gamma{number}"] = gamma
        elif match := _OUTPUT_NORM.fullmatch(name):
            renamed[f"norm{int(match[1]) - 1}.{match[2]}"] = value
        else:
            renamed[_module(full_name, name)] = value
    for name, parts in projections.items():
        if len(parts) < 3:
            raise CheckpointError(f"{name}: expected query, key and value, found {', '.join(parts)} alone")
        renamed[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return renamed


def _module(full_name: str, name: str) -> str:
    for pattern, replacement in _MODULES:
        if match := re.match(pattern, name):
            return match.expand(replacement) + name[match.end() :]
    raise CheckpointError(f"{full_name}: not a name of a DiNAT of transformers")
