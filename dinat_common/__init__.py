"""What `dinat_backbone` and `mask2former` share: errors, files, and the reading and downloading of weights."""

import warnings

with warnings.catch_warnings():
    # Detectron2 and fvcore script functions when they are imported. A user can't change that.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    import detectron2.modeling  # noqa: F401
