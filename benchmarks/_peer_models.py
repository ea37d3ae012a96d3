"""The models that benchmarks/peers.py compares: each gives a panoptic result of an image, and takes a training step."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from _settings import read_config
from detectron2.modeling import build_model
from torch import Tensor, nn

from mask2former.modeling import inference
from mask2former.solver import build_optimizer

OURS = "ours, DiNAT-L"
_CLASSES, _THINGS = 133, 80
_QUERIES = 200
# ImageNet's, which all of them normalise with.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TINY_OURS = {
    "MODEL.DINAT.EMBED_DIM": "16",
    "MODEL.DINAT.DEPTHS": "[1,1,1,1]",
    "MODEL.DINAT.NUM_HEADS": "[1,2,4,8]",
    "MODEL.DINAT.KERNEL_SIZE": "3",
    "MODEL.DINAT.DILATIONS": "[[1],[1],[1],[1]]",
    "MODEL.MASK_FORMER.DEC_LAYERS": "2",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": "1",
}
_SWIN_L: dict[str, Any] = {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12}
_TINY_SWIN: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 4}
_TINY_DINAT: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "kernel_size": 3}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


class Ours:
    """This project's model of the setting coco-panoptic; all queries take part in the results."""

    def __init__(self, _size: tuple[int, int], device: torch.device, bfloat16: bool, tiny: bool, training: bool):
        """Build the model.

        Args:
            device: Device of the model.
            bfloat16: Whether the network computes in bfloat16 autocast.
            tiny: Whether the model is a small one, for trying this code.
            training: Whether the model is to be trained.
        """
        options = {"MODEL.DEVICE": str(device), "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": "0.0"}
        options |= {"TEST.AMP": str(bfloat16)} | (_TINY_OURS if tiny else {})
        cfg = read_config("coco-panoptic", [part for option in options.items() for part in option])
        self.model = build_model(cfg).train(training)
        self._optimizer = build_optimizer(cfg, self.model)
        self._settings = replace(self.model.inference_settings, tasks=("panoptic",))
        self._bfloat16 = bfloat16

    def network(self, image: Tensor) -> Any:
        """Raw output of the network for an image, uint8 [3, H, W]."""
        return self.model.predict([{"image": image}])[0]

    def panoptic(self, raw: Any, size: tuple[int, int]) -> tuple[Tensor, int]:
        """Segment ids [H, W] and the number of segments."""
        ids, segments = inference.run(raw, size, self._settings)["panoptic_seg"]
        return ids, len(segments)

    def step(self, inputs: dict[str, Any]) -> None:
        """Take a training step on one image with targets in Detectron2's form."""
        with torch.autocast(self.model.device.type, torch.bfloat16, self._bfloat16):
            total = sum(self.model([inputs]).values(), torch.zeros((), device=self.model.device))
        total.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


class OfTransformers:
    """A model of the library transformers, with the sizes of its published weights, and its own post-processing."""

    def __init__(self, model: nn.Module, processor: Any, device: torch.device, bfloat16: bool, training: bool) -> None:
        """Take a model and the image processor that makes its results.

        Raises:
            ValueError: The processor is of none of the known types.
        """
        self.model = model.to(device).train(training)
        self._processor, self._device, self._bfloat16 = processor, device, bfloat16
        self._mean, self._std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (_MEAN, _STD))
        self._optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4)
        self._more: dict[str, Any] = {}

    def network(self, image: Tensor) -> Any:
        """Raw output of the network for an image, uint8 [3, H, W]."""
        with torch.autocast(self._device.type, torch.bfloat16, self._bfloat16):
            raw = self.model(pixel_values=self._normalised(image), **self._more)
        for name in ("masks_queries_logits", "class_queries_logits"):
            raw[name] = raw[name].float()
        return raw

    def panoptic(self, raw: Any, size: tuple[int, int]) -> tuple[Tensor, int]:
        """Segment ids [H, W] and the number of segments."""
        stuff = list(range(_THINGS, _CLASSES))
        name = type(self._processor).__name__
        fused = {"stuff_classes": stuff} if "Eomt" in name else {"label_ids_to_fuse": set(stuff)}
        (result,) = self._processor.post_process_panoptic_segmentation(raw, target_sizes=[size], threshold=0.0, **fused)
        return result["segmentation"], len(result["segments_info"])

    def step(self, inputs: dict[str, Any]) -> None:
        """Take a training step on one image with targets in Detectron2's form."""
        targets = inputs["instances"].to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, self._bfloat16):
            output = self.model(
                pixel_values=self._normalised(inputs["image"]),
                mask_labels=[targets.gt_masks.float()],
                class_labels=[targets.gt_classes],
                **self._more,
            )
        output.loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _normalised(self, image: Tensor) -> Tensor:
        return ((image.to(self._device) / 255 - self._mean) / self._std)[None]


