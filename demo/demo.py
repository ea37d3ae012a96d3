"""Segment or classify photographs, a video or a camera's pictures with a trained model.

    python demo/demo.py --config-file F --input PHOTO FOLDER 'GLOB' --output OUT MODEL.WEIGHTS CHECKPOINT
    python demo/demo.py --config-file F --video-input VIDEO --output OUT MODEL.WEIGHTS CHECKPOINT
    torchrun --nproc-per-node 8 demo/demo.py --config-file F --input FOLDER --output OUT MODEL.WEIGHTS CHECKPOINT
    python demo/demo.py --config-file F --webcam MODEL.WEIGHTS CHECKPOINT

Photographs: OUT gets NAME_TASK.png, with class names and scores, and, with --json, NAME_TASK.json: file name, size,
task and `segments_info` with names, scores, areas, boxes and masks (COCO's compressed RLE); of an image classifier,
`classes` with the names and probabilities of the five most probable ones.
Videos: OUT gets NAME_TASK.mp4 (without sound), in which an object keeps its number and colour, and, with --json,
NAME_TASK.jsonl, with one line of JSON per frame. The video has the duration of its input; animated images (GIF, WebP,
PNG) are videos too.
After an interruption, the same command continues where it ended. Under torchrun, on one machine or several, the
processes share the images or videos (docs/scale.md).
No data set is needed.
Exit status: 0 if all inputs succeeded; 1 if some failed or there was nothing to do; 2 if the command line or the config
can't be used; 130 after Ctrl-C.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from detectron2.utils import comm

from dinat_common.errors import report_errors, run_script
from dinat_common.files import check_folder, user_path
from mask2former import ConfigError, Predictor, setup_cfg
from mask2former.engine import available_device, launch, under_torchrun
from mask2former.prediction.base import Prediction, SegmentPrediction
from mask2former.prediction.files import (
    ERRORS_OF_ONE_INPUT,
    FileFailed,
    Refine,
    described,
    find_images,
    output_stems,
    predict_files,
)
from mask2former.prediction.predictor import RESULTS
from mask2former.prediction.results import InstancePrediction
from mask2former.prediction.sharing import ImageShare, Outcome, peak_memories
from mask2former.tasks import TASKS
from mask2former.utils.logs import set_up_logs
from mask2former.utils.parallel import uneven_work
from mask2former.video import CODECS, predict_video, run_camera


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Exit status: 0 all inputs succeeded; 1 some failed or there was nothing to do; 2 wrong command line or "
        "config; 130 interrupted.",
    )
    parser.add_argument("--config-file", required=True, metavar="F", help="a file of configs/")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="IMG", help="images, folders of images, or globs")
    source.add_argument("--video-input", nargs="+", metavar="VIDEO", help="videos, of any kind that OpenCV reads")
    source.add_argument(
        "--webcam",
        type=int,
        metavar="[N]",
        help="a camera (default: the first), shown in a window if possible; with --output, also recorded as a video",
    )
    parser.add_argument("--output", type=user_path, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--task",
        choices=list(TASKS),
        help="kind of result; default: the richest one that the config turns on",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="T",
        help="lowest score shown, 0 to 1; default: 0.5 for instances, the config's OBJECT_MASK_THRESHOLD for panoptic",
    )
    parser.add_argument("--min-area", type=int, default=0, metavar="PIXELS", help="smallest segment shown")
    parser.add_argument(
        "--nms",
        type=float,
        metavar="IOU",
        help="drop instances whose mask overlaps a better one of their class by more than this IoU, 0 to 1",
    )
    parser.add_argument(
        "--class",
        action="append",
        dest="classes",
        metavar="NAME",
        help="a class to show, may be repeated; default: all",
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="names of the classes in the order of their ids: a text file with one per line, or JSON; default: those "
        "of the data set",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images or frames at once; default: 4 on a GPU, 1 on a CPU"
    )
    parser.add_argument(
        "--codec", choices=list(CODECS), help="codec of videos; default: mp4v in .mp4, for odd sizes MJPG in .avi"
    )
    parser.add_argument("--json", action="store_true", help="also write the results as JSON")
    # Processes are started by torchrun.
    parser.set_defaults(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config keys to set, e.g. MODEL.WEIGHTS model.pth MODEL.DEVICE cpu"
    )
    options = parser.parse_intermixed_args(_with_camera_number(sys.argv[1:] if arguments is None else arguments))
    options.input, keys = _split_keys(options.input or [])
    options.video_input, more_keys = _split_keys(options.video_input or [])
    options.opts = [*keys, *more_keys, *options.opts]
    if options.output is None and options.webcam is None:
        parser.error("--output is required: the folder for the results")
    if options.output is not None and os.path.isfile(options.output):
        parser.error(f"--output {options.output} is a file, expected a folder")
    if options.json and options.webcam is not None:
        parser.error("--json is for images and videos")
    if options.webcam is not None and under_torchrun():
        parser.error("--webcam is for one process, without torchrun")
    if options.batch_size is not None and options.batch_size < 1:
        parser.error(f"--batch-size {options.batch_size}: expected at least 1")
    if options.nms is not None and not 0 <= options.nms <= 1:
        parser.error(f"--nms {options.nms}: expected a number from 0 to 1")
    return options


def _with_camera_number(arguments: Sequence[str]) -> list[str]:
    """Insert the number 0 after a --webcam without one; argparse would take a config key for the number."""
    numbered = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        numbered += [argument, "0"] if argument == "--webcam" and not following.isdecimal() else [argument]
    return numbered


def _split_keys(values: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Split a list into files and the config keys and values that follow them."""
    for position, value in enumerate(values):
        if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+", value) and not Path(value).exists():
            return values[:position], values[position:]
    return values, []


