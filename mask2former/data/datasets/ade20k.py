"""ADE20K (150 categories, 100 of them things), under `ADEChallengeData2016/`, with what its preparation adds."""

from dataclasses import replace

from mask2former.data.datasets.registry import Category, CocoLayout, register_coco_layout

_ROOT = "ADEChallengeData2016"
_FOLDERS = {"train": "training", "val": "validation"}
SOURCE = (
    "ADE20K's images and annotations (ADEChallengeData2016 and annotations_instance) come from "
    "http://sceneparsing.csail.mit.edu; datasets/prepare_ade20k.py makes the other files. See datasets/README.md."
)


def register() -> None:
    """Register ade20k_{sem_seg,panoptic,instance}_{train,val}."""
    for split, folder in _FOLDERS.items():
        image_root = f"{_ROOT}/images/{folder}"
        sem_seg_root = f"{_ROOT}/annotations_detectron2/{folder}"
        instances_json = f"{_ROOT}/ade20k_instance_{split}.json"
        panoptic = CocoLayout(
            image_root,
            # Only evaluation needs it.
            json_file=instances_json if split == "val" else None,
            panoptic_json=f"{_ROOT}/ade20k_panoptic_{split}.json",
            panoptic_root=f"{_ROOT}/ade20k_panoptic_{split}",
            sem_seg_root=sem_seg_root,
        )
        instance = CocoLayout(image_root, json_file=instances_json)
        semantic = CocoLayout(image_root, sem_seg_root=sem_seg_root)
        # The owners count the categories from 1 in label images, and expect results in these labels.
        owners = {"submission_labels": tuple(category.id + 1 for category in CATEGORIES)}
        for name, task, categories, layout, entries in (
            ("panoptic", "panoptic", CATEGORIES, panoptic, owners),
            ("instance", "instance", INSTANCE_CATEGORIES, instance, {}),
            ("sem_seg", "semantic", CATEGORIES, semantic, owners),
        ):
            register_coco_layout(f"ade20k_{name}_{split}", task, categories, layout, source=SOURCE, **entries)


