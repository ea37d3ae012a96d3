"""The model that was exported, measured as `exported_model` measures its export; in a process of its own.

    python -m mask2former.export.original_model CONFIG.yaml INPUTS.npz OUTPUTS.npz THREADS

CONFIG is complete: all keys, and paths that are absolute.
"""

import sys

import numpy as np
import torch
from detectron2.modeling import build_model

from mask2former.config import setup_cfg
from mask2former.data.datasets.custom import register_custom_datasets
from mask2former.engine import Checkpointer

from .exported_model import Floats, Outputs, measure
from .network import ExportedNetwork


def main(config_file: str, inputs: str, outputs: str, threads: str) -> None:
    """Run the model of a config on the arrays of a file."""
    torch.set_num_threads(int(threads))
    cfg = setup_cfg(config_file)
    register_custom_datasets(cfg.DATASETS.CUSTOM, ".")
    model = build_model(cfg)
    Checkpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    network = ExportedNetwork(model)

    def run(image: Floats) -> Outputs:
        with torch.inference_mode():
            logits, masks = network(torch.from_numpy(image))
        return logits.numpy(), masks.numpy()

    with np.load(inputs) as arrays:
        results = measure(run, {name: arrays[name] for name in arrays.files})
    np.savez(outputs, **results)  # ty: ignore[invalid-argument-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
