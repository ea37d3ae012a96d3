"""A trained model as one file for other programs: ONNX, or a program of torch.export.

`exported_model` and `numpy_postprocessing` use such a file without PyTorch; both can be copied alone.
"""

from .network import (
    ExportError,
    Freedom,
    check_exportable,
    describe,
    export_form,
    export_network,
    save_onnx,
    save_torch_export,
)

__all__ = [
    "ExportError",
    "Freedom",
    "check_exportable",
    "describe",
    "export_form",
    "export_network",
    "save_onnx",
    "save_torch_export",
]