def selection(predictor: Predictor, options: argparse.Namespace) -> Refine:
    """Return the function that drops segments, or classes, according to --class, --min-area and --nms.

    Raises:
        ConfigError: A class does not exist, or results of the task have no segments or none that overlap.
    """
    table = predictor.classes()
    known = frozenset(table.names)
    unknown = [name for name in options.classes or [] if name not in known]
    if unknown:
        raise ConfigError(f"--class {', '.join(unknown)}: the classes are {table.listed()}")
    kind = RESULTS[predictor.task]
    for option, given in {"--nms": options.nms is not None, "--min-area": options.min_area}.items():
        if given and not issubclass(kind, SegmentPrediction):
            raise ConfigError(f"{option} is for segments: {predictor.task} results have none")
    if options.nms is not None and not issubclass(kind, InstancePrediction):
        raise ConfigError(f"--nms is for --task instance: {predictor.task} segments do not overlap")

    def refine(prediction: Prediction) -> Prediction:
        if isinstance(prediction, InstancePrediction) and options.nms is not None:
            prediction = prediction.without_duplicates(options.nms)
        if isinstance(prediction, SegmentPrediction) and options.min_area:
            prediction = prediction.filter(min_area=options.min_area)
        return prediction.filter(classes=options.classes) if options.classes else prediction

    return refine


def run_images(predictor: Predictor, refine: Refine, options: argparse.Namespace) -> int:
    """Predict the images, printing a line for each; return the number of inputs that failed, in all processes."""
    images, empty = find_images(options.input)
    # Once per machine, since each may have images of its own.
    for text in empty if comm.get_local_rank() == 0 else ():
        print(f"no image found: {text}", file=sys.stderr)
    start = time.perf_counter()
    given = {name: getattr(options, name) for name in ("json", "min_area", "nms", "classes")}
    given["names"] = predictor.classes().names
    with report_errors(status=2):
        share = ImageShare(images, options.output, predictor, given, options.input)
    if not images:
        return len(empty)
    if share.kept and comm.is_main_process():
        print(f"{share.kept} of {len(images)} images were done before", flush=True)
    results = predict_files(
        predictor,
        share.images,
        options.output,
        with_json=options.json,
        batch_size=options.batch_size or predictor.batch_size,
        refine=refine,
        stems=share.stems,
    )
    process = f"process {comm.get_rank()}: " if comm.get_world_size() > 1 else ""
    count = len(share.images)
    for number, result in enumerate(share.keep(results), 1):
        place = f"[{process}{number}/{count}]"
        if isinstance(result, FileFailed):
            print(f"{place} skipped: {result.error}", file=sys.stderr, flush=True)
            continue
        remaining = timedelta(seconds=round((time.perf_counter() - start) / number * (count - number)))
        eta = f", ETA {remaining}" if number < count else ""
        size = f"{result.size[1]}x{result.size[0]}"
        print(f"{place} {result.image} ({size}) -> {result.picture}, {result.seconds:.2f} s{eta}", flush=True)
    outcome = share.outcome()
    if comm.is_main_process():
        report_images(outcome, time.perf_counter() - start)
    return len(outcome.failed) + len(empty)


