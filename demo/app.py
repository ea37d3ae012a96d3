"""Serve a web page that segments or classifies photographs with a trained model.

    python demo/app.py --config-file F MODEL.WEIGHTS CHECKPOINT

The page takes uploads or samples, and shows what was found as an overlay with names and as a table; task, thresholds
and classes can be changed, and picture and JSON downloaded. It works without a network, and only on this machine
unless --host says otherwise. Ctrl-C ends it. Needs Gradio: pip install -e '.[app]'.
Exit status: 0 after Ctrl-C or SIGTERM; 2 if the command line, the config or the address can't be used.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dinat_common.errors import report_errors, run_script
from dinat_common.files import check_folder
from mask2former import Predictor
from mask2former.utils.logs import set_up_logs
from mask2former.web import Limits, Workbench, find_samples


def positive(text: str) -> float:
    """Parse a number larger than zero."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a number larger than 0")
    return number


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Exit status: 0 after Ctrl-C or SIGTERM; 2 wrong command line, config or address.",
    )
    parser.add_argument("--config-file", required=True, metavar="F", help="a file of configs/, or one of your own")
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="names of the classes in the order of their ids: a text file with one per line, or JSON; default: those "
        "of the data set",
    )
    parser.add_argument(
        "--samples", metavar="DIR", help="folder of images to try; default: photographs of scikit-image"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen; 0.0.0.0: open to the network; default: %(default)s, this machine alone",
    )
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860 on")
    parser.add_argument(
        "--max-megapixels",
        type=positive,
        default=Limits.megapixels,
        metavar="N",
        help="largest photograph accepted, in millions of pixels; default: %(default)g",
    )
    parser.add_argument(
        "--max-megabytes",
        type=positive,
        default=Limits.megabytes,
        metavar="N",
        help="largest file accepted, in MiB; default: %(default)g",
    )
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config keys to set, e.g. MODEL.WEIGHTS model.pth MODEL.DEVICE cpu"
    )
    return parser.parse_intermixed_args(arguments)


def serve_model(options: argparse.Namespace, files: Path) -> NoReturn:
    """Serve the page until Ctrl-C; `files` is a folder for temporary files."""
    # Here, so that a missing Gradio is reported like any other UserError, and before the model is built.
    from mask2former.web.page import build_page, serve

    samples = find_samples(options.samples)
    predictor = Predictor.from_config(options.config_file, opts=options.opts, class_names=options.class_names)
    bench = Workbench(predictor, Limits(options.max_megapixels, options.max_megabytes), files)
    page = build_page(bench, samples)
    try:
        print(f"open {serve(page, bench, options.host, options.port)} (Ctrl-C ends it)", flush=True)
        if options.host not in ("127.0.0.1", "localhost"):
            print("anyone who can reach this machine over the network can use the page", file=sys.stderr, flush=True)
        # Python handles signals between short waits on every system.
        while True:
            time.sleep(1)
    finally:
        page.close(verbose=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until it is ended, and return the exit status."""
    options = parse_arguments(arguments)
    set_up_logs(("mask2former", "dinat_backbone"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with report_errors(status=2), tempfile.TemporaryDirectory(prefix="dinat-app-") as files:
        check_folder(files)
        # Gradio stores uploads and pictures there.
        os.environ["GRADIO_TEMP_DIR"] = files
        try:
            serve_model(options, Path(files))
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    run_script(main)
