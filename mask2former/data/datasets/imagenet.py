"""ImageNet: 1000 classes (ILSVRC 2012), and the 21841 classes of ImageNet-22K, as folders of class folders.

They are looked for in `imagenet/{train,val}` and `imagenet22k/{train,val}` below DETECTRON2_DATASETS. Folders have the
ids of WordNet as names, such as n01440764; class ids follow their order.
"""

from torchvision.models import ResNet18_Weights

from mask2former.data.datasets.class_folders import register_class_folders

# Nothing is downloaded: this list is part of torchvision, in the order of the folders.
CLASSES: tuple[str, ...] = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
# The names of the larger set are not part of any library that is needed here.
CLASSES_22K: tuple[str, ...] = tuple(f"class {index}" for index in range(21841))

_SOURCE = (
    "Download it from https://image-net.org (ILSVRC 2012) and sort the images into one folder for each class, such as "
    "imagenet/val/n01440764/ILSVRC2012_val_00000293.JPEG"
)


def register() -> None:
    """Register imagenet_{train,val} and imagenet_22k_{train,val}."""
    for name, folder, classes in (("imagenet", "imagenet", CLASSES), ("imagenet_22k", "imagenet22k", CLASSES_22K)):
        for split in ("train", "val"):
            like = f"{folder}/train" if split == "val" else None
            register_class_folders(f"{name}_{split}", f"{folder}/{split}", classes, source=_SOURCE, like=like)
