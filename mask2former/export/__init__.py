"""A trained model as one file for other programs: ONNX, or a program of torch.export.

`numpy_postprocessing` turns the outputs of such a file into results without PyTorch; it can be copied alone.
"""

from .files import save_onnx, save_torch_export
from .network import ExportError, Freedom, describe, export_network

__all__ = ["ExportError", "Freedom", "describe", "export_network", "save_onnx", "save_torch_export"]
