"""Fill a model with weights that depend on their names alone, and save them as a checkpoint.

    python tools/deterministic_weights.py --config-file F --output X.safetensors [--class-embed-scale S] [KEY VALUE ...]

They make it possible to compare two machines or two implementations without a trained checkpoint, and to run a model of
full size. Its predictions have no meaning. The numbers come from NumPy's `RandomState`, whose stream is guaranteed
never to change, seeded by the CRC-32 of a name. Tests use these functions as well.
"""

import argparse
import math
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as serialize
from torch import nn

CLASS_EMBED = "sem_seg_head.predictor.class_embed.weight"
# Class weights of the loss, which follow from the config.
FIXED_BUFFERS = ("criterion.empty_weight",)


def generator(name: str) -> np.random.RandomState:
    """The random stream of a name."""
    return np.random.RandomState(zlib.crc32(name.encode()))


def draw(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal numbers of a shape, a pure function of the name."""
    return generator(name).standard_normal(tuple(shape)).astype(np.float32)


def weight(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Value of a parameter or buffer, from r = `draw(name, shape)`.

    Relative position biases (`*.rpb`) are r, `*sampling_offsets.bias` 2 r, and variances of batch norms
    (`*.running_var`) 1 + 0.1 |r|. Other tensors of one dimension are 1 + 0.1 r if the name ends in "weight" (norms),
    otherwise 0.1 r (biases). All others are r / sqrt(fan-in), where the fan-in is the product of all dimensions but the
    first.
    """
    values = draw(name, shape)
    if name.endswith(".rpb"):
        return values
    if name.endswith("sampling_offsets.bias"):
        return 2 * values
    if name.endswith("running_var"):
        return (1 + 0.1 * np.abs(values)).astype(np.float32)
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
    """Fill a model in place with `weight` by the names of its state dict.

    Args:
        model: Model.
        skip: Names that keep their values, as counters and indices do.

    Returns:
        The model.
    """
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name not in skip and value.is_floating_point():
                value.copy_(torch.from_numpy(weight(name, value.shape)))
    return model


def save(model: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors, complete or not at all."""
    from dinat_common.files import atomic_write

    with atomic_write(path, "wb") as file:
        file.write(serialize({name: value.contiguous() for name, value in model.state_dict().items()}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    # Imported here so that the functions above can be used without Detectron2.
    from detectron2.modeling import build_model

    import mask2former.maskformer_model
    import mask2former.modeling  # noqa: F401 - both register meta-architectures
    from dinat_common.errors import report_errors
    from dinat_common.files import check_file
    from mask2former.config import setup_cfg

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="F", help="a file of configs/")
    parser.add_argument("--output", required=True, type=Path, metavar="X.safetensors", help="the checkpoint to write")
    parser.add_argument(
        "--class-embed-scale",
        type=float,
        default=1.0,
        metavar="S",
        help="factor for the class weights of a Mask2Former; above 1, scores differ more and some segments are kept",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set")
    options = parser.parse_intermixed_args(arguments)
    if options.output.suffix != ".safetensors":
        parser.error(f"--output {options.output}: expected a name ending in .safetensors")
    with report_errors(status=2):
        cfg = setup_cfg(options.config_file, options.opts)
        check_file(options.output)
    cfg.MODEL.DEVICE = "cpu"
    model = load_weights(build_model(cfg))
    if options.class_embed_scale != 1:
        with torch.no_grad():
            model.get_parameter(CLASS_EMBED).mul_(options.class_embed_scale)
    with report_errors():
        save(model, options.output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.output}: {parameters / 1e6:.1f} million parameters, {options.output.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    from dinat_common.errors import run_script

    run_script(main)
