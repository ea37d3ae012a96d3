"""The 67 published models of the NAT and DiNAT papers: configs, checkpoints, published numbers, parameters and FLOPs.

Hassani et al., "Neighborhood Attention Transformer" (CVPR 2023), and Hassani and Shi, "Dilated Neighborhood Attention
Transformer" (arXiv 2209.15001). `MODELS` is the table of all; `SETTINGS` are its eight Mask2Formers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from mask2former.tasks import Task

Dataset = Literal["coco", "ade20k", "cityscapes"]
Group = Literal["classification", "detection", "upernet", "mask2former"]
_URL = "https://shi-labs.com/projects/"


@dataclass(frozen=True)
class PublishedModel:
    """A published checkpoint and what the papers say about it.

    Attributes:
        name: Name of the model: that of its config file, or a name such as coco-panoptic for a Mask2Former.
        group: Kind of model.
        config_file: Path of the config file from the repository root.
        checkpoint_url: Address at which the authors publish the checkpoint.
        published: Published metrics in percent, such as top1, box AP or mIoU; empty if there are none.
        parameters: Number of parameters as printed, such as 20M; empty if none is printed.
        flops: Multiply-adds for one image as printed, such as 2.7G; empty if none are printed.
        flops_size: Height and width of the image that `flops` belongs to.
        multi_scale: Flag for a model whose only published numbers are with test-time augmentation (TEST.AUG.ENABLED).
        published_multi_scale: Metrics with test-time augmentation that are published beside those at a single scale.
        counts_doubt: Reason why parameters or FLOPs, counted as for all other models, are not those printed; empty if
            they are.
        doubt: Other contradiction in what is published; empty if there is none.
        other_checkpoints: Other file names under which the checkpoint may be published.
        ways: Ways to evaluate the model, where a doubt leaves open which of them the published numbers belong to: pairs
            of config keys and values, by name.
    """

    name: str
    group: Group
    config_file: PurePosixPath
    checkpoint_url: str
    published: Mapping[str, float]
    parameters: str
    flops: str
    flops_size: tuple[int, int]
    multi_scale: bool = False
    published_multi_scale: Mapping[str, float] = field(default_factory=dict)
    counts_doubt: str = ""
    doubt: str = ""
    other_checkpoints: tuple[str, ...] = ()
    ways: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def checkpoint(self) -> str:
        """File name of the published checkpoint."""
        return PurePosixPath(self.checkpoint_url).name


@dataclass(frozen=True)
class Setting(PublishedModel):
    """A Mask2Former with DiNAT-Large.

    Attributes:
        dataset: Data set that it is trained on.
        task: Task of its results.
        schedule: End of the name of its config file.
    """

    dataset: Dataset = "coco"
    task: Task = "panoptic"
    schedule: str = "100ep"


def _family(name: str) -> str:
    """Folder of the configs of a model with this name: nat, dinat, dinat_s or isotropic."""
    if "isotropic" in name or "vitrpb" in name:
        return "isotropic"
    if "dinat_s_" in name:
        return "dinat_s"
    return "dinat" if "dinat" in name else "nat"


def _classifier(
    name: str,
    path: str,
    top1: float | None,
    parameters: str,
    flops: str,
    *,
    size: int = 224,
    counts_doubt: str = "",
    doubt: str = "",
    linked: str = "",
) -> PublishedModel:
    return PublishedModel(
        name,
        "classification",
        PurePosixPath("configs/imagenet/classification", _family(name), f"{name}.yaml"),
        f"{_URL}{path}.pth",
        {} if top1 is None else {"top1": top1},
        parameters,
        flops,
        (size, size),
        counts_doubt=counts_doubt,
        doubt=_TWO_NAMES.format(name=linked) if linked else doubt,
        other_checkpoints=(linked,) if linked else (),
    )


def _detector(name: str, box_ap: float, mask_ap: float, parameters: str, flops: str) -> PublishedModel:
    family = _family(name)
    config_file = PurePosixPath("configs/coco/detection", family, f"{name}.yaml")
    folder = "nat/checkpoints/DET" if family == "nat" else "dinat/checkpoints/coco"
    published = {"box AP": box_ap, "mask AP": mask_ap}
    return PublishedModel(
        name, "detection", config_file, f"{_URL}{folder}/{name}.pth", published, parameters, flops, (800, 1280)
    )


def _upernet(
    name: str, miou: float, miou_multi_scale: float, parameters: str, flops: str, *, side: int = 512
) -> PublishedModel:
    family = _family(name)
    config_file = PurePosixPath("configs/ade20k/semantic-segmentation", family, f"{name}.yaml")
    folder = "nat/checkpoints/SEG" if family == "nat" else "dinat/checkpoints/ade20k"
    return PublishedModel(
        name,
        "upernet",
        config_file,
        f"{_URL}{folder}/{name}.pth",
        {"mIoU": miou},
        parameters,
        flops,
        (side, 4 * side),
        published_multi_scale={"mIoU": miou_multi_scale},
        doubt=_SIDE if side == 640 else "",
        ways=_SIDES if side == 640 else {},
    )


def _mask2former(
    dataset: Dataset,
    task: Task,
    schedule: str,
    published: Mapping[str, float],
    flops: str,
    *,
    multi_scale: bool = False,
    counts_doubt: str = "",
) -> Setting:
    folder = PurePosixPath("configs", dataset, f"{task}-segmentation", "dinat")
    return Setting(
        f"{dataset}-{task}",
        "mask2former",
        folder / f"maskformer2_dinat_large_IN21k_384_bs16_{schedule}.yaml",
        f"{_URL}dinat/checkpoints/m2f/mask2former_dinat_large_{dataset}_{task}.pth",
        published,
        "220M",
        flops,
        (800, 800),
        multi_scale=multi_scale,
        counts_doubt=counts_doubt,
        dataset=dataset,
        task=task,
        schedule=schedule,
    )


# Why printed counts are not those that the same count gives for the other rows.
_LARGE = "200.9M parameters were printed as 200M"
_CUT_OFF = "{counted} were printed as {printed}: cut off instead of rounded, or counted without norms"
_HEAD_OF_22K = "FLOPs are {counted}, or {with_head} with the head of ImageNet-22K"
_ADE20K = (
    "FLOPs are {counted}: the network differs from that for COCO in the number of classes alone, which costs less than "
    "0.1G"
)
# Contradictions in what is published.
_TWO_NAMES = "the papers' tables link to {name}, the published code to the file named here"
_CLASSES = "the number of classes, 21841, is an assumption: the published code does not say it"
_SIDE = (
    "name, dilations and FLOPs say 640 x 640, but the published config inherits crops of 512 and the test scale "
    "2048 x 512; the published mIoU probably belongs to 2560 x 640"
)
# Test sizes by the shorter side: those of the config files, and the same factors of 2560 x 640.
_SIDES: Mapping[str, tuple[str, ...]] = {
    "512": (),
    "640": (
        *("INPUT.MIN_SIZE_TEST", "640", "INPUT.MAX_SIZE_TEST", "2560"),
        *("TEST.AUG.MIN_SIZES", "[320,480,640,800,960,1120]", "TEST.AUG.MAX_SIZE", "4480"),
    ),
}

_IN1K = "dinat/checkpoints/imagenet1k/"
_IN22K = "dinat/checkpoints/imagenet22k/"
_ISO = "dinat/checkpoints/isotropic/"


_CLASSIFIERS = (
    _classifier("nat_mini", "nat/checkpoints/CLS/nat_mini", 81.8, "20M", "2.7G"),
    _classifier("nat_tiny", "nat/checkpoints/CLS/nat_tiny", 83.2, "28M", "4.3G"),
    _classifier("nat_small", "nat/checkpoints/CLS/nat_small", 83.7, "51M", "7.8G"),
    _classifier("nat_base", "nat/checkpoints/CLS/nat_base", 84.3, "90M", "13.7G"),
    _classifier("dinat_mini", f"{_IN1K}dinat_mini_in1k_224", 81.8, "20M", "2.7G"),
    _classifier("dinat_tiny", f"{_IN1K}dinat_tiny_in1k_224", 82.7, "28M", "4.3G"),
    _classifier("dinat_small", f"{_IN1K}dinat_small_in1k_224", 83.8, "51M", "7.8G"),
    _classifier("dinat_base", f"{_IN1K}dinat_base_in1k_224", 84.4, "90M", "13.7G"),
    _classifier(
        "dinat_large",
        f"{_IN1K}dinat_large_in22k_in1k_224",
        86.6,
        "200M",
        "30.6G",
        counts_doubt=f"{_LARGE}; {_HEAD_OF_22K.format(counted='30.53G', with_head='30.57G')}",
    ),
    _classifier(
        "dinat_large_384",
        f"{_IN1K}dinat_large_in22k_in1k_384",
        87.4,
        "200M",
        "89.7G",
        size=384,
        counts_doubt=_LARGE,
    ),
    _classifier(
        "dinat_large_384_11x11",
        f"{_IN1K}dinat_large_in22k_in1k_384_11x11",
        87.5,
        "200M",
        "92.4G",
        size=384,
        counts_doubt=f"{_LARGE}; {_HEAD_OF_22K.format(counted='92.3499G', with_head='92.38G')}",
    ),
    _classifier(
        "dinat_s_tiny",
        f"{_IN1K}dinat_s_tiny_in1k_224",
        81.8,
        "28M",
        "4.5G",
        linked="dinat_s_tiny_1k_224.pth",
    ),
    _classifier(
        "dinat_s_small",
        f"{_IN1K}dinat_s_small_in1k_224",
        83.5,
        "50M",
        "8.7G",
        counts_doubt=_CUT_OFF.format(counted="8.77G", printed="8.7G"),
        linked="dinat_s_small_1k_224.pth",
    ),
    _classifier(
        "dinat_s_base",
        f"{_IN1K}dinat_s_base_in1k_224",
        83.8,
        "88M",
        "15.4G",
        counts_doubt=_CUT_OFF.format(counted="15.47G", printed="15.4G"),
        linked="dinat_s_base_1k_224.pth",
    ),
    _classifier(
        "dinat_s_large",
        f"{_IN1K}dinat_s_large_in1k_224",
        86.5,
        "197M",
        "34.5G",
        linked="dinat_s_large_1k_224.pth",
    ),
    _classifier(
        "dinat_s_large_384",
        f"{_IN1K}dinat_s_large_in1k_384",
        87.4,
        "197M",
        "101.5G",
        size=384,
        linked="dinat_s_large_1k_384.pth",
    ),
    _classifier("nat_isotropic_small", f"{_ISO}nat_isotropic_small_in1k_224", 80.0, "22M", "4.3G"),
    _classifier("dinat_isotropic_small", f"{_ISO}dinat_isotropic_small_in1k_224", 80.8, "22M", "4.3G"),
    _classifier("vitrpb_small", f"{_ISO}vitrpb_small_in1k_224", 81.2, "22M", "4.6G"),
    _classifier(
        "nat_isotropic_base",
        f"{_ISO}nat_isotropic_base_in1k_224",
        81.6,
        "86M",
        "16.9G",
        counts_doubt=_CUT_OFF.format(counted="16.96G", printed="16.9G"),
    ),
    _classifier(
        "dinat_isotropic_base",
        f"{_ISO}dinat_isotropic_base_in1k_224",
        82.1,
        "86M",
        "16.9G",
        counts_doubt=_CUT_OFF.format(counted="16.96G", printed="16.9G"),
    ),
    _classifier(
        "vitrpb_base",
        f"{_ISO}vitrpb_base_in1k_224",
        82.5,
        "86M",
        "17.5G",
        counts_doubt="86.6M parameters were printed as 86M",
    ),
    _classifier("dinat_large_21k", f"{_IN22K}dinat_large_in22k_224", None, "", "", doubt=_CLASSES),
    _classifier("dinat_large_21k_11x11", f"{_IN22K}dinat_large_in22k_224_11x11interp", None, "", "", doubt=_CLASSES),
    _classifier("dinat_s_large_21k", f"{_IN22K}dinat_s_large_in22k_224", None, "", "", doubt=_CLASSES),
)

_DETECTORS = (
    _detector("nat_mini_maskrcnn", 46.5, 41.7, "40M", "225G"),
    _detector("nat_tiny_maskrcnn", 47.7, 42.6, "48M", "258G"),
    _detector("nat_small_maskrcnn", 48.4, 43.2, "70M", "330G"),
    _detector("nat_mini_cascademaskrcnn", 50.3, 43.6, "77M", "704G"),
    _detector("nat_tiny_cascademaskrcnn", 51.4, 44.5, "85M", "737G"),
    _detector("nat_small_cascademaskrcnn", 52.0, 44.9, "108M", "809G"),
    _detector("nat_base_cascademaskrcnn", 52.3, 45.1, "147M", "931G"),
    _detector("maskrcnn_dinat_mini", 47.2, 42.5, "40M", "225G"),
    _detector("maskrcnn_dinat_tiny", 48.6, 43.5, "48M", "258G"),
    _detector("maskrcnn_dinat_small", 49.3, 44.0, "70M", "330G"),
    _detector("cascadedmaskrcnn_dinat_mini", 51.2, 44.4, "77M", "704G"),
    _detector("cascadedmaskrcnn_dinat_tiny", 52.2, 45.1, "85M", "737G"),
    _detector("cascadedmaskrcnn_dinat_small", 52.9, 45.8, "108M", "809G"),
    _detector("cascadedmaskrcnn_dinat_base", 53.4, 46.2, "147M", "931G"),
    _detector("cascadedmaskrcnn_dinat_large", 55.3, 47.8, "258M", "1276G"),
    _detector("maskrcnn_dinat_s_tiny", 46.6, 42.1, "48M", "263G"),
    _detector("maskrcnn_dinat_s_small", 48.6, 43.5, "69M", "350G"),
    _detector("cascadedmaskrcnn_dinat_s_tiny", 51.0, 44.1, "86M", "742G"),
    _detector("cascadedmaskrcnn_dinat_s_small", 52.3, 45.2, "107M", "829G"),
    _detector("cascadedmaskrcnn_dinat_s_base", 52.6, 45.3, "145M", "966G"),
    _detector("cascadedmaskrcnn_dinat_s_large", 54.8, 47.2, "253M", "1357G"),
)

_UPERNETS = (
    _upernet("nat_mini_upernet", 45.1, 46.4, "50M", "900G"),
    _upernet("nat_tiny_upernet", 47.1, 48.4, "58M", "934G"),
    _upernet("nat_small_upernet", 48.0, 49.5, "82M", "1010G"),
    _upernet("nat_base_upernet", 48.5, 49.7, "123M", "1137G"),
    _upernet("upernet_dinat_mini", 45.8, 47.2, "50M", "900G"),
    _upernet("upernet_dinat_tiny", 47.8, 48.8, "58M", "934G"),
    _upernet("upernet_dinat_small", 48.9, 49.9, "82M", "1010G"),
    _upernet("upernet_dinat_base", 49.6, 50.4, "123M", "1137G"),
    _upernet("upernet_dinat_large", 54.0, 54.9, "238M", "2335G", side=640),
    _upernet("upernet_dinat_s_tiny", 46.0, 47.4, "60M", "941G"),
    _upernet("upernet_dinat_s_small", 48.6, 49.9, "81M", "1030G"),
    _upernet("upernet_dinat_s_base", 49.4, 50.2, "121M", "1173G"),
    _upernet("upernet_dinat_s_large", 53.4, 54.6, "234M", "2466G", side=640),
)

SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        _mask2former("coco", "panoptic", "100ep", {"PQ": 58.5, "AP": 49.2, "mIoU": 68.3}, "522G"),
        _mask2former("coco", "instance", "100ep", {"AP": 50.8}, "522G"),
        _mask2former(
            "ade20k",
            "panoptic",
            "160k",
            {"PQ": 49.4, "AP": 35.0, "mIoU": 56.3},
            "535G",
            counts_doubt=_ADE20K.format(counted="522.5G"),
        ),
        _mask2former(
            "ade20k",
            "instance",
            "160k",
            {"AP": 35.4},
            "535G",
            counts_doubt=_ADE20K.format(counted="522.5G"),
        ),
        _mask2former(
            "ade20k",
            "semantic",
            "160k",
            {"mIoU": 58.1},
            "518G",
            multi_scale=True,
            counts_doubt="FLOPs are 508.5G as for Cityscapes, or 518.1G with the product of class and mask scores at "
            "800 x 800 that makes the class map",
        ),
        _mask2former("cityscapes", "panoptic", "90k", {"PQ": 67.2, "AP": 44.5, "mIoU": 83.4}, "522G"),
        _mask2former("cityscapes", "instance", "90k", {"AP": 45.1}, "522G"),
        _mask2former("cityscapes", "semantic", "90k", {"mIoU": 84.5}, "509G", multi_scale=True),
    )
}

MODELS: Mapping[str, PublishedModel] = {
    model.name: model for model in (*_CLASSIFIERS, *_DETECTORS, *_UPERNETS, *SETTINGS.values())
}
