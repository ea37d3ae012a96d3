"""Make ADE20K's labels for semantic, instance and panoptic segmentation.

Writes annotations_detectron2/, ade20k_instance_{train,val}.json, ade20k_panoptic_{train,val}.json and folders under
ADEChallengeData2016/. What is finished is checked and kept, so the same command takes up a run that was interrupted.
"""

import argparse
import sys
from collections.abc import Sequence

from mask2former.data.datasets import MissingDatasetError
from mask2former.data.published import PreparationError, add_arguments, prepare_ade20k, report
from mask2former.data.published.ade20k import TASKS
from mask2former.utils.errors import report_errors, report_interrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, TASKS)
    options = parser.parse_args(arguments)
    expected = (MissingDatasetError, PreparationError, OSError)
    with report_errors(expected), report_interrupt("the same command takes up where this one ended"):
        print(report(prepare_ade20k(options.root, options.split, workers=options.workers, tasks=options.task)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
