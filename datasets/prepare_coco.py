"""Make COCO's semantic maps from its panoptic annotations, for the mIoU of the panoptic setting.

Writes coco/panoptic_semseg_{train,val}2017/. Finished files are checked and kept, so the same command continues an
interrupted run.
"""

from collections.abc import Sequence

from dinat_common.errors import run_script
from mask2former.data.published.coco import prepare_coco
from mask2former.data.published.preparation import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(prepare_coco, __doc__, arguments)


if __name__ == "__main__":
    run_script(main)
