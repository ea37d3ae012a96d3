"""From files on disk to the dicts that the model takes: data sets, augmentation, targets, loaders."""

from mask2former.data.build import build_test_loader, build_train_loader, build_train_mapper, build_validation_loader

__all__ = ["build_test_loader", "build_train_loader", "build_train_mapper", "build_validation_loader"]
