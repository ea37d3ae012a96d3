"""From files on disk to the dicts that the model takes: data sets, augmentation, targets, loaders."""
