"""Make ADE20K's labels for semantic, instance and panoptic segmentation.

Writes annotations_detectron2/, ade20k_instance_{train,val}.json, ade20k_panoptic_{train,val}.json and folders under
ADEChallengeData2016/. Finished files are checked and kept, so the same command continues an interrupted run.
"""

from collections.abc import Sequence

from dinat_common.errors import run_script
from mask2former.data.published.ade20k import PREPARED_TASKS, prepare_ade20k
from mask2former.data.published.preparation import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(prepare_ade20k, __doc__, arguments, PREPARED_TASKS)


if __name__ == "__main__":
    run_script(main)
