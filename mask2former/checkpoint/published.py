"""What a file says beyond its weights: which published model they are of, and which classes they predict."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata

from dinat_common.weights import StateDict
from mask2former.checkpoint.names import build_empty_state, compare
from mask2former.checkpoint.openmmlab_names import from_openmmlab, own_table
from mask2former.config import setup_cfg
from mask2former.data.classes import with_class_names
from mask2former.model_zoo import MODELS, Group, PublishedModel
from mask2former.tasks import TASKS, class_count, tasks_of

# Folder of `configs`; an installed package may lack it.
_ROOT = Path(__file__).resolve().parents[2]
Color = tuple[int, int, int]


def fitting_models(state: StateDict, path: str | Path = "") -> list[PublishedModel]:
    """Published models that have the names and shapes of some weights, those of the file name first.

    NAT and DiNAT of one size may have the same names and shapes: dilations are not in a file.

    Args:
        state: State dict, with names of OpenMMLab's libraries or ours.
        path: Path of the file.
    """
    state = from_openmmlab(state)
    group = _group_of(state)
    found = []
    for model in MODELS.values():
        config_file = _ROOT / model.config_file
        if model.group == group and config_file.is_file():
            cfg = setup_cfg(config_file, [])
            if _fits_backbone(state, cfg) and compare(state, build_empty_state(cfg))[1].exact:
                found.append(model)
    return sorted(found, key=lambda model: model.checkpoint != Path(path).name)


def _fits_backbone(state: StateDict, cfg: CfgNode) -> bool:
    """Whether channels and number of blocks are those of a config, which saves building most other models."""
    norm = next((value for name, value in state.items() if name.endswith("patch_embed.norm.weight")), None)
    blocks = sum(name.endswith(".attn.rpb") for name in state)
    return norm is not None and (len(norm), blocks) == (cfg.MODEL.DINAT.EMBED_DIM, sum(cfg.MODEL.DINAT.DEPTHS))


def _group_of(state: StateDict) -> Group | None:
    """Kind of the model that some weights are of; None if their backbone is not one of the family."""
    if not any("patch_embed." in name for name in state):
        return None
    table = own_table(state)
    if table is not None:
        return "upernet" if table.kind == "UPerNet" else "detection"
    return "classification" if "head.weight" in state else "mask2former"


@dataclass(frozen=True)
class FileClasses:
    """Classes that the author of a file wrote beside its weights.

    Attributes:
        names: Names of the classes, in the order of the model's.
        colors: RGB colours of the classes in 0..255; empty if the file has none.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...] = ()

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "FileClasses | None":
        """Read the classes that a file lists beside its weights; None if there are none.

        OpenMMLab's libraries write them to `meta`, `tools/convert_weights.py` to its metadata.

        Args:
            content: Content as `read_checkpoint` returns it.
        """
        texts, meta = content.get("metadata"), content.get("meta")
        if isinstance(texts, Mapping) and "classes" in texts:
            names, colors = (_parsed(texts.get(key)) for key in ("classes", "palette"))
        elif isinstance(meta, Mapping):
            # Later versions of the libraries write `dataset_meta` with names in small letters.
            found = {str(key).lower(): value for key, value in (meta | dict(meta.get("dataset_meta") or {})).items()}
            names, colors = found.get("classes"), found.get("palette")
        else:
            return None
        # A single class is often a text instead of a tuple of one.
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
            return None
        return cls(tuple(name.strip() for name in names), _colors(colors, len(names)))

    @classmethod
    def of_metadata(cls, metadata: Metadata, cfg: CfgNode) -> "FileClasses | None":
        """Take the classes of a data set that the model of a config predicts; None if their numbers differ."""
        kind = TASKS[tasks_of(cfg)[0]].class_list
        names = tuple(map(str, metadata.get(f"{kind}_classes") or ()))
        if len(names) != class_count(cfg):
            return None
        return cls(names, _colors(metadata.get(f"{kind}_colors"), len(names)))

    @property
    def texts(self) -> dict[str, str]:
        """Entries for the metadata of a file of ours."""
        colors = {"palette": json.dumps(self.colors)} if self.colors else {}
        return {"classes": json.dumps(self.names)} | colors

    @property
    def meta(self) -> dict[str, Any]:
        """Entries for the `meta` of a file of OpenMMLab's libraries."""
        return {"CLASSES": self.names} | ({"PALETTE": [list(color) for color in self.colors]} if self.colors else {})

    def describe(self, metadata: Metadata, cfg: CfgNode) -> Metadata:
        """Metadata of the classes that the model of a config predicts, now that its file is known.

        Args:
            metadata: Metadata of the data set that the config names.
            cfg: Config of the model.

        Returns:
            `metadata` if its names are those of the file, or if the file lists another number of classes than the model
            has. Otherwise metadata with the names and colours of the file.
        """
        if len(self.names) != class_count(cfg):
            return metadata
        named = with_class_names(metadata, self.names, cfg).as_dict()
        if named == metadata.as_dict():
            return metadata
        lists = [key for key in named if key.endswith("_classes") and named[key] == list(self.names)]
        if any(len(metadata.get(key)) != len(self.names) for key in lists):
            # Other classes: colours and ids of annotations are those of the data set's own.
            named = {"name": metadata.name, **{key: named[key] for key in lists}}
        colors = {key.replace("_classes", "_colors"): list(self.colors) for key in lists} if self.colors else {}
        return Metadata(**{**named, **colors})


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return None


def _colors(values: Any, count: int) -> tuple[Color, ...]:
    """Colours as tuples; none if there are not `count` triples of numbers."""
    try:
        array = np.asarray(values if values is not None else [], dtype=np.int64)
    except (TypeError, ValueError):
        return ()
    return tuple(tuple(color) for color in array.tolist()) if array.shape == (count, 3) else ()