def report_images(outcome: Outcome, seconds: float) -> None:
    """Print what became of the images of all processes, after so many seconds."""
    for rank, failure in outcome.failed:
        if rank // comm.get_local_size() != 0:
            print(f"skipped on another machine, by process {rank}: {failure.error}", file=sys.stderr)
    new = outcome.images - outcome.kept
    done = outcome.images - len(outcome.failed)
    kept = f", {outcome.kept} of them before" if outcome.kept else ""
    memory = memory_text(outcome.peak_memory)
    print(f"{done} of {outcome.images} images done{kept}, {seconds / max(1, new):.2f} s per image, {memory}")


def run_videos(predictor: Predictor, refine: Refine, options: argparse.Namespace) -> int:
    """Predict the videos one by one; return the number of those that failed, entirely or in some frames.

    Of several processes, each takes every n-th video.
    """
    videos = [user_path(video) for video in options.video_input]
    stems = output_stems(videos, options.output, predictor.task)
    mine = slice(comm.get_rank(), None, comm.get_world_size())
    with uneven_work():
        failed = predict_videos(predictor, refine, options, list(zip(videos, stems, strict=True))[mine])
    return sum(comm.all_gather(failed))


def predict_videos(
    predictor: Predictor, refine: Refine, options: argparse.Namespace, videos: Sequence[tuple[Path, Path]]
) -> int:
    """Predict videos, each given with the path of its result without an ending; return the number that failed."""
    failed = 0
    for video, stem in videos:
        start = time.perf_counter()
        try:
            done = predict_video(
                predictor,
                video,
                stem,
                codec=options.codec,
                batch_size=options.batch_size or predictor.batch_size,
                with_json=options.json,
                refine=refine,
            )
        except ERRORS_OF_ONE_INPUT as error:
            failed += 1
            reason = described(error)
            print(f"skipped: {reason if str(video) in reason else f'{video}: {reason}'}", file=sys.stderr, flush=True)
            continue
        failed += bool(done.failed)
        new = done.frames - done.kept
        rate = f"{new} frames in {time.perf_counter() - start:.1f} s" + (f", {done.kept} kept" if done.kept else "")
        skipped = f", {len(done.failed)} skipped" if done.failed else ""
        print(
            f"{video} -> {done.output}: {done.frames} frames{skipped} ({rate}), {memory_text(peak_memories())}",
            flush=True,
        )
    return failed


def run_webcam(predictor: Predictor, refine: Refine, options: argparse.Namespace) -> int:
    """Show a camera's pictures until the end; return the number of those that failed."""
    stem = options.output and options.output / f"webcam_{predictor.task}"
    with report_errors():
        done = run_camera(predictor, options.webcam, stem, codec=options.codec, refine=refine)
    written = f" -> {done.output}" if done.output else ""
    print(f"camera {options.webcam}{written}: {done.frames} pictures, {done.frames / done.seconds:.2f} per second")
    return done.failed


def memory_text(peaks: Mapping[str, int]) -> str:
    """Peak memory by device in bytes, as text."""
    text = f"peak memory {peaks['cpu'] / 2**30:.2f} GiB"
    return text + (f", on the GPU {peaks['cuda'] / 2**30:.2f} GiB" if "cuda" in peaks else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo, under torchrun in each of its processes, and return the exit status."""
    options = parse_arguments(arguments)
    if not under_torchrun():
        return predict(options)
    with report_errors(status=2):
        cfg = setup_cfg(options.config_file, options.opts)
        device = available_device(cfg.MODEL.DEVICE, explicit="MODEL.DEVICE" in options.opts)
    with report_errors():
        return launch(predict, options, device=device)


def predict(options: argparse.Namespace) -> int:
    """Do what the command line asks, in one process or several, and return the exit status."""
    set_up_logs(("mask2former", "dinat_backbone"), rank=comm.get_rank())
    with report_errors(status=2):
        if options.output is not None:
            check_folder(options.output)
        predictor = Predictor.from_config(
            options.config_file,
            opts=options.opts,
            task=options.task,
            confidence_threshold=options.confidence_threshold,
            class_names=options.class_names,
        )
        refine = selection(predictor, options)
    try:
        run = run_images if options.input else run_videos if options.video_input else run_webcam
        with report_errors():
            failed = run(predictor, refine, options)
    except KeyboardInterrupt:
        print("interrupted; what is reported above is done, and the same command continues", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    run_script(main)
