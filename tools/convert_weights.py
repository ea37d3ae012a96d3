#!/usr/bin/env python
"""Turn weights into safetensors, or back into a .pth, without changing a bit of them.

    python tools/convert_weights.py mask2former_dinat_large_coco_panoptic.pth coco.safetensors --setting coco-panoptic
    python tools/convert_weights.py coco.safetensors coco.pth
    python tools/convert_weights.py old.pkl new.safetensors --allow-pickle
    python tools/convert_weights.py pytorch_model.bin dinat.safetensors --from-transformers
    python tools/convert_weights.py upernet_dinat_tiny.pth upernet.safetensors --from-openmmlab
    python tools/convert_weights.py upernet.safetensors upernet.pth --to-openmmlab
    python tools/convert_weights.py mask2former_dinat_large_coco_panoptic.pth FOLDER --to-transformers
    python tools/convert_weights.py FOLDER mask2former_dinat_large_coco_panoptic.pth
    python tools/convert_weights.py dinat_mini_in1k_224.pth FOLDER --to-transformers --model dinat_mini

INPUT is what MODEL.WEIGHTS accepts, a file or a URL: a checkpoint of Mask2Former or of a training, a state dict, an
ImageNet classifier. OUTPUT holds only the weights, under their names without `module.` and `model.`, and says where
they come from (setting, source, SHA-256 of the source). It is read again and compared before it gets its name.

With --to-openmmlab, OUTPUT has the layout of mmdetection and mmsegmentation: `meta` with CLASSES and PALETTE, and
`state_dict`. Classes are those of INPUT, or those of the data set of --config-file. Without this option, OUTPUT keeps
the classes of INPUT in its metadata.

With --to-transformers, OUTPUT is a folder for `Mask2FormerForUniversalSegmentation.from_pretrained` of the transformers
library. A published setting is recognised by names and shapes; any other model needs --config-file. For a classifier,
the folder is one for `AutoModelForImageClassification`; --model tells NAT and DiNAT apart, whose weights have the same
names and shapes. A folder of that library may also be INPUT.
"""

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from safetensors.torch import save

import mask2former.maskformer_model  # noqa: F401 - registers the meta-architecture
from dinat_backbone.variants import VARIANTS, published_names
from dinat_common.errors import UserError, report_errors, run_script
from dinat_common.files import atomic_write, check_file, sha256_of, user_path, write_json
from dinat_common.weights import without_wrappers
from mask2former.checkpoint import (
    CheckpointMismatchError,
    FileClasses,
    build_empty_state,
    compare,
    compare_backbone,
    fetch,
    fitting_models,
    from_openmmlab,
    from_transformers,
    holds_backbone_only,
    is_mmcv_average,
    is_url,
    of_models,
    read_checkpoint,
    to_openmmlab,
    to_transformers,
)
from mask2former.config import setup_cfg
from mask2former.data.datasets import predicted_metadata, register_custom_datasets
from mask2former.export.transformers_folder import (
    CONFIG,
    FILES,
    PROCESSOR,
    WEIGHTS,
    build_config,
    build_empty_transformers_state,
    build_image_processor,
    with_class_weights,
)
from mask2former.model_zoo import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
ENDINGS = (".safetensors", ".pth")
# The file of weights in folders that older versions of transformers wrote.
OLDER_WEIGHTS = "pytorch_model.bin"

State = Mapping[str, torch.Tensor]


class ConversionError(UserError):
    """A conversion that can't be done as asked."""


