"""What `dinat_backbone` and `mask2former` share: errors, files, and the reading and downloading of weights."""
