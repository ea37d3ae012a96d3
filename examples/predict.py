# %% [markdown]
# # Segmenting pictures from Python
#
# A notebook in a plain file: VS Code, PyCharm, Spyder and Jupyter (with Jupytext) run it cell by cell, and
# `python examples/predict.py` all at once, in the folder of the checkout. The model and the pictures are those that
# `make demo` leaves; any config and its weights will do.

# %%
from pathlib import Path

from PIL import Image

from dinat_common.files import write_json
from mask2former import Predictor
from mask2former.data.image_io import ImageReadError, read_image
from mask2former.prediction.drawing import contact_sheet
from mask2former.utils.label_images import write_png
from mask2former.video import Tracker

CONFIG = "configs/shapes/panoptic-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml"
WEIGHTS = "output/shapes/train/model_final.pth"
OUT = Path("output/predict")


def is_readable(photo: Path) -> bool:
    """Whether a file is a photograph; a damaged one is reported and left out."""
    try:
        read_image(photo)
    except ImageReadError as error:
        print("skipped:", error)
        return False
    return True


PHOTOS = [photo for photo in sorted(Path("datasets/shapes/val").glob("*.jpg"))[:5] if is_readable(photo)][:4]

# %% [markdown]
# ## Five lines

# %%
predictor = Predictor.from_config(CONFIG, WEIGHTS)
result = predictor(PHOTOS[0])
for segment in result.segments():
    print(segment["category_name"], segment["score"], segment["area"], segment["bbox"])
write_png(OUT / "panoptic.png", result.draw())

# %% [markdown]
# `result.ids` is the map of segment ids, [height, width]; `result.draw()` is a picture as an array, [height, width, 3],
# which `Image.fromarray` shows in a notebook.

# %%
Image.fromarray(result.draw())

# %% [markdown]
# ## Several pictures, other tasks, thresholds
#
# Paths, Pillow images, RGB arrays and tensors, one or a list. A list goes through a GPU in batches; of folders with
# many photographs, `mask2former.prediction.files.predict_files` writes the results and reports those that fail. A
# panoptic model answers all three tasks; `confidence_threshold` is the lowest score that counts.

# %%
print("tasks:", ", ".join(predictor.tasks), "- classes:", ", ".join(predictor.classes().names))
instances = predictor([Image.open(photo) for photo in PHOTOS], task="instance", confidence_threshold=0.3, batch_size=2)
for photo, found in zip(PHOTOS, instances, strict=True):
    print(photo.name, found.masks.shape, found.boxes.tolist(), found.scores.round(2).tolist())
write_png(OUT / "instances.png", contact_sheet([found.draw() for found in instances], columns=2))

semantic = predictor(PHOTOS[0], task="semantic")
print("classes of the pixels:", sorted({segment["category_name"] for segment in semantic.segments()}))

# %% [markdown]
# ## Leaving segments out

# %%
best = instances[0].without_duplicates(max_iou=0.5).filter(min_score=0.5, min_area=50, classes=["disc", "square"])
print(len(best.segments()), "of", len(instances[0].segments()), "instances are left")

# %% [markdown]
# ## COCO's formats
#
# Instances become detections with RLE masks, semantic results one RLE a class, panoptic results an annotation and the
# colours of its PNG. Category ids are those of the data set's own files.

# %%
write_json(OUT / "detections.json", [entry for n, found in enumerate(instances) for entry in found.to_coco(image_id=n)])
panoptic = predictor(PHOTOS[0], task="panoptic")
write_json(OUT / "panoptic.json", {"annotations": [panoptic.to_coco(image_id="first")]})
write_png(OUT / "first.png", panoptic.panoptic_png())

# %% [markdown]
# ## Your own loop over frames
#
# A tracker gives the same object the same number, and so the same colour, from frame to frame. For files and cameras
# there are `mask2former.video.predict_video` and `run_camera`, which is what `demo/demo.py` calls.

# %%
tracker = Tracker()
for frame in [PHOTOS[0], PHOTOS[0]]:
    tracked = tracker.update(predictor(frame))
    print([segment.get("track_id") for segment in tracked.segments()])
