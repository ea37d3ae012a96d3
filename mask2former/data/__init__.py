"""From files on disk to the input of the model: data sets, augmentation, targets, loaders."""

from mask2former.data.build import (
    build_test_loader,
    build_train_loader,
    build_train_mapper,
    build_validation_loader,
    check_agreement,
)

__all__ = [
    "build_test_loader",
    "build_train_loader",
    "build_train_mapper",
    "build_validation_loader",
    "check_agreement",
]