def model_names(config_file: Path, opts: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """State dict of a config's model, without values.

    Raises:
        ConfigError: The config can't be used.
    """
    return build_empty_state(setup_cfg(config_file, opts))


def check_names(
    state: dict[str, torch.Tensor], model_state: State, source: str, config_file: Path, *, whole: bool = False
) -> str:
    """Compare weights with a model, as loading does, and return the account of all names.

    Args:
        state: Weights of the file.
        model_state: State dict of the model.
        source: Name of the file in messages.
        config_file: Config of the model, in messages.
        whole: Whether the weights of a backbone alone do not fit.

    Raises:
        CheckpointMismatchError: The weights are neither the model's nor its backbone's.
    """
    state = from_openmmlab(state)
    backbone_only = not whole and holds_backbone_only(state, model_state)
    _, report = (compare_backbone if backbone_only else compare)(state, model_state)
    if not report.exact:
        if fitting := fitting_models(state, source):
            raise CheckpointMismatchError(f"{source} {of_models(fitting)} ({report.summary()})")
        raise CheckpointMismatchError(
            f"{source} does not fit {config_file}: {report.summary()}\n{report.mismatches()}\nNothing was written."
        )
    return report.text()


def require_equal(written: State, expected: State, path: Path) -> None:
    """Check that two state dicts are equal to the bit.

    Raises:
        ConversionError: They are not.
    """
    if written.keys() != expected.keys():
        raise ConversionError(f"{path}: the names that were read back differ from those that were written")
    for name, value in expected.items():
        other = written[name]
        same_kind = other.dtype == value.dtype and other.shape == value.shape
        if not same_kind or not torch.equal(_bytes(other), _bytes(value)):
            raise ConversionError(f"{path}: {name} differs from what was written; is the disk failing?")


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def write(
    path: Path,
    state: State,
    metadata: dict[str, str],
    read_as: Callable[[str], str] = str,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write weights and read them again; the file appears only if both are equal.

    Args:
        path: File to write.
        state: Weights.
        metadata: Texts to store beside the weights.
        read_as: Function from a name in the file to its name after reading, which leaves out `model.`.
        meta: Further entries of `meta` if the file gets the layout of OpenMMLab's libraries.

    Raises:
        ConversionError: They are not.
    """
    # Copies, since files of weights can't store that two tensors share memory.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with atomic_write(path, "wb", durable=True) as file:
        if path.suffix == ".safetensors":
            file.write(save(copies, metadata))
        elif meta is not None:
            torch.save({"meta": {**meta, **metadata}, "state_dict": OrderedDict(copies)}, file)
        else:
            torch.save({"model": copies, "metadata": metadata}, file)
        file.flush()
        require_equal(
            read_checkpoint(file.name, kind=path.suffix)["model"], {read_as(name): x for name, x in state.items()}, path
        )


def read_input(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Read INPUT, and rename its weights if they are from transformers.

    Returns:
        The local file that was read, and its content as `read_checkpoint` returns it.

    Raises:
        CheckpointError: INPUT is not a file of weights, or a name is unknown.
        ConversionError: INPUT is a folder without the weights of a model.
    """
    source = fetch(options.input) if is_url(options.input) else user_path(options.input)
    is_folder = source.is_dir()
    if is_folder:
        folder, source = source, source / WEIGHTS
        if (older := folder / OLDER_WEIGHTS).is_file() and not source.is_file():
            source = older
        if not source.is_file():
            split = " (they are in several files: save the model with max_shard_size='100GB')"
            reason = split if source.with_name(f"{WEIGHTS}.index.json").is_file() else ""
            raise ConversionError(f"{folder}: no {WEIGHTS} in this folder{reason}")
    content = read_checkpoint(source, allow_pickle=options.allow_pickle)
    if options.from_transformers or is_folder:
        content["model"] = from_transformers(content["model"])
    if options.from_openmmlab:
        content["model"] = from_openmmlab(content["model"])
    return source, content


def recognise(state: State) -> str | None:
    """Name of the published setting whose model has the names and shapes of `state`; None if there is none."""
    return next((model.name for model in fitting_models(dict(state)) if model.name in SETTINGS), None)


def classes_of(content: Mapping[str, Any], config_file: Path | None, opts: Sequence[str]) -> FileClasses | None:
    """Classes of a file; if it has none, those of the data set of a config.

    Raises:
        ConfigError: The config can't be used.
    """
    classes = FileClasses.of(content)
    if classes is None and config_file is not None:
        cfg = setup_cfg(config_file, opts)
        register_custom_datasets(cfg.DATASETS.CUSTOM, config_file.parent)
        classes = FileClasses.of_metadata(predicted_metadata(cfg), cfg)
    return classes


def convert(options: argparse.Namespace) -> None:
    """Convert INPUT to OUTPUT.

    Raises:
        CheckpointError: INPUT is not a file of weights, or its names differ from the given model's.
        ConfigError: --config-file can't be used.
        ConversionError: OUTPUT exists, the model of INPUT is unknown, or the written weights differ from those read
            back.
        ExportError: The transformers library has no such model.
        MissingPackageError: The transformers library is not installed.
    """
    output: Path = options.output
    outputs = [output / name for name in FILES] if options.to_transformers else [output]
    for path in outputs:
        if path.exists() and not options.overwrite:
            raise ConversionError(f"{path} exists; --overwrite replaces it")
        check_file(path)
    source, content = read_input(options)
    state, earlier = content.pop("model"), content.get("metadata", {})
    earlier = earlier if isinstance(earlier, Mapping) else {}
    averages = [name for name in state if is_mmcv_average(name)]
    state = {name: value for name, value in state.items() if name not in averages}
    if options.to_transformers and (options.model or "head.weight" in published_names(state)):
        model = options.model or earlier.get("model") or recognise_classifier(published_names(state), source)
        metadata = {"format": "pt", "source": options.input, "source_sha256": sha256_of(source), "model": model}
        write_folder(output, *classifier_for_transformers(state, model), metadata)
        report(outputs[-1], state, metadata, content)
        return
    setting = options.setting or earlier.get("setting")
    setting = setting if setting in SETTINGS else None
    if options.to_transformers and not (options.config_file or setting):
        setting = recognise(state)
        if setting is None:
            raise ConversionError(
                f"{source}: names and shapes are those of none of the published settings; --config-file names the "
                "config of the model (a training writes it as OUTPUT_DIR/config.yaml)"
            )
        print(f"recognised by names and shapes: {setting}")
    known = setting if options.setting or options.to_transformers else None
    config_file = options.config_file or (ROOT / SETTINGS[known].config_file if known else None)
    if config_file:
        names = model_names(config_file, options.opts)
        print(check_names(state, names, str(source), config_file, whole=options.to_transformers))
    classes = classes_of(content, config_file if options.to_openmmlab else None, options.opts)
    if options.to_openmmlab:
        state = to_openmmlab(from_openmmlab(state))
    metadata = {"format": "pt", "source": options.input, "source_sha256": sha256_of(source)}
    metadata |= {"setting": setting} if setting else {}
    metadata |= {"model": earlier["model"]} if earlier.get("model") in VARIANTS else {}
    if options.to_transformers and config_file:
        write_folder(output, *mask2former_for_transformers(state, setup_cfg(config_file, options.opts)), metadata)
    elif options.to_openmmlab:
        write(output, state, metadata, meta={} if classes is None else classes.meta)
    else:
        write(output, state, metadata | ({} if classes is None else classes.texts))
    report(outputs[-1], state, metadata, content)
    if classes is not None and not options.to_transformers:
        colors = ", colours" if classes.colors else ""
        print(f"  kept: names{colors} of {len(classes.names)} classes ({', '.join(classes.names[:3])}, ...)")
    if averages:
        print(f"  left out: {len(averages)} moving averages ({averages[0]}, ...)")


Config = Any  # a configuration or an image processor, classes of a library that may be missing


def recognise_classifier(state: State, source: Path) -> str:
    """Name of the only published classifier of transformers that has the names and shapes of `state`.

    Raises:
        ConversionError: None has, or several have.
        MissingPackageError: The transformers library is not installed.
    """
    from dinat_backbone.transformers import conversion

    found = conversion.recognise(state)
    if len(found) != 1:
        names = ", ".join(found) or f"none of {', '.join(conversion.names())}"
        raise ConversionError(f"{source}: names and shapes are those of {names}; --model says which classifier it is")
    return found[0]


def classifier_for_transformers(state: State, name: str) -> tuple[Config, Config, State, State]:
    """Parts of the folder of a classifier: configuration, image processor, weights, and what transformers expects.

    Raises:
        CheckpointError: A name is not one of a NAT or DiNAT.
        NotInTransformersError: transformers has no such classifier.
        MissingPackageError: The transformers library is not installed.
    """
    from dinat_backbone.transformers import conversion

    state = published_names(state)
    config = conversion.classifier_config(name, len(state["head.bias"]) if "head.bias" in state else None)
    renamed = conversion.to_transformers(state, config.model_type)
    return config, conversion.image_processor(name), renamed, conversion.empty_state(config)


def mask2former_for_transformers(state: State, cfg: CfgNode) -> tuple[Config, Config, State, State]:
    """Parts of the folder of a Mask2Former: configuration, image processor, weights, and what transformers expects.

    Raises:
        CheckpointError: A name is not one of Mask2Former.
        ExportError: The transformers library has no such model.
        MissingPackageError: The transformers library is not installed.
    """
    import dinat_backbone.transformers  # noqa: F401 - registers the backbone, in the library of an optional extra

    config = build_config(cfg)
    taken, _ = compare(dict(state), build_empty_state(cfg))
    renamed = to_transformers(with_class_weights(taken, cfg))
    return config, build_image_processor(cfg), renamed, build_empty_transformers_state(config)


def write_folder(
    folder: Path, config: Config, processor: Config, state: State, expected: State, metadata: dict[str, str]
) -> None:
    """Write a folder of transformers; the weights are written last.

    Raises:
        CheckpointError: The names or shapes of the weights are not those of transformers' model.
        ConversionError: The written weights differ from those read back.
    """
    _, account = compare(dict(state), expected)
    if not account.exact:
        raise CheckpointMismatchError(
            f"the model of transformers differs: {account.summary()}\n{account.mismatches()}\nNothing was written."
        )
    write_json(folder / CONFIG, json.loads(config.to_json_string()), indent=2)
    write_json(folder / PROCESSOR, json.loads(processor.to_json_string()), indent=2)
    write(folder / WEIGHTS, state, metadata, without_wrappers)


def report(output: Path, state: State, metadata: dict[str, str], left_out: Mapping[str, Any]) -> None:
    """Print a summary of OUTPUT."""
    values = sum(value.numel() for value in state.values())
    print(f"{metadata['source']}\n  sha256 {metadata['source_sha256']}")
    print(f"{output}: {len(state)} weights, {values / 1e6:.1f} million values, {output.stat().st_size / 1e6:.1f} MB")
    print(f"  sha256 {sha256_of(output)}\n  read again: equal to the last bit")
    if names := [str(name) for name in left_out if name != "metadata"]:
        print(f"  left out: {', '.join(names)}")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("input", metavar="INPUT", help="a file of weights, or its URL (which may end in #sha256=...)")
    endings = " or ".join(ENDINGS)
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        type=user_path,
        help=f"a name that ends in {endings}; with --to-transformers a folder",
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--setting", choices=SETTINGS, help="check names and shapes against this setting, and record it")
    model.add_argument("--config-file", type=user_path, metavar="F", help="check names and shapes against this config")
    model.add_argument("--model", choices=VARIANTS, metavar="NAME", help="published classifier, for --to-transformers")
    library = parser.add_mutually_exclusive_group()
    library.add_argument(
        "--from-transformers",
        action="store_true",
        help="rename the weights of a DiNAT, or of Mask2Former with a DiNAT, from the transformers library",
    )
    library.add_argument("--to-transformers", action="store_true", help="write a folder for the transformers library")
    library.add_argument(
        "--from-openmmlab", action="store_true", help="rename the weights of a published UPerNet or detector"
    )
    library.add_argument(
        "--to-openmmlab", action="store_true", help="write a UPerNet or a detector as mmdetection and mmsegmentation do"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="open a .pkl, which can execute arbitrary code")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set for the check")
    options = parser.parse_intermixed_args(arguments)
    if options.to_transformers and options.output.suffix in ENDINGS:
        parser.error(f"OUTPUT {options.output}: expected a folder, since --to-transformers writes several files")
    if not options.to_transformers and options.output.suffix not in ENDINGS:
        parser.error(f"OUTPUT {options.output}: expected a name that ends in {endings}")
    if options.to_openmmlab and options.output.suffix != ".pth":
        parser.error(f"OUTPUT {options.output}: --to-openmmlab writes a .pth, since those libraries read no other")
    if options.model and not options.to_transformers:
        parser.error("--model is for --to-transformers")
    if options.opts and not (options.setting or options.config_file):
        parser.error(f"{' '.join(options.opts)}: config keys need --setting or --config-file")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse_arguments(arguments)
    with report_errors():
        convert(options)


if __name__ == "__main__":
    run_script(main)