class OneFormer(OfTransformers):
    """Its network also takes the tokens of a text that names the task, and in training one text per query."""

    def __init__(self, *arguments: Any) -> None:
        """Take a model and the image processor that makes its results; texts are random tokens."""
        super().__init__(*arguments)
        config: Any = self.model.config
        words = config.text_encoder_vocab_size

        def tokens(texts: int, length: int) -> Tensor:
            return torch.randint(words, (1, texts, length), generator=torch.Generator().manual_seed(0)).to(self._device)

        self._more = {"task_inputs": tokens(1, config.task_seq_len)[0]}
        if self.model.training:
            texts = config.num_queries - config.text_encoder_n_ctx
            self._more["text_inputs"] = tokens(texts, config.text_encoder_context_length)


def _swin(_size: tuple[int, int], tiny: bool) -> tuple[nn.Module, Any]:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    options: dict[str, Any] = (_TINY_SWIN if tiny else _SWIN_L) | {"out_features": _STAGES}
    backbone = SwinConfig(**options, image_size=384, drop_path_rate=0.3)
    layers: dict[str, Any] = (
        {"encoder_layers": 1, "decoder_layers": 3} if tiny else {"encoder_layers": 6, "decoder_layers": 10}
    )
    config = Mask2FormerConfig(backbone_config=backbone, num_queries=_QUERIES, **layers)
    config.num_labels = _CLASSES
    return Mask2FormerForUniversalSegmentation(config), Mask2FormerImageProcessor()


def _eomt(size: tuple[int, int], tiny: bool) -> tuple[nn.Module, Any]:
    from transformers import EomtConfig, EomtForUniversalSegmentation, EomtImageProcessor

    if size[0] != size[1]:
        raise ValueError(f"it takes square images, got {size[0]} x {size[1]}")
    sizes: dict[str, Any] = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    if tiny:
        sizes = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}
    config = EomtConfig(**sizes, image_size=size[0], patch_size=16, num_queries=_QUERIES, num_blocks=4)
    config.num_labels = _CLASSES
    edges = {"shortest_edge": size[0], "longest_edge": size[0]}
    return EomtForUniversalSegmentation(config), EomtImageProcessor(size=edges)


def _oneformer(_size: tuple[int, int], tiny: bool) -> tuple[nn.Module, Any]:
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation, OneFormerImageProcessor
    from transformers.models.dinat import DinatConfig

    sizes: dict[str, Any] = _TINY_DINAT | {"dilations": [[1]] * 4} if tiny else _dinat_large()
    options: dict[str, Any] = sizes | {"out_features": _STAGES}
    backbone = DinatConfig(**options)
    layers: dict[str, Any] = (
        {"encoder_layers": 1, "decoder_layers": 3} if tiny else {"encoder_layers": 6, "decoder_layers": 10}
    )
    config = OneFormerConfig(backbone_config=backbone, num_queries=150, **layers)
    config.num_labels = _CLASSES
    return OneFormerForUniversalSegmentation(config), OneFormerImageProcessor.__new__(OneFormerImageProcessor)


def _oneformer_on_our_backbone(size: tuple[int, int], tiny: bool) -> tuple[nn.Module, Any]:
    # It takes the place of transformers' own DiNAT, which needs functions that NATTEN had until 0.17.
    import_module("dinat_backbone.transformers")
    return _oneformer(size, tiny)


def _dinat_large() -> dict[str, Any]:
    node = read_config("coco-panoptic", []).MODEL.DINAT
    names = ("embed_dim", "depths", "num_heads", "kernel_size", "dilations", "mlp_ratio")
    return {name: node[name.upper()] for name in names}


_OF_TRANSFORMERS: dict[str, tuple[Callable[..., tuple[nn.Module, Any]], type[OfTransformers]]] = {
    "transformers' Mask2Former, Swin-L": (_swin, OfTransformers),
    "transformers' EoMT, ViT-L": (_eomt, OfTransformers),
    "transformers' OneFormer, DiNAT-L": (_oneformer, OneFormer),
    "transformers' OneFormer, our DiNAT-L": (_oneformer_on_our_backbone, OneFormer),
}
NAMES = (OURS, *_OF_TRANSFORMERS)


def build(
    name: str, size: tuple[int, int], device: torch.device, bfloat16: bool, tiny: bool, training: bool
) -> Ours | OfTransformers:
    """Build the model called `name` with random weights; see `Ours` for the other arguments.

    Raises:
        ImportError: A package is absent, or does not fit.
        ValueError: The model does not take images of this size.
    """
    torch.manual_seed(0)
    if name == OURS:
        return Ours(size, device, bfloat16, tiny, training)
    make, kind = _OF_TRANSFORMERS[name]
    return kind(*make(size, tiny), device, bfloat16, training)
