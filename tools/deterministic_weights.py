"""Fills a model with weights that depend on their names alone, and saves them as a checkpoint.

    python tools/deterministic_weights.py --config-file F --output X.safetensors [--class-embed-scale S] [KEY VALUE ...]

With them two machines, or two implementations, can be compared without a trained checkpoint, and a full-size model
can be run where there is none. What such a model predicts has no meaning. The numbers come from NumPy's `RandomState`,
whose stream is guaranteed never to change, seeded by the CRC-32 of a name. Tests use the functions as well.
"""

import argparse
import math
import os
import sys
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

CLASS_EMBED = "sem_seg_head.predictor.class_embed.weight"
# Class weights of the loss, which follow from the config.
FIXED_BUFFERS = ("criterion.empty_weight",)


def generator(name: str) -> np.random.RandomState:
    """The random stream of a name."""
    return np.random.RandomState(zlib.crc32(name.encode()))


def draw(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal numbers of this shape, a pure function of the name."""
    return generator(name).standard_normal(tuple(shape)).astype(np.float32)


def weight(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Value of a parameter or buffer, from r = `draw(name, shape)`.

    Relative position biases (`*.rpb`): r. `*sampling_offsets.bias`: 2 r. Other tensors of one dimension: 1 + 0.1 r
    where the name ends in "weight" (norms), else 0.1 r (biases). All others: r / sqrt(fan-in), where the fan-in is the
    product of all dimensions but the first.
    """
    values = draw(name, shape)
    if name.endswith(".rpb"):
        return values
    if name.endswith("sampling_offsets.bias"):
        return 2 * values
    if len(shape) == 1:
        offset = 1 if name.endswith("weight") else 0
        return (offset + 0.1 * values).astype(np.float32)
    fan_in = max(1, math.prod(shape[1:]))
    return (values / np.sqrt(fan_in)).astype(np.float32)


def image(name: str, height: int, width: int) -> NDArray[np.uint8]:
    """A smooth RGB image [3, H, W] of six waves per channel, a pure function of the name."""
    stream = generator(name)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = np.zeros((3, height, width))
    for channel in channels:
        for _ in range(6):
            frequency_y, frequency_x = stream.uniform(-0.08, 0.08, 2)
            amplitude = stream.uniform(10, 40)
            phase = stream.uniform(0, 6.28)
            channel += amplitude * np.sin(2 * np.pi * (frequency_y * y + frequency_x * x) + phase)
    return np.clip(channels + 128, 0, 255).astype(np.uint8)


def load_weights(model: nn.Module, skip: Collection[str] = FIXED_BUFFERS) -> nn.Module:
    """Fill a model in place with `weight` by the names of its state dict, except those in `skip`; returns the model."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name not in skip:
                value.copy_(torch.from_numpy(weight(name, value.shape)))
    return model


def save(model: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    # Here, so that the functions above can be used without Detectron2.
    from detectron2.modeling import build_model

    import mask2former.maskformer_model  # noqa: F401 - registers the meta-architecture
    from mask2former.config import ConfigError, setup_cfg

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="F", help="a file of configs/")
    parser.add_argument("--output", required=True, type=Path, metavar="X.safetensors", help="the checkpoint to write")
    parser.add_argument(
        "--class-embed-scale",
        type=float,
        default=1.0,
        metavar="S",
        help="factor on the class weights; more than 1 makes scores differ more, so that some segments are kept",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set")
    options = parser.parse_intermixed_args(arguments)
    if options.output.suffix != ".safetensors":
        parser.error(f"--output {options.output}: expected a name ending in .safetensors")
    try:
        cfg = setup_cfg(options.config_file, options.opts)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cfg.MODEL.DEVICE = "cpu"
    model = load_weights(build_model(cfg))
    with torch.no_grad():
        model.get_parameter(CLASS_EMBED).mul_(options.class_embed_scale)
    save(model, options.output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.output}: {parameters / 1e6:.1f} million parameters, {options.output.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
