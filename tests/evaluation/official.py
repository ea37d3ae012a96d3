"""The numbers of the data sets' own evaluation code, in percent, from files in their submission formats."""

import contextlib
import io
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def coco_ap(ground_truth, results, kind="segm"):
    """pycocotools' AP, AP50, AP75, APs, APm, APl and AP-<class>; NaN where it says -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(ground_truth))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), evaluation.stats.tolist(), strict=False))
    precision = evaluation.eval["precision"]
    for position, category in enumerate(evaluation.params.catIds):
        measured = precision[:, :, position, 0, -1]
        measured = measured[measured > -1]
        values[f"AP-{truth.cats[category]['name']}"] = measured.mean() if measured.size else -1
    return {name: 100 * value if value >= 0 else np.nan for name, value in values.items()}


def panoptic_quality(pq_compute, ground_truth, folder, results):
    """PQ, SQ, RQ with _th and _st by panopticapi's `pq_compute`."""
    with contextlib.redirect_stdout(io.StringIO()):
        found = pq_compute(str(ground_truth), str(results), str(folder))
    groups = {"": "All", "_th": "Things", "_st": "Stuff"}
    return {q.upper() + s: 100 * found[g][q] for s, g in groups.items() for q in ("pq", "sq", "rq")}


def cityscapes_ap(evaluation, gt_dir, predictions, scratch):
    """AP, AP50 and both of classes, by evalInstanceLevelSemanticLabeling; it also writes into the working directory."""
    args = evaluation.args
    args.predictionPath, args.predictionWalk = str(predictions.absolute()), None
    args.JSONOutput, args.quiet, args.gtInstancesFile = False, True, str(scratch / "gtInstances.json")
    truth = sorted(map(str, Path(gt_dir).glob("*/*_gtFine_instanceIds.png")))
    predictions = [evaluation.getPrediction(path, args) for path in truth]
    found = evaluation.evaluateImgLists(predictions, truth, args)["averages"]
    values = {"AP": found["allAp"], "AP50": found["allAp50%"]}
    for name, of_class in found["classes"].items():
        values |= {f"AP-{name}": of_class["ap"], f"AP50-{name}": of_class["ap50%"]}
    return {name: 100 * value for name, value in values.items()}


def cityscapes_iou(evaluation, gt_dir, predictions):
    """IoU, iIoU, IoU_sup, iIoU_sup and those of classes and groups, by evalPixelLevelSemanticLabeling."""
    args = evaluation.args
    args.predictionPath, args.predictionWalk = str(predictions.absolute()), None
    args.JSONOutput, args.quiet = False, True
    truth = sorted(map(str, Path(gt_dir).glob("*/*_gtFine_labelIds.png")))
    found = evaluation.evaluateImgLists([evaluation.getPrediction(args, path) for path in truth], truth, args)
    kinds = {
        "IoU": ("averageScoreClasses", "classScores"),
        "iIoU": ("averageScoreInstClasses", "classInstScores"),
        "IoU_sup": ("averageScoreCategories", "categoryScores"),
        "iIoU_sup": ("averageScoreInstCategories", "categoryInstScores"),
    }
    values = {}
    for metric, (mean, single) in kinds.items():
        values |= {metric: found[mean], **{f"{metric}-{name}": value for name, value in found[single].items()}}
    return {name: 100 * value for name, value in values.items()}


def mean_iou(labels, predicted, void):
    """mIoU by its definition, over the classes that are labelled."""
    predicted, labels = predicted[labels != void], labels[labels != void]
    ious = []
    for k in np.unique(labels):
        a, b = predicted == k, labels == k
        ious.append((a & b).sum() / (a | b).sum())
    return 100 * np.mean(ious)
