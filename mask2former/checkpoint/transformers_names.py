"""Names of Mask2Former with a DiNAT in the transformers library, in both directions.

transformers' `Mask2FormerForUniversalSegmentation` has query, key and value of self-attention as three weights; the
authors have them as one. All other weights only have another name.
"""

from dinat_common.transformers_names import DINAT_RULES, NameTable, Rule, dinat_from_transformers, pairs
from dinat_common.weights import StateDict

# Modules under "model.", which holds everything but the head and the class weights of the loss.
_PIXEL, _THEIR_PIXEL = "sem_seg_head.pixel_decoder.", "pixel_level_module.decoder."
_ENCODER, _THEIR_ENCODER = f"{_PIXEL}transformer.encoder.layers.*.", f"{_THEIR_PIXEL}encoder.layers.*."
_PREDICTOR, _MODULE = "sem_seg_head.predictor.", "transformer_module."
_SELF = f"{_PREDICTOR}transformer_self_attention_layers.*."
_CROSS = f"{_PREDICTOR}transformer_cross_attention_layers.*."
_FFN = f"{_PREDICTOR}transformer_ffn_layers.*."
_LAYER = f"{_MODULE}decoder.layers.*."
_PARTS = ("q_proj", "k_proj", "v_proj")

_PIXEL_DECODER = pairs(
    (f"{_PIXEL}input_proj.*.*.?", f"{_THEIR_PIXEL}input_projections.*.*.?"),
    (f"{_PIXEL}transformer.level_embed", f"{_THEIR_PIXEL}level_embed"),
    *(
        (f"{_ENCODER}self_attn.{part}.?", f"{_THEIR_ENCODER}self_attn.{part}.?")
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    ),
    (f"{_ENCODER}norm1.?", f"{_THEIR_ENCODER}self_attn_layer_norm.?"),
    (f"{_ENCODER}linear1.?", f"{_THEIR_ENCODER}fc1.?"),
    (f"{_ENCODER}linear2.?", f"{_THEIR_ENCODER}fc2.?"),
    (f"{_ENCODER}norm2.?", f"{_THEIR_ENCODER}final_layer_norm.?"),
    *(
        (f"{_PIXEL}{part}_*.{ours}?", f"{_THEIR_PIXEL}{part}_*.{theirs}?")
        for part in ("adapter", "layer")
        for ours, theirs in (("", "0."), ("norm.", "1."))
    ),
    (f"{_PIXEL}mask_features.?", f"{_THEIR_PIXEL}mask_projection.?"),
)
_TRANSFORMER_DECODER = (
    *pairs(
        (f"{_PREDICTOR}query_feat.?", f"{_MODULE}queries_features.?"),
        (f"{_PREDICTOR}query_embed.?", f"{_MODULE}queries_embedder.?"),
        (f"{_PREDICTOR}level_embed.?", f"{_MODULE}level_embed.?"),
        (f"{_PREDICTOR}input_proj.*.?", f"{_MODULE}input_projections.*.?"),
        (f"{_CROSS}multihead_attn.?", f"{_LAYER}cross_attn.?"),
        (f"{_CROSS}multihead_attn.out_proj.?", f"{_LAYER}cross_attn.out_proj.?"),
        (f"{_CROSS}norm.?", f"{_LAYER}cross_attn_layer_norm.?"),
        (f"{_SELF}self_attn.out_proj.?", f"{_LAYER}self_attn.out_proj.?"),
        (f"{_SELF}norm.?", f"{_LAYER}self_attn_layer_norm.?"),
        (f"{_FFN}linear1.?", f"{_LAYER}fc1.?"),
        (f"{_FFN}linear2.?", f"{_LAYER}fc2.?"),
        (f"{_FFN}norm.?", f"{_LAYER}final_layer_norm.?"),
        (f"{_PREDICTOR}decoder_norm.?", f"{_MODULE}decoder.layernorm.?"),
        (f"{_PREDICTOR}mask_embed.layers.*.?", f"{_MODULE}decoder.mask_predictor.mask_embedder.*.0.?"),
    ),
    Rule((f"{_SELF}self_attn.in_proj_?",), tuple(f"{_LAYER}self_attn.{part}.?" for part in _PARTS)),
)
_OUTSIDE = ("class_predictor.", "criterion.")
_TABLE = NameTable(
    (
        *(rule.prefixed("backbone.", "pixel_level_module.encoder.") for rule in DINAT_RULES),
        *_PIXEL_DECODER,
        *_TRANSFORMER_DECODER,
        *pairs(
            (f"{_PREDICTOR}class_embed.?", "class_predictor.?"), ("criterion.empty_weight", "criterion.empty_weight")
        ),
    ),
    "Mask2Former",
)


def to_transformers(state: StateDict) -> StateDict:
    """Rename the weights of Mask2Former with a DiNAT to those of `Mask2FormerForUniversalSegmentation`.

    Raises:
        CheckpointError: A name is not one of such a model.
    """
    renamed = _TABLE.to_transformers(state)
    return {name if name.startswith(_OUTSIDE) else f"model.{name}": value for name, value in renamed.items()}


def from_transformers(state: StateDict) -> StateDict:
    """Rename the weights of a DiNAT, or of Mask2Former with a DiNAT, from transformers to their authors' names.

    Values do not change; query, key and value become one weight.

    Args:
        state: Weights with transformers' names; `model.`, which files are read without, makes no difference.

    Raises:
        CheckpointError: A name is not one of transformers' models, or a projection is incomplete.
    """
    names = {name.removeprefix("model."): value for name, value in state.items()}
    if any(name.startswith(("pixel_level_module.", "transformer_module.")) for name in names):
        return _TABLE.from_transformers(names)
    return dinat_from_transformers(state)
