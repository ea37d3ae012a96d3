"""Exported programs as files: one ONNX file, or one .pt2 of torch.export, each with its description inside."""

import io
import json
import logging
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from mask2former.utils.files import atomic_write

from .network import INPUT, OUTPUTS, ExportError

# GridSample "linear" and Gelu came with 20; onnxruntime knows it since 1.17.
_OPSET = 20
# Where the description of a .pt2 lies among its extra files.
DESCRIPTION_FILE = "description.json"


def save_onnx(program: ExportedProgram, path: str | Path, description: Mapping[str, Any]) -> None:
    """Write a program as one ONNX file, or not at all.

    The entries of `description` become `metadata_props` of the model, each as JSON.

    Raises:
        ExportError: the packages of the extra `export` are not installed, or the weights are too large for one file.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - what torch.onnx exports with
    except ImportError as error:
        raise ExportError(f"exporting to ONNX needs {error.name}: pip install -e '.[export]'") from error
    # Its steps and skipped foldings would hide what the tool says.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()):
        exported = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS), opset_version=_OPSET
        )
    if exported is None:
        raise ExportError("torch.onnx.export returned no program")
    model = exported.model_proto
    for key, value in description.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    try:
        content = model.SerializeToString()
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"{path}: an ONNX file holds at most 2 GB, this model is larger ({error})") from error
    with atomic_write(path, "wb") as file:
        file.write(content)
    del content
    onnx.checker.check_model(os.fspath(path))


def save_torch_export(program: ExportedProgram, path: str | Path, description: Mapping[str, Any]) -> None:
    """Write a program for `torch.export.load`, or not at all; the description is an extra file of it, as JSON."""
    with atomic_write(path, "wb") as file:
        torch.export.save(program, file, extra_files={DESCRIPTION_FILE: json.dumps(description)})