# The categories of the scene parsing benchmark, in order: name, colour, and for things the name in the instance
# benchmark, whose ids 1..100 number them in this order.
# fmt: off
_TABLE: tuple[tuple[str, tuple[int, int, int], str | None], ...] = (
    ("wall", (120, 120, 120), None),
    ("building", (180, 120, 120), None),
    ("sky", (6, 230, 230), None),
    ("floor", (80, 50, 50), None),
    ("tree", (4, 200, 3), None),
    ("ceiling", (120, 120, 80), None),
    ("road, route", (140, 140, 140), None),
    ("bed", (204, 5, 255), "bed"),
    ("window ", (230, 230, 230), "windowpane"),
    ("grass", (4, 250, 7), None),
    ("cabinet", (224, 5, 255), "cabinet"),
    ("sidewalk, pavement", (235, 255, 7), None),
    ("person", (150, 5, 61), "person"),
    ("earth, ground", (120, 120, 70), None),
    ("door", (8, 255, 51), "door"),
    ("table", (255, 6, 82), "table"),
    ("mountain, mount", (143, 255, 140), None),
    ("plant", (204, 255, 4), None),
    ("curtain", (255, 51, 7), "curtain"),
    ("chair", (204, 70, 3), "chair"),
    ("car", (0, 102, 200), "car"),
    ("water", (61, 230, 250), None),
    ("painting, picture", (255, 6, 51), "painting"),
    ("sofa", (11, 102, 255), "sofa"),
    ("shelf", (255, 7, 71), "shelf"),
    ("house", (255, 9, 224), None),
    ("sea", (9, 7, 230), None),
    ("mirror", (220, 220, 220), "mirror"),
    ("rug", (255, 9, 92), None),
    ("field", (112, 9, 255), None),
    ("armchair", (8, 255, 214), "armchair"),
    ("seat", (7, 255, 224), "seat"),
    ("fence", (255, 184, 6), "fence"),
    ("desk", (10, 255, 71), "desk"),
    ("rock, stone", (255, 41, 10), None),
    ("wardrobe, closet, press", (7, 255, 255), "wardrobe"),
    ("lamp", (224, 255, 8), "lamp"),
    ("tub", (102, 8, 255), "bathtub"),
    ("rail", (255, 61, 6), "railing"),
    ("cushion", (255, 194, 7), "cushion"),
    ("base, pedestal, stand", (255, 122, 8), None),
    ("box", (0, 255, 20), "box"),
    ("column, pillar", (255, 8, 41), "column"),
    ("signboard, sign", (255, 5, 153), "signboard"),
    ("chest of drawers, chest, bureau, dresser", (6, 51, 255), "chest of drawers"),
    ("counter", (235, 12, 255), "counter"),
    ("sand", (160, 150, 20), None),
    ("sink", (0, 163, 255), "sink"),
    ("skyscraper", (140, 140, 140), None),
    ("fireplace", (250, 10, 15), "fireplace"),
    ("refrigerator, icebox", (20, 255, 0), "refrigerator"),
    ("grandstand, covered stand", (31, 255, 0), None),
    ("path", (255, 31, 0), None),
    ("stairs", (255, 224, 0), "stairs"),
    ("runway", (153, 255, 0), None),
    ("case, display case, showcase, vitrine", (0, 0, 255), "case"),
    ("pool table, billiard table, snooker table", (255, 71, 0), "pool table"),
    ("pillow", (0, 235, 255), "pillow"),
    ("screen door, screen", (0, 173, 255), "screen door"),
    ("stairway, staircase", (31, 0, 255), None),
    ("river", (11, 200, 200), None),
    ("bridge, span", (255, 82, 0), None),
    ("bookcase", (0, 255, 245), "bookcase"),
    ("blind, screen", (0, 61, 255), None),
    ("coffee table", (0, 255, 112), "coffee table"),
    ("toilet, can, commode, crapper, pot, potty, stool, throne", (0, 255, 133), "toilet"),
    ("flower", (255, 0, 0), "flower"),
    ("book", (255, 163, 0), "book"),
    ("hill", (255, 102, 0), None),
    ("bench", (194, 255, 0), "bench"),
    ("countertop", (0, 143, 255), "countertop"),
    ("stove", (51, 255, 0), "stove"),
    ("palm, palm tree", (0, 82, 255), "palm"),
    ("kitchen island", (0, 255, 41), "kitchen island"),
    ("computer", (0, 255, 173), "computer"),
    ("swivel chair", (10, 0, 255), "swivel chair"),
    ("boat", (173, 255, 0), "boat"),
    ("bar", (0, 255, 153), None),
    ("arcade machine", (255, 92, 0), "arcade machine"),
    ("hovel, hut, hutch, shack, shanty", (255, 0, 255), None),
    ("bus", (255, 0, 245), "bus"),
    ("towel", (255, 0, 102), "towel"),
    ("light", (255, 173, 0), "light"),
    ("truck", (255, 0, 20), "truck"),
    ("tower", (255, 184, 184), None),
    ("chandelier", (0, 31, 255), "chandelier"),
    ("awning, sunshade, sunblind", (0, 255, 61), "awning"),
    ("street lamp", (0, 71, 255), "streetlight"),
    ("booth", (255, 0, 204), "booth"),
    ("tv", (0, 255, 194), "television receiver"),
    ("plane", (0, 255, 82), "airplane"),
    ("dirt track", (0, 10, 255), None),
    ("clothes", (0, 112, 255), "apparel"),
    ("pole", (51, 0, 255), "pole"),
    ("land, ground, soil", (0, 194, 255), None),
    ("bannister, banister, balustrade, balusters, handrail", (0, 122, 255), "bannister"),
    ("escalator, moving staircase, moving stairway", (0, 255, 163), None),
    ("ottoman, pouf, pouffe, puff, hassock", (255, 153, 0), "ottoman"),
    ("bottle", (0, 255, 10), "bottle"),
    ("buffet, counter, sideboard", (255, 112, 0), None),
    ("poster, posting, placard, notice, bill, card", (143, 255, 0), None),
    ("stage", (82, 0, 255), None),
    ("van", (163, 255, 0), "van"),
    ("ship", (255, 235, 0), "ship"),
    ("fountain", (8, 184, 170), "fountain"),
    ("conveyer belt, conveyor belt, conveyer, conveyor, transporter", (133, 0, 255), None),
    ("canopy", (0, 255, 92), None),
    ("washer, automatic washer, washing machine", (184, 0, 255), "washer"),
    ("plaything, toy", (255, 0, 31), "plaything"),
    ("pool", (0, 184, 255), None),
    ("stool", (0, 214, 255), "stool"),
    ("barrel, cask", (255, 0, 112), "barrel"),
    ("basket, handbasket", (92, 255, 0), "basket"),
    ("falls", (0, 224, 255), None),
    ("tent", (112, 224, 255), None),
    ("bag", (70, 184, 160), "bag"),
    ("minibike, motorbike", (163, 0, 255), "minibike"),
    ("cradle", (153, 0, 255), None),
    ("oven", (71, 255, 0), "oven"),
    ("ball", (255, 0, 163), "ball"),
    ("food, solid food", (255, 204, 0), "food"),
    ("step, stair", (255, 0, 143), "step"),
    ("tank, storage tank", (0, 255, 235), None),
    ("trade name", (133, 255, 0), "trade name"),
    ("microwave", (255, 0, 235), "microwave"),
    ("pot", (245, 0, 255), "pot"),
    ("animal", (255, 0, 122), "animal"),
    ("bicycle", (255, 245, 0), "bicycle"),
    ("lake", (10, 190, 212), None),
    ("dishwasher", (214, 255, 0), "dishwasher"),
    ("screen", (0, 204, 255), "screen"),
    ("blanket, cover", (20, 0, 255), None),
    ("sculpture", (255, 255, 0), "sculpture"),
    ("hood, exhaust hood", (0, 153, 255), "hood"),
    ("sconce", (0, 41, 255), "sconce"),
    ("vase", (0, 255, 204), "vase"),
    ("traffic light", (41, 0, 255), "traffic light"),
    ("tray", (41, 255, 0), "tray"),
    ("trash can", (173, 0, 255), "ashcan"),
    ("fan", (0, 245, 255), "fan"),
    ("pier", (71, 0, 255), None),
    ("crt screen", (122, 0, 255), None),
    ("plate", (0, 255, 184), "plate"),
    ("monitor", (0, 92, 255), "monitor"),
    ("bulletin board", (184, 255, 0), "bulletin board"),
    ("shower", (0, 133, 255), None),
    ("radiator", (255, 214, 0), "radiator"),
    ("glass, drinking glass", (25, 194, 194), "glass"),
    ("clock", (102, 255, 0), "clock"),
    ("flag", (92, 0, 255), "flag"),
)
# fmt: on
# The prepared annotations have ids 0..149.
CATEGORIES = tuple(Category(i, name, color, thing is not None) for i, (name, color, thing) in enumerate(_TABLE))
# The instance benchmark has other names for some things.
INSTANCE_CATEGORIES = tuple(
    replace(category, name=thing)
    for category, (_, _, thing) in zip(CATEGORIES, _TABLE, strict=True)
    if thing is not None
)
