"""Make Cityscapes' labels for semantic and panoptic segmentation, equal to those of cityscapesscripts.

Writes *_labelTrainIds.png, cityscapes_panoptic_{train,val}.json and folders under cityscapes/gtFine/. Finished files
are checked and kept, so the same command continues an interrupted run.
"""

from collections.abc import Sequence

from dinat_common.errors import run_script
from mask2former.data.published.cityscapes import PREPARED_TASKS, prepare_cityscapes
from mask2former.data.published.preparation import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(prepare_cityscapes, __doc__, arguments, PREPARED_TASKS)


if __name__ == "__main__":
    run_script(main)
